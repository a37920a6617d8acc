"""Measure the trained mini world on unseen scenes and write the model card."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from persres.config.schema import Base, Clip, Dino
from persres.errors import PersresError
from persres.experiments.miniworld_training import vae as train_vae
from persres.experiments.miniworld_training.attribute_classifier import accuracy
from persres.experiments.miniworld_training.captions import full_caption
from persres.experiments.miniworld_training.fidelity import fidelity
from persres.experiments.miniworld_training.recipe import Recipe
from persres.experiments.miniworld_training.scenes import load_scenes, scene_at
from persres.images import to_images
from persres.metrics.clip_scores import ClipEncoder
from persres.metrics.dino_scores import DinoEncoder
from persres.miniworld.attribute_classifier import classify_images, load_attribute_classifier
from persres.miniworld.concepts import CONCEPTS, views
from persres.miniworld.identities import NAMELESS, marks_of, random_identity
from persres.miniworld.marks import HEADS, MarksClassifier, load_marks_classifier, read_marks
from persres.miniworld.render import SIZE, Scene, render
from persres.miniworld.vocabulary import BACKGROUNDS, COLOURS, STYLES
from persres.models.diffusion import decode, load_diffusion
from persres.models.text_encoding import encode_prompts
from persres.sampling.samplers import guided, sample_ddim, starting_noise
from persres.seeding import generator, seed_from

GRID = (6, 8)
CFG_SCALE = 6.0
FIDELITY_IMAGES, FIDELITY_STEPS = 2_000, 25
NAMELESS_SCENES = 250  # outside the training set, for the autoencoder and the marks classifier


@torch.no_grad()
def sample_prompts(folder: Path, scenes: list[Scene], cfg_scale: float, steps: int, batch: int = 24) -> np.ndarray:
    """Return the base model's images of the scenes' full captions, uint8 [n, 64, 64, 3]."""
    diffusion = load_diffusion(Base(model=str(folder / "sd"), resolution=64), "auto")
    device, (channels, factor) = diffusion.unet.device, diffusion.latent_shape
    shape = (channels, SIZE // factor, SIZE // factor)
    images = []
    for start in range(0, len(scenes), batch):
        captions = [full_caption(scene) for scene in scenes[start : start + batch]]
        cond = encode_prompts(diffusion.tokenizer, diffusion.text_encoder, captions)
        uncond = encode_prompts(diffusion.tokenizer, diffusion.text_encoder, [""])
        noise = starting_noise([generator("card", start + i) for i in range(len(captions))], shape).to(device)
        denoise = guided(diffusion.unet, cond, uncond, cfg_scale)
        images += to_images(decode(diffusion.vae, sample_ddim(denoise, noise, diffusion.scheduler, steps)))
    return np.stack([np.asarray(image) for image in images])


def base_quality(
    folder: Path, recipe: Recipe, count: int, cfg_scale: float = CFG_SCALE, steps: int = 50
) -> tuple[dict[str, float], Image.Image]:
    """Return the attribute classifier's accuracy on images of ``count`` held-out prompts, and a grid of the first images.

    ``second_object``: share of prompts with a second object in whose image the classifier sees one. Raises PersresError if there
    are fewer prompts than cells in the grid.
    """
    if count < GRID[0] * GRID[1]:
        raise PersresError(f"--prompts {count} does not fill the {GRID[0]}×{GRID[1]} grid; use more")
    scenes = [scene_at(recipe, "prompts", index)[0] for index in range(count)]
    images = sample_prompts(folder, scenes, cfg_scale, steps)
    prediction = classify_images(load_attribute_classifier(folder / "judge"), images)
    result = accuracy(prediction, scenes)
    wanted = [
        labels["second"] == "present" for labels, scene in zip(prediction.labels, scenes, strict=True) if scene.second
    ]
    result["second_object"] = float(np.mean(wanted)) if wanted else float("nan")
    rows, columns = GRID
    grid = (
        images[: rows * columns]
        .reshape(rows, columns, 64, 64, 3)
        .transpose(0, 2, 1, 3, 4)
        .reshape(rows * 64, columns * 64, 3)
    )
    return result, Image.fromarray(grid).resize((columns * 128, rows * 128), Image.NEAREST)


def _on_any_background(appearance, count: int, name: str) -> list[Image.Image]:
    rng = np.random.default_rng(seed_from("card", name, appearance))
    return [render(Scene(appearance, str(rng.choice(list(BACKGROUNDS)))), rng).image for _ in range(count)]


def _rivals(kind: str, count: int, recipe: Recipe) -> list[Image.Image]:
    """Images of other subjects of the same class, on any background."""
    rng, result = np.random.default_rng(seed_from("rivals", kind)), []
    while len(result) < count:
        appearance = random_identity(rng)
        if appearance.kind == kind:
            result += _on_any_background(appearance, 1, f"rival {len(result)}")
    return result


def identity_separation(encoder, recipe: Recipe) -> dict[str, float]:
    """Compare a concept on a new background with other subjects of its class, by cosine with its references.

    ``auc``: how often the concept is nearer. ``same_concept`` and ``same_class``: mean cosines; ``margin``: their difference.
    """
    wins, same, other = [], [], []
    for concept in CONCEPTS:
        references = encoder.images([view.image for view in views(concept, "reference", 5, 0)])
        near = (encoder.images(_on_any_background(concept.appearance, 10, "own")) @ references.T).mean(1)
        far = (encoder.images(_rivals(concept.appearance.kind, 20, recipe)) @ references.T).mean(1)
        wins.append((near[:, None] > far[None, :]).float().mean())
        same.append(near.mean())
        other.append(far.mean())
    auc, same_concept, same_class = (float(torch.stack(part).mean()) for part in (wins, same, other))
    return {"auc": auc, "same_concept": same_concept, "same_class": same_class, "margin": same_concept - same_class}


def identity_auc(encoder, recipe: Recipe) -> float:
    """Return how often a concept on a new background is nearer to its references than another subject of its class."""
    return identity_separation(encoder, recipe)["auc"]


def _attribute_prompts(kind: str, recipe: Recipe) -> dict[str, dict[str, str]]:
    """Attribute -> value -> a prompt that says the true class and this value."""
    return {
        "class": {k: f"a photo of a {k}" for k in recipe.kinds},
        "colour": {c: f"a photo of a {c} {kind}" for c in COLOURS},
        "background": {b: f"a photo of a {kind} {phrase}" for b, phrase in BACKGROUNDS.items()},
        "style": {s: f"{STYLES[s]} a {kind}" for s in recipe.styles},
    }


def _clip_quality(encoder: ClipEncoder, scenes, recipe: Recipe, count: int = 250) -> dict[str, float]:
    """Retrieval of the full caption among ``count`` images, and attributes by prompt for single objects (class, colour and
    background in photos)."""
    shown = scenes.scenes[:count]
    captions = [full_caption(scene) for scene in shown]
    images = encoder.images([Image.fromarray(image) for image in scenes.images[:count]])
    result = (images @ encoder.texts(captions).T).argmax(1).tolist()
    quality = {"retrieval_top1_of_250": float(np.mean([captions[j] == captions[i] for i, j in enumerate(result)]))}
    prompts_by_class = {
        kind: {
            attribute: (list(prompts), encoder.texts(list(prompts.values())))
            for attribute, prompts in _attribute_prompts(kind, recipe).items()
        }
        for kind in recipe.kinds
    }
    hits: dict[str, list[bool]] = {}
    for image, scene in zip(images, shown, strict=True):
        truth = {
            "class": scene.subject.kind,
            "colour": scene.subject.colour,
            "background": scene.background,
            "style": scene.style,
        }
        for attribute, (values, texts) in prompts_by_class[scene.subject.kind].items():
            if scene.second is None and (attribute == "style" or scene.style == "photo"):
                hits.setdefault(attribute, []).append(values[int((texts @ image).argmax())] == truth[attribute])
    return quality | {f"{attribute}_by_prompt": float(np.mean(h)) for attribute, h in hits.items()}


def _nameless_scenes(recipe: Recipe) -> tuple[list[Scene], np.ndarray]:
    """Nameless scenes after those of the shards, and their images uint8 [n, 64, 64, 3]."""
    first = recipe.nameless_shards * recipe.shard
    drawn = [scene_at(recipe, NAMELESS, first + index) for index in range(NAMELESS_SCENES)]
    return [scene for scene, _ in drawn], np.stack([np.asarray(render(*scene).image) for scene in drawn])


def vae_quality(vae, sets: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Quality of reconstructions of the sets of images by name, and of every concept's photos."""
    concepts = {c.name: np.stack([np.asarray(view.image) for view in views(c, "reference", 5, 0)]) for c in CONCEPTS}
    return {name: train_vae.quality(vae, shown) for name, shown in (sets | concepts).items()}


