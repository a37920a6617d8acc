"""LoRAs drawn from their files by :class:`persres.pipeline.PersonalizedPipeline`, whole and confined, from the same noise, and scored
by the evidence's own metrics.

A picture's change is measured against the base model's under the *same words* ("sks" among them): what the LoRA did, not what the word did.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from diffusers import DDIMScheduler
from PIL import Image

from persres.config.schema import Base, Clip, Dino
from persres.exports.quiet_loading import quiet_loading
from persres.images import load_photo, png_bytes, zip_bytes
from persres.metrics.background import background_difference
from persres.metrics.clip_scores import alignment, clip_text_score, load_clip
from persres.metrics.dino_scores import load_dino
from persres.metrics.object_crops import object_alignment, object_crops
from persres.miniworld.attribute_classifier import (
    Prediction,
    classify_images,
    load_attribute_classifier,
    matches_prompt,
)
from persres.models.loading import pick_device
from persres.pipeline import PersonalizedPipeline
from persres.prompts import fill
from persres.sampling.mask_config import AUTO, CONFIDENCE_WEIGHTED, PAPER, MaskConfig
from persres.sampling.samplers import starting_noise
from persres.seeding import generator
from persres.units.files import write_atomic
from persres.units.specs import FileRef, Prompt, Spec
from persres.units.unit import Unit, finish

ROWS, SHOWN = "rows.parquet", "shown.zip"


@dataclass(frozen=True)
class LoraSamplingConfig:
    """How a LoRA is drawn: not at all, whole, or masked."""

    lag: MaskConfig | None = None
    strength: float = 1.0
    base: bool = False


def _ours(control: str) -> MaskConfig:
    return MaskConfig("otsu", source_blocks=CONFIDENCE_WEIGHTED, control=control)


CONFIGS: dict[str, LoraSamplingConfig] = {
    "base": LoraSamplingConfig(base=True),
    "lora": LoraSamplingConfig(),
    "auto": LoraSamplingConfig(AUTO),
    "paper": LoraSamplingConfig(PAPER),
    "share": LoraSamplingConfig(MaskConfig("quantile", 0.35, CONFIDENCE_WEIGHTED)),
    "disk": LoraSamplingConfig(_ours("disk")),
    "random": LoraSamplingConfig(_ours("random")),
    "weaker": LoraSamplingConfig(strength=0.5),
    "inverted": LoraSamplingConfig(_ours("inverted")),
}


class LoraSampleSpec(Spec):
    """One concept's LoRA drawn in every way."""

    base: Base
    clip: Clip
    dino: Dino
    models: tuple[str, ...]
    judge: FileRef
    concept: str
    macro_class: str
    variant: str
    lora: FileRef
    photos: tuple[FileRef, ...]
    prompts: tuple[Prompt, ...]
    images: int  # of each prompt
    steps: int
    cfg_scale: float
    ways: tuple[str, ...]
    code: str

    @property
    def subject(self) -> str:
        """The words that the LoRA was trained under, and whose attention makes the mask: the class alone may name another thing of the
        prompt ("next to a green car")."""
        return f"{self.base.rare_token} {self.macro_class}"

    def items(self) -> list[tuple[Prompt, int]]:
        """(prompt, number) of every picture, in order."""
        return [(prompt, image) for prompt in self.prompts for image in range(self.images)]


@dataclass(frozen=True)
class SampledImages:
    """Pictures uint8 [n, h, w, 3], and masks [n, h, w] at the latents' size where there are any."""

    pictures: np.ndarray
    masks: torch.Tensor | None


@lru_cache(maxsize=1)
def _pipeline(base: Base, device: str) -> PersonalizedPipeline:
    quiet_loading()
    dtype = getattr(torch, base.dtype)
    pipe = PersonalizedPipeline.from_pretrained(base.model, dtype=dtype, safety_checker=None).to(pick_device(device))
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample_unit(unit: Unit[LoraSampleSpec], work: Path, device: str, batch: int = 10) -> None:
    """Every way's pictures and scores; those of the first noise are kept, to be looked at."""
    spec, folder = unit.spec, unit.folder(work)
    pipe = _pipeline(spec.base, device)
    pipe.load_residual(spec.lora.path, "lora", subject=spec.subject)
    drawn = {name: _drawn(pipe, spec, CONFIGS[name], batch) for name in spec.ways}
    rows = score_images(spec, drawn, device)
    folder.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(folder / ROWS, index=False)
    write_atomic(folder / SHOWN, zip_bytes(_shown(spec, drawn)))
    finish(unit, work, [folder / ROWS, folder / SHOWN])


