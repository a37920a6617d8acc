"""The mini CLIP: an open_clip model whose text encoder also conditions the mini U-Net, as in Stable Diffusion."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from persres.experiments.miniworld_training.captions import attributes, random_caption, random_mention, true_of
from persres.experiments.miniworld_training.loop import Budget, fit, images_to_tensor, training_device
from persres.experiments.miniworld_training.recipe import Recipe
from persres.experiments.miniworld_training.scenes import SceneSet, identity_scenes
from persres.experiments.miniworld_training.tokenizer import write_tokenizer


def model_config(recipe: Recipe, vocab_size: int) -> dict:
    """Return the open_clip JSON config of the mini CLIP."""
    return {
        "embed_dim": 128,
        "vision_cfg": {"image_size": 64, "layers": 4, "width": 128, "head_width": 32, "patch_size": 8},
        "text_cfg": {
            "context_length": recipe.prompt_length,
            "vocab_size": vocab_size,
            "hf_tokenizer_name": "local",
            "width": 96,
            "heads": 4,
            "layers": 4,
        },
    }


def write_empty(recipe: Recipe, folder: Path) -> None:
    """Write config and tokenizer of the mini CLIP for open_clip's ``local-dir:`` schema."""
    write_tokenizer(folder, recipe.prompt_length)
    vocab = len(json.loads((folder / "vocab.json").read_text()))
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    config = {"model_cfg": model_config(recipe, vocab), "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2))


def new_clip(folder: Path, seed: int) -> tuple[torch.nn.Module, open_clip.tokenizer.HFTokenizer]:
    """Return a mini CLIP with fresh weights and its tokenizer, from a folder of :func:`write_empty`."""
    torch.manual_seed(seed)
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    text = open_clip.model.CLIPTextCfg(**config["text_cfg"])
    text.hf_tokenizer_name = None
    vision = open_clip.model.CLIPVisionCfg(**config["vision_cfg"])
    model = open_clip.model.CLIP(config["embed_dim"], vision, text)
    return model, open_clip.tokenizer.HFTokenizer(str(folder), context_length=config["text_cfg"]["context_length"])


def pick_views(
    identities: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Return ``count`` different identities, and two different views of each."""
    selected = rng.permutation(len(identities))[:count]
    first = rng.integers(identities.shape[1], size=count)
    return selected, (first, (first + 1 + rng.integers(identities.shape[1] - 1, size=count)) % identities.shape[1])


def two_views(identities: np.ndarray, count: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two images each of ``count`` identities on different backgrounds, [count, 3, 64, 64]."""
    selected, (first, second) = pick_views(identities, count, rng)
    return images_to_tensor(identities[selected, first]), images_to_tensor(identities[selected, second])


def _features(model: torch.nn.Module, pixels: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit-length features of images and texts; matrix products run in bfloat16."""
    with torch.autocast(pixels.device.type, torch.bfloat16):
        image, text = model.encode_image(pixels), model.encode_text(tokens)
    return F.normalize(image.float(), dim=1), F.normalize(text.float(), dim=1)


def _contrast(a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor | float, same: torch.Tensor) -> torch.Tensor:
    """Symmetric contrastive loss with several positives per row. ``same``: bool [n, n]."""
    logits = scale * a @ b.T
    rows, columns = same.float() / same.sum(1, keepdim=True), same.T.float() / same.T.sum(1, keepdim=True)
    return 0.5 * (F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, columns))


def _train_locked(model, tokenize, recipe: Recipe, scenes: SceneSet, identities: np.ndarray, folder: Path) -> None:
    """Continue with the text encoder frozen, so that the U-Net can train on it meanwhile.

    Captions are shorter here (often the class alone), every true pair of a batch is a positive, and half of the images show
    unnamed subjects, which captions name by class.
    """
    for part in (model.token_embedding, model.transformer, model.ln_final):
        part.requires_grad_(False)
    model.positional_embedding.requires_grad_(False)
    device = training_device()
    named = [identity_scenes(recipe, index)[0] for index in range(len(identities))]
    pairs = recipe.clip_batch // 2

    def loss(step: int, seed: int) -> torch.Tensor:
        rng = np.random.default_rng(seed)
        rows = rng.integers(len(scenes.images), size=recipe.clip_batch)
        who, views = pick_views(identities, pairs, rng)
        shown = [scenes.scenes[i] for i in rows] + [
            named[i][v] for view in views for i, v in zip(who, view, strict=True)
        ]
        mentions = [random_mention(scene, rng, 0.5 * (i < len(rows)), 0.5) for i, scene in enumerate(shown)]
        facts = [attributes(scene) for scene in shown]
        for fact in facts[len(rows) :]:  # an unnamed subject has several colours and patterns
            fact["colour"] = fact["pattern"] = "mixed"
        batch = np.concatenate([scenes.images[rows], *(identities[who, view] for view in views)])
        image, text = _features(
            model, images_to_tensor(batch).to(device), tokenize([c for c, _ in mentions]).to(device)
        )
        true = torch.from_numpy(true_of([caption for _, caption in mentions], facts)) | torch.eye(
            len(shown), dtype=torch.bool
        )
        _, one, two = image.split([len(rows), pairs, pairs])
        matching = _contrast(image, text, model.logit_scale.exp().clamp(max=100), true.T.to(device))
        return matching + 0.5 * _contrast(one, two, 10.0, torch.eye(pairs, dtype=torch.bool, device=device))

    fit(
        "clip_locked",
        model,
        loss,
        Budget(recipe.clip_locked_steps, 5e-4, 50, 0.3, weight_decay=0.05),
        folder,
        recipe.seed,
    )


def train_clip(recipe: Recipe, scenes: SceneSet, identities: np.ndarray, folder: Path, out: Path) -> torch.nn.Module:
    """Train captions against images, with the same identity on another background as a second positive; return the model.

    Without the second term, the background dominates the image features.
    """
    write_empty(recipe, out)
    model, tokenize = new_clip(out, recipe.seed)

    device, pairs = training_device(), recipe.clip_batch // 2
    model = model.to(device)

    def loss(step: int, seed: int) -> torch.Tensor:
        rng = np.random.default_rng(seed)
        rows = rng.integers(len(scenes.images), size=recipe.clip_batch)
        captions = [random_caption(scenes.scenes[i], rng) for i in rows]
        pixels = torch.cat([images_to_tensor(scenes.images[rows]), *two_views(identities, pairs, rng)])
        image, text = _features(model, pixels.to(device), tokenize(captions).to(device))
        image, one, two = image.split([len(rows), pairs, pairs])
        same = torch.tensor([[a == b for b in captions] for a in captions], device=device)
        matching = _contrast(image, text, model.logit_scale.exp().clamp(max=100), same)
        return matching + 0.5 * _contrast(one, two, 10.0, torch.eye(pairs, dtype=torch.bool, device=device))

    fit("clip", model, loss, Budget(recipe.clip_steps, 1e-3, decay_from=0.3, weight_decay=0.05), folder, recipe.seed)
    _train_locked(model, tokenize, recipe, scenes, identities, folder)
    half = {k: v.half().contiguous() for k, v in model.cpu().state_dict().items() if k != "attn_mask"}
    save_file(half, out / "open_clip_model.safetensors", metadata={"format": "pt"})
    return model