def marks_accuracy(model: MarksClassifier, scenes: list[Scene], images: np.ndarray) -> dict[str, float]:
    """Share of the marks of nameless subjects that the classifier reads: recoloured parts, emblem's shape and colour, band."""
    hits: dict[str, list[bool]] = {}
    for scene, image in zip(scenes, images, strict=True):
        if scene.style == "sketch":
            continue
        [read] = read_marks(model, image[None], scene.subject.kind)
        for mark, name in marks_of(scene.subject).items():
            hits.setdefault(mark if mark in HEADS else "parts", []).append(read[mark] == name)
    return {mark: float(np.mean(right)) for mark, right in hits.items()}


def evaluate(folder: Path, work: Path, recipe: Recipe, count: int) -> dict:
    """All figures of the card; writes ``quality.json``, ``grid.png`` and ``MODEL_CARD.md`` next to the weights."""
    scenes = load_scenes(recipe, "val", 1000, work / "data")
    clip = ClipEncoder(Clip(model=f"local-dir:{folder / 'clip'}", pretrained=None), "auto")
    dino = DinoEncoder(Dino(model=f"local-dir:{folder / 'dino'}", resize=64, crop=64), "auto")
    diffusion = load_diffusion(Base(model=str(folder / "sd"), resolution=64), "auto")
    base, grid = base_quality(folder, recipe, count)
    nameless_scenes, nameless = _nameless_scenes(recipe)
    sample = partial(sample_prompts, folder, cfg_scale=CFG_SCALE, steps=FIDELITY_STEPS)
    distances = fidelity(diffusion, dino, recipe, sample, FIDELITY_IMAGES)
    photos = np.stack(
        [image for image, scene in zip(scenes.images, scenes.scenes, strict=True) if scene.style == "photo"]
    )
    quality = {
        "base": base,
        "base_prompts": count,
        "fidelity": distances,
        "vae": vae_quality(
            diffusion.vae.cpu(), {"scenes": scenes.images[:250], "photos": photos[:250], "nameless": nameless}
        ),
        "marks": marks_accuracy(load_marks_classifier(folder / "judge"), nameless_scenes, nameless),
        "judge": accuracy(classify_images(load_attribute_classifier(folder / "judge"), scenes.images), scenes.scenes),
        "clip": _clip_quality(clip, scenes, recipe),
        "identity": {"clip": identity_separation(clip, recipe), "dino": identity_separation(dino, recipe)},
    }
    (folder / "quality.json").write_text(json.dumps(quality, indent=1))
    grid.save(folder / "grid.png", optimize=True)
    seconds = work / "seconds.json"
    times = json.loads(seconds.read_text()) if seconds.exists() else {}
    notes = work / "notes.md"
    remarks = notes.read_text().strip() if notes.exists() else "None: one unbroken run of the recipe."
    (folder / "MODEL_CARD.md").write_text(card(folder, recipe, quality, times, remarks))
    return quality