def _drawn(pipe: PersonalizedPipeline, spec: LoraSampleSpec, way: LoraSamplingConfig, batch: int) -> SampledImages:
    pipe.set_residual(None if way.base else "lora")
    items, parts = spec.items(), []
    for start in range(0, len(items), batch):
        parts.append(_batch(pipe, spec, way, items[start : start + batch]))
    masks = None if way.lag is None else torch.cat([masks for _, masks in parts])
    return SampledImages(np.concatenate([pictures for pictures, _ in parts]), masks)


def _batch(
    pipe: PersonalizedPipeline, spec: LoraSampleSpec, way: LoraSamplingConfig, items: list[tuple[Prompt, int]]
) -> tuple:
    side, channels = spec.base.resolution // pipe.vae_scale_factor, pipe.unet.config.in_channels
    plain = [fill(prompt.text, spec.macro_class) for prompt, _ in items]
    draws = [generator("noise", 0, text, image) for text, (_, image) in zip(plain, items, strict=True)]
    how = {} if way.base else {"strength": way.strength, "lag": way.lag or False, "return_masks": way.lag is not None}
    found = pipe(
        [fill(prompt.text, spec.subject) for prompt, _ in items],
        latents=starting_noise(draws, (channels, side, side)).to(pipe.unet.device),
        num_inference_steps=spec.steps,
        guidance_scale=spec.cfg_scale,
        height=spec.base.resolution,
        width=spec.base.resolution,
        output_type="pt",
        **how,
    )
    pictures = (found.images.float().cpu() * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return pictures, None if way.lag is None else found.masks.cpu()


def score_images(spec: LoraSampleSpec, drawn: dict[str, SampledImages], device: str) -> pd.DataFrame:
    """One row a picture and way: the evidence's columns, and the masks' share of the picture."""
    clip, dino, judge = (
        load_clip(spec.clip, device),
        load_dino(spec.dino, device),
        load_attribute_classifier(Path(spec.judge.path)),
    )
    references = [load_photo(Path(photo.path)) for photo in spec.photos]
    originals = np.stack([np.asarray(photo) for photo in references])
    clip_references, dino_references = clip.images(references), dino.images(references)
    alone = dino.images(object_crops(originals, classify_images(judge, originals).masks))
    texts = clip.texts([fill(prompt.text, spec.macro_class) for prompt, _ in spec.items()])
    read = {name: classify_images(judge, found.pictures) for name, found in drawn.items()}
    tables = []
    for name, found in drawn.items():
        images = [Image.fromarray(picture) for picture in found.pictures]
        features, said = clip.images(images), read[name]
        rows = pd.DataFrame([{"variant": spec.variant, "concept": spec.concept, "way": name, "group": p.group, "image": i} for p, i in spec.items()])  # fmt: skip
        rows["clip_text"] = clip_text_score(features, texts).double().numpy()
        rows["clip_image"] = alignment(features, clip_references).double().numpy()
        rows["dino"] = alignment(dino.images(images), dino_references).double().numpy()
        rows["dino_object"] = object_alignment(dino.images(object_crops(found.pictures, said.masks)), alone, said.masks)
        rows["followed"] = matches_prompt(said, [prompt.text for prompt, _ in spec.items()])
        rows["background_change"] = _change(drawn, read, name)
        rows["area"] = np.nan if found.masks is None else found.masks.mean((1, 2)).numpy()
        tables.append(rows)
    return pd.concat(tables, ignore_index=True)


def _change(drawn: dict[str, SampledImages], read: dict[str, Prediction], name: str) -> np.ndarray:
    base = drawn["base"].pictures
    return background_difference(drawn[name].pictures, base, read[name].masks, read["base"].masks)


def _shown(spec: LoraSampleSpec, drawn: dict[str, SampledImages]) -> dict[str, bytes]:
    """``<way>_<prompt>.png`` of each prompt's first noise, and ``mask_<way>_<prompt>.png``."""
    files = {}
    for name, found in drawn.items():
        for place, (prompt, image) in enumerate(spec.items()):
            if image == 0:
                files[f"{name}_{prompt.number:02d}.png"] = png_bytes(Image.fromarray(found.pictures[place]))
                if found.masks is not None:
                    grey = (found.masks[place].clamp(0, 1) * 255).round().byte().numpy()
                    files[f"mask_{name}_{prompt.number:02d}.png"] = png_bytes(Image.fromarray(grey))
    return files
