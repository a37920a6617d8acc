"""Images of LoRA files by :class:`persres.pipeline.PersonalizedPipeline`, unmasked and masked, from the same noise, with scores.

The reference for background change is the base model's image of the same prompt, "sks" included: it measures the LoRA, not the word.
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
    """How a LoRA is applied: ``base`` not at all, ``lag`` None everywhere, else inside these masks."""

    lag: MaskConfig | None = None
    strength: float = 1.0
    base: bool = False


def _auto(control: str) -> MaskConfig:
    return MaskConfig("otsu", source_blocks=CONFIDENCE_WEIGHTED, control=control)


CONFIGS: dict[str, LoraSamplingConfig] = {
    "base": LoraSamplingConfig(base=True),
    "lora": LoraSamplingConfig(),
    "auto": LoraSamplingConfig(AUTO),
    "paper": LoraSamplingConfig(PAPER),
    "share": LoraSamplingConfig(MaskConfig("quantile", 0.35, CONFIDENCE_WEIGHTED)),
    "disk": LoraSamplingConfig(_auto("disk")),
    "random": LoraSamplingConfig(_auto("random")),
    "weaker": LoraSamplingConfig(strength=0.5),
    "inverted": LoraSamplingConfig(_auto("inverted")),
}


class LoraSampleSpec(Spec):
    """One concept's LoRA sampled by every config."""

    base: Base
    clip: Clip
    dino: Dino
    models: tuple[str, ...]
    classifier: FileRef
    concept: str
    macro_class: str
    variant: str
    lora: FileRef
    photos: tuple[FileRef, ...]
    prompts: tuple[Prompt, ...]
    images: int  # per prompt
    steps: int
    cfg_scale: float
    configs: tuple[str, ...]
    code: str

    @property
    def subject(self) -> str:
        """The trained phrase; its attention gives the mask. The class alone may also name another object of the prompt."""
        return f"{self.base.rare_token} {self.macro_class}"

    def image_specs(self) -> list[tuple[Prompt, int]]:
        """Return (prompt, number) of every image, in order."""
        return [(prompt, image) for prompt in self.prompts for image in range(self.images)]


@dataclass(frozen=True)
class SampledImages:
    """``images`` uint8 [n, h, w, 3]; ``masks`` [n, s, s] at the latents' size, None without masks."""

    images: np.ndarray
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
    """Write scores of all images (``rows.parquet``) and the images of each prompt's first noise (``shown.zip``)."""
    spec, folder = unit.spec, unit.folder(work)
    pipe = _pipeline(spec.base, device)
    pipe.load_residual(spec.lora.path, "lora", subject=spec.subject)
    sampled = {name: _sample(pipe, spec, CONFIGS[name], batch) for name in spec.configs}
    rows = score_images(spec, sampled, device)
    folder.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(folder / ROWS, index=False)
    write_atomic(folder / SHOWN, zip_bytes(_first_images(spec, sampled)))
    finish(unit, work, [folder / ROWS, folder / SHOWN])


def _sample(pipe: PersonalizedPipeline, spec: LoraSampleSpec, config: LoraSamplingConfig, batch: int) -> SampledImages:
    pipe.set_residual(None if config.base else "lora")
    specs = spec.image_specs()
    parts = [_batch(pipe, spec, config, specs[start : start + batch]) for start in range(0, len(specs), batch)]
    masks = None if config.lag is None else torch.cat([masks for _, masks in parts])
    return SampledImages(np.concatenate([images for images, _ in parts]), masks)


