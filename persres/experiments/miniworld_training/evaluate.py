"""Measure the finished mini world on scenes it never saw, and write the model card."""

from __future__ import annotations

import json
from dataclasses import asdict
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
from persres.experiments.miniworld_training.recipe import Recipe
from persres.experiments.miniworld_training.scenes import load_scenes, random_identity, scene_at
from persres.images import to_images
from persres.metrics.clip_scores import ClipEncoder
from persres.metrics.dino_scores import DinoEncoder
from persres.miniworld.attribute_classifier import classify_images, load_attribute_classifier
from persres.miniworld.concepts import CONCEPTS, views
from persres.miniworld.render import Scene, render
from persres.miniworld.vocabulary import BACKGROUNDS, COLOURS, STYLES
from persres.models.diffusion import decode, load_diffusion
from persres.models.text_encoding import encode_prompts
from persres.sampling.samplers import guided, sample_ddim, starting_noise
from persres.seeding import generator, seed_from

GRID = (6, 8)


@torch.no_grad()
def sample_prompts(folder: Path, scenes: list[Scene], cfg_scale: float, steps: int, batch: int = 24) -> np.ndarray:
    """The base model's pictures of the scenes' full captions, uint8 [n, 64, 64, 3]."""
    diffusion = load_diffusion(Base(model=str(folder / "sd"), resolution=64), "auto")
    device = diffusion.unet.device
    drawn = []
    for start in range(0, len(scenes), batch):
        captions = [full_caption(scene) for scene in scenes[start : start + batch]]
        cond = encode_prompts(diffusion.tokenizer, diffusion.text_encoder, captions)
        uncond = encode_prompts(diffusion.tokenizer, diffusion.text_encoder, [""])
        noise = starting_noise([generator("card", start + i) for i in range(len(captions))], (4, 16, 16)).to(device)
        denoise = guided(diffusion.unet, cond, uncond, cfg_scale)
        drawn += to_images(decode(diffusion.vae, sample_ddim(denoise, noise, diffusion.scheduler, steps)))
    return np.stack([np.asarray(picture) for picture in drawn])


def base_quality(
    folder: Path, recipe: Recipe, count: int, cfg_scale: float = 6.0, steps: int = 50
) -> tuple[dict[str, float], Image.Image]:
    """Accuracy of the judge's reading of ``count`` held-out prompts, and a grid of the first ones.

    ``second_object`` is the share of prompts with a second object in whose picture the judge sees one.
    Raises PersresError for fewer prompts than the grid shows.
    """
    if count < GRID[0] * GRID[1]:
        raise PersresError(f"--prompts {count} does not fill the {GRID[0]}×{GRID[1]} grid; ask for more")
    scenes = [scene_at(recipe, "prompts", index)[0] for index in range(count)]
    pictures = sample_prompts(folder, scenes, cfg_scale, steps)
    verdict = classify_images(load_attribute_classifier(folder / "judge"), pictures)
    found = accuracy(verdict, scenes)
    wanted = [said["second"] == "present" for said, scene in zip(verdict.labels, scenes, strict=True) if scene.second]
    found["second_object"] = float(np.mean(wanted)) if wanted else float("nan")
    rows, columns = GRID
    grid = (
        pictures[: rows * columns]
        .reshape(rows, columns, 64, 64, 3)
        .transpose(0, 2, 1, 3, 4)
        .reshape(rows * 64, columns * 64, 3)
    )
    return found, Image.fromarray(grid).resize((columns * 128, rows * 128), Image.NEAREST)


def _on_any_background(look, count: int, name: str) -> list[Image.Image]:
    rng = np.random.default_rng(seed_from("card", name, look))
    return [render(Scene(look, str(rng.choice(list(BACKGROUNDS)))), rng).image for _ in range(count)]


def _rivals(kind: str, count: int, recipe: Recipe) -> list[Image.Image]:
    """Same class, other looks, any background."""
    rng, found = np.random.default_rng(seed_from("rivals", kind)), []
    while len(found) < count:
        look = random_identity(recipe, rng)
        if look.kind == kind:
            found += _on_any_background(look, 1, f"rival {len(found)}")
    return found


