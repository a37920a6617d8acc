"""The mini CLIP: an open_clip model whose text tower also conditions the mini U-Net, as in SD."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from persres.miniworld.captions import random_caption
from persres.miniworld.loop import Budget, fit, images_to_tensor
from persres.miniworld.recipe import Recipe
from persres.miniworld.scenes import SceneSet
from persres.miniworld.tokenizer import write_tokenizer


def model_config(recipe: Recipe, vocab_size: int) -> dict:
    """The open_clip JSON config of the mini CLIP."""
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
    """Config and tokenizer of the mini CLIP as open_clip's ``local-dir:`` schema wants them."""
    write_tokenizer(folder, recipe.prompt_length)
    vocab = len(json.loads((folder / "vocab.json").read_text()))
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    config = {"model_cfg": model_config(recipe, vocab), "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2))


def new_clip(folder: Path, seed: int) -> tuple[torch.nn.Module, open_clip.tokenizer.HFTokenizer]:
    """A mini CLIP with fresh weights and its tokenizer, from a folder of :func:`write_empty`."""
    torch.manual_seed(seed)
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    text = open_clip.model.CLIPTextCfg(**config["text_cfg"])
    text.hf_tokenizer_name = None
    vision = open_clip.model.CLIPVisionCfg(**config["vision_cfg"])
    model = open_clip.model.CLIP(config["embed_dim"], vision, text)
    return model, open_clip.tokenizer.HFTokenizer(str(folder), context_length=config["text_cfg"]["context_length"])


def two_views(identities: np.ndarray, batch: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Two pictures each of ``batch`` identities, on different backgrounds, [batch, 3, 64, 64]."""
    chosen = rng.permutation(len(identities))[:batch]
    first = rng.integers(identities.shape[1], size=batch)
    second = (first + 1 + rng.integers(identities.shape[1] - 1, size=batch)) % identities.shape[1]
    return images_to_tensor(identities[chosen, first]), images_to_tensor(identities[chosen, second])


def _contrast(a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor | float, same: torch.Tensor) -> torch.Tensor:
    """Symmetric contrastive loss with several right answers a row. ``same`` is bool [n, n]."""
    logits = scale * a @ b.T
    target = same.float() / same.sum(1, keepdim=True)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


def train_clip(recipe: Recipe, scenes: SceneSet, identities: np.ndarray, folder: Path, out: Path) -> torch.nn.Module:
    """Captions against images, plus the same identity on another background as a positive.

    Without the second term the image features are dominated by the background.
    """
    write_empty(recipe, out)
    model, tokenize = new_clip(out, recipe.seed)

    def loss(step: int, seed: int) -> torch.Tensor:
        rng = np.random.default_rng(seed)
        rows = rng.integers(len(scenes.images), size=recipe.clip_batch)
        captions = [random_caption(scenes.scenes[i], rng) for i in rows]
        one, two = two_views(identities, recipe.clip_batch // 2, rng)
        pixels = torch.cat([images_to_tensor(scenes.images[rows]), one, two])
        with torch.autocast(pixels.device.type, torch.bfloat16):
            features = model.encode_image(pixels)
            text = model.encode_text(tokenize(captions))
        image, one, two = F.normalize(features.float(), dim=1).split([len(rows), len(one), len(two)])
        text = F.normalize(text.float(), dim=1)
        same = torch.tensor([[a == b for b in captions] for a in captions])
        scale = model.logit_scale.exp().clamp(max=100)
        value = _contrast(image, text, scale, same)
        return value + 0.5 * _contrast(one, two, 10.0, torch.eye(len(one), dtype=torch.bool))

    fit("clip", model, loss, Budget(recipe.clip_steps, 1e-3, decay_from=0.3, weight_decay=0.05), folder, recipe.seed)
    half = {k: v.half().contiguous() for k, v in model.state_dict().items() if k != "attn_mask"}
    save_file(half, out / "open_clip_model.safetensors", metadata={"format": "pt"})
    return model