def _batch(pipe: PersonalizedPipeline, spec: LoraSampleSpec, config: LoraSamplingConfig, specs: list) -> tuple:
    """Images uint8 [n, h, w, 3] and masks [n, s, s] of one batch."""
    side, channels = spec.base.resolution // pipe.vae_scale_factor, pipe.unet.config.in_channels
    plain = [fill(prompt.text, spec.macro_class) for prompt, _ in specs]
    generators = [generator("noise", 0, text, image) for text, (_, image) in zip(plain, specs, strict=True)]
    masked = config.lag is not None
    output = pipe(
        [fill(prompt.text, spec.subject) for prompt, _ in specs],
        latents=starting_noise(generators, (channels, side, side)).to(pipe.unet.device),
        num_inference_steps=spec.steps,
        guidance_scale=spec.cfg_scale,
        height=spec.base.resolution,
        width=spec.base.resolution,
        output_type="pt",
        **({} if config.base else {"strength": config.strength, "lag": config.lag or False, "return_masks": masked}),
    )
    images = (output.images.float().cpu() * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return images, output.masks.cpu() if masked else None


class _Scorer:
    """Encoders, the attribute classifier, and the features of one concept's photos and prompts."""

    def __init__(self, spec: LoraSampleSpec, device: str) -> None:
        self.clip, self.dino = load_clip(spec.clip, device), load_dino(spec.dino, device)
        self.classifier = load_attribute_classifier(Path(spec.classifier.path))
        photos = [load_photo(Path(photo.path)) for photo in spec.photos]
        pixels = np.stack([np.asarray(photo) for photo in photos])
        self.clip_references, self.dino_references = self.clip.images(photos), self.dino.images(photos)
        self.object_references = self.dino.images(object_crops(pixels, self.classify(pixels).masks))
        self.texts = self.clip.texts([fill(prompt.text, spec.macro_class) for prompt, _ in spec.image_specs()])
        self.templates = [prompt.text for prompt, _ in spec.image_specs()]

    def classify(self, images: np.ndarray) -> Prediction:
        return classify_images(self.classifier, images)

    def scores(self, pixels: np.ndarray, prediction: Prediction) -> dict[str, np.ndarray]:
        images = [Image.fromarray(image) for image in pixels]
        features, crops = self.clip.images(images), self.dino.images(object_crops(pixels, prediction.masks))
        return {
            "clip_text": clip_text_score(features, self.texts).double().numpy(),
            "clip_image": alignment(features, self.clip_references).double().numpy(),
            "dino": alignment(self.dino.images(images), self.dino_references).double().numpy(),
            "dino_object": object_alignment(crops, self.object_references, prediction.masks),
            "followed": matches_prompt(prediction, self.templates),
        }


def score_images(spec: LoraSampleSpec, sampled: dict[str, SampledImages], device: str) -> pd.DataFrame:
    """Return one row per config and image: the evidence's scores, background change and the masks' area."""
    scorer = _Scorer(spec, device)
    predictions = {name: scorer.classify(result.images) for name, result in sampled.items()}
    tables = []
    for name, result in sampled.items():
        rows = pd.DataFrame([{"variant": spec.variant, "concept": spec.concept, "config": name, "group": p.group, "image": i}
                             for p, i in spec.image_specs()])  # fmt: skip
        rows = rows.assign(**scorer.scores(result.images, predictions[name]))
        base = sampled["base"].images
        rows["background_change"] = background_difference(
            result.images, base, predictions[name].masks, predictions["base"].masks
        )
        rows["area"] = np.nan if result.masks is None else result.masks.mean((1, 2)).numpy()
        tables.append(rows)
    return pd.concat(tables, ignore_index=True)


def _first_images(spec: LoraSampleSpec, sampled: dict[str, SampledImages]) -> dict[str, bytes]:
    """``<config>_<prompt>.png`` of each prompt's first noise, and ``mask_<config>_<prompt>.png``."""
    files = {}
    for name, result in sampled.items():
        for row, (prompt, image) in enumerate(spec.image_specs()):
            if image == 0:
                files[f"{name}_{prompt.number:02d}.png"] = png_bytes(Image.fromarray(result.images[row]))
                if result.masks is not None:
                    grey = (result.masks[row].clamp(0, 1) * 255).round().byte().numpy()
                    files[f"mask_{name}_{prompt.number:02d}.png"] = png_bytes(Image.fromarray(grey))
    return files