def identity_separation(encoder, recipe: Recipe) -> dict[str, float]:
    """How a concept on a new background stands against same-class, other-look objects, by nearness to its references.

    ``auc``: how often it is nearer. ``same_concept`` and ``same_class``: mean cosines, ``margin`` their difference.
    """
    wins, own, other = [], [], []
    for concept in CONCEPTS:
        references = encoder.images([view.image for view in views(concept, "reference", 5, 0)])
        near = (encoder.images(_on_any_background(concept.appearance, 10, "own")) @ references.T).mean(1)
        far = (encoder.images(_rivals(concept.appearance.kind, 20, recipe)) @ references.T).mean(1)
        wins.append((near[:, None] > far[None, :]).float().mean())
        own.append(near.mean())
        other.append(far.mean())
    auc, same_concept, same_class = (float(torch.stack(part).mean()) for part in (wins, own, other))
    return {"auc": auc, "same_concept": same_concept, "same_class": same_class, "margin": same_concept - same_class}


def identity_auc(encoder, recipe: Recipe) -> float:
    """How often a concept on a new background is nearer to its references than a same-class, other-look object."""
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
    """Retrieval of the full caption among ``count`` pictures, and attributes by prompt for single objects (class, colour and
    background in photos)."""
    shown = scenes.scenes[:count]
    captions = [full_caption(scene) for scene in shown]
    images = encoder.images([Image.fromarray(picture) for picture in scenes.images[:count]])
    found = (images @ encoder.texts(captions).T).argmax(1).tolist()
    quality = {"retrieval_top1_of_250": float(np.mean([captions[j] == captions[i] for i, j in enumerate(found)]))}
    asked = {
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
        for attribute, (values, texts) in asked[scene.subject.kind].items():
            if scene.second is None and (attribute == "style" or scene.style == "photo"):
                hits.setdefault(attribute, []).append(values[int((texts @ image).argmax())] == truth[attribute])
    return quality | {f"{attribute}_by_prompt": float(np.mean(h)) for attribute, h in hits.items()}


def evaluate(folder: Path, work: Path, recipe: Recipe, count: int) -> dict:
    """All figures of the card; writes ``quality.json``, ``grid.png`` and ``MODEL_CARD.md`` beside the weights."""
    scenes = load_scenes(recipe, "val", 1000, work / "data")
    clip = ClipEncoder(Clip(model=f"local-dir:{folder / 'clip'}", pretrained=None), "auto")
    dino = DinoEncoder(Dino(model=f"local-dir:{folder / 'dino'}", resize=64, crop=64), "auto")
    vae = load_diffusion(Base(model=str(folder / "sd"), resolution=64), "auto").vae
    base, grid = base_quality(folder, recipe, count)
    photos = np.stack(
        [image for image, scene in zip(scenes.images, scenes.scenes, strict=True) if scene.style == "photo"]
    )
    quality = {
        "base": base,
        "base_prompts": count,
        "vae": train_vae.quality(vae.cpu(), scenes.images[:250]),
        "vae_photo_psnr_db": train_vae.quality(vae, photos[:250])["psnr_db"],
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

Trained from nothing on scenes that `persres/miniworld` draws, on a CPU. They stand where Stable Diffusion v1.4,
OpenCLIP ViT-B/32 and DINO ViT-S/16 stand in the paper, so that the whole pipeline can run in minutes. They are good for
nothing else.

| part | numbers | MiB (fp16) |
|---|---|---|
{weights}

Together {total:.1f} MiB. `sd/` loads as a `StableDiffusionPipeline` (v-prediction, 64×64 pictures, 16×16×4 latents with
scaling factor 1), `clip/` by open_clip and `dino/` by timm (`local-dir:`), `judge/` by `persres.miniworld.attribute_classifier`.

## Measured

On scenes outside the training set; `base` is what the judge reads in pictures of {quality["base_prompts"]} held-out prompts
(50 steps, guidance 6), `identity` how far a concept on a new background is nearer (mean cosine) to its references than same-class,
other-look objects, and how often (`auc`), `vae` on all styles.

```json
{figures}
```

![the base model's pictures](grid.png)

## Evidence

From `make evidence` (`data/evidence/summary.json`), measured again with what ships. What the judge reads in the base model's pictures:

<!-- evidence:base -->
<!-- /evidence -->

How often a concept on a new background is nearer to its references than a same-class, other-look object:

<!-- evidence:identity -->
<!-- /evidence -->

Where the summed attention of V* and class lies, by block, averaged over t = 200, 400, 600, 800; by step: `data/evidence/localisation.md`.

<!-- evidence:localisation -->
<!-- /evidence -->

## Made with

{settings}

Seconds by part as the command counted them (two shared CPU cores, other work beside it, parts side by side): {json.dumps(seconds)}.

### How this run differed from the recipe

{remarks}

`make miniworld` trains them again from nothing; bits may differ with the machine and the number of workers.
"""