def card(folder: Path, recipe: Recipe, quality: dict, seconds: dict[str, int], remarks: str) -> str:
    """The model card's text; every figure in it comes from ``quality`` or from the files.

    ``remarks`` says how the run behind these weights differed from the recipe (``notes.md`` of the work folder).
    """
    files = {path.parent.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*.safetensors"))}
    counts = {name: (sum(t.numel() for t in load_file(p).values()), p.stat().st_size) for name, p in files.items()}
    weights = "\n".join(f"| {name} | {n:,} | {size / 2**20:.1f} |" for name, (n, size) in counts.items())
    total = sum(size for _, size in counts.values()) / 2**20
    figures = json.dumps(quality, indent=1)
    settings = "\n".join(f"- {key}: {value}" for key, value in asdict(recipe).items())
    return f"""# The mini world's models

Trained from scratch on a CPU, on scenes that `persres/miniworld` renders. They replace the paper's Stable Diffusion v1.4,
OpenCLIP ViT-B/32 and DINO ViT-S/16, so that the whole pipeline runs in minutes. They have no other use.

| model | parameters | MiB (fp16) |
|---|---|---|
{weights}

Together {total:.1f} MiB. `sd/` loads as a `StableDiffusionPipeline` (v-prediction, 64×64 images, 16×16×{recipe.latent_channels} latents with
scaling factor 1), `clip/` by open_clip and `dino/` by timm (`local-dir:`). `judge/` holds the attribute classifier
(`persres.miniworld.attribute_classifier`) and the marks classifier (`persres.miniworld.marks`).

## Measured

On scenes outside the training set. `base`: accuracy of the attribute classifier on images of {quality["base_prompts"]} held-out prompts
(50 steps, guidance 6). `identity`: mean cosines of a concept on a new background and of other subjects of its class with its references, and how
often the concept is nearer (`auc`). `vae`: reconstructions. `marks`: share of the marks of nameless subjects that the marks classifier reads.
`fidelity`: Fréchet distance, precision and recall in the mini DINO's features, of {FIDELITY_IMAGES:,} sampled images ({FIDELITY_STEPS} steps) and
of the floors to rendered images of the same captions.

```json
{figures}
```

![images of the base model](grid.png)

## Evidence

From `make evidence` (`data/evidence/summary.json`), with the shipped weights. Accuracy of the attribute classifier on the base model's images:

<!-- evidence:base -->
<!-- /evidence -->

How often a concept on a new background is nearer to its references than another subject of its class:

<!-- evidence:identity -->
<!-- /evidence -->

Localisation of the summed attention of V* and class by block, averaged over t = 200, 400, 600, 800 (by step: `data/evidence/localisation.md`):

<!-- evidence:localisation -->
<!-- /evidence -->

## Made with

{settings}

Seconds by model, as counted (two shared CPU cores under other load, models in parallel): {json.dumps(seconds)}.

### How this run differed from the recipe

{remarks}

`make miniworld` trains them again from scratch; bits may differ with the machine and the number of workers.
"""
