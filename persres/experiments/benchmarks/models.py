"""What is measured: a model as diffusers loads it, and the same as persres does; the mini world's, or a family's at full size with random
weights, for which no hub is needed: time and memory do not depend on what weights know.
"""

from __future__ import annotations

import tempfile
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline

from persres.config.schema import Base
from persres.errors import PersresError
from persres.experiments.benchmarks.families import FAMILIES, Family, build_pipeline
from persres.experiments.miniworld_training.tokenizer import write_tokenizer
from persres.methods.ours import Ours
from persres.models.diffusion import Diffusion, assembled
from persres.models.text_encoding import add_concept_token
from persres.package_paths import located
from persres.units.specs import ImageSpec

MINI = "mini"
CLASS = "mug"  # any word


@dataclass(frozen=True)
class Measured:
    """``pipe``: diffusers' own pipeline, with V* and with DDIM. ``ours``: the same weights as the stages use them. ``settings`` of the
    residuals."""

    name: str
    base: Base
    pipe: DiffusionPipeline
    ours: Diffusion
    settings: Ours
    weights: str

    @property
    def device(self) -> torch.device:
        """Where both are."""
        return self.ours.unet.device


def model_named(name: str, place: torch.device, dtype: str, resolution: int | None = None) -> Measured:
    """``mini`` or a family. Raises PersresError for another name, and for SDXL, which the plain loops here do not know."""
    if name == MINI:
        base = Base(model="package:miniworld/weights/sd", resolution=64, rare_token="sks", dtype=dtype)
        pipe = StableDiffusionPipeline.from_pretrained(
            located(base.model), dtype=getattr(torch, dtype), safety_checker=None, requires_safety_checker=False
        ).to(place)
        return _both(name, base, pipe, Ours(rank_ratio=0.4), "the mini world's own")
    if name not in FAMILIES or FAMILIES[name].second is not None:
        known = [MINI, *(family for family, about in FAMILIES.items() if about.second is None)]
        raise PersresError(f"no model {name!r} to measure beside others; one of {', '.join(known)}")
    base = Base(model=f"random {name}", resolution=resolution or FAMILIES[name].resolution, dtype=dtype)
    return _both(name, base, random_pipeline(FAMILIES[name], dtype, place), Ours(), "random")


def random_pipeline(family: Family, dtype: str, place: torch.device) -> DiffusionPipeline:
    """A family's pipeline with random weights in ``dtype`` on the device."""
    with tempfile.TemporaryDirectory() as folder, torch.device(place):
        write_tokenizer(Path(folder), 77)
        pipe = build_pipeline(family, Path(folder))
    return pipe.to(getattr(torch, dtype))


def image_specs(base: Base, count: int) -> list[ImageSpec]:
    """Pictures to draw of one prompt with V*."""
    phrase = f"{base.token} {CLASS}"
    return [
        ImageSpec(name=str(i), prompt=f"a photo of a {phrase}", phrase=phrase, image=i, plain=f"a photo of a {CLASS}")
        for i in range(count)
    ]


def _both(name: str, base: Base, pipe: DiffusionPipeline, settings: Ours, weights: str) -> Measured:
    pipe.set_progress_bar_config(disable=True)
    parts = {part: deepcopy(getattr(pipe, part)) for part in ("unet", "vae", "text_encoder", "tokenizer")}
    theirs = type(pipe)(
        **{part: getattr(pipe, part) for part in parts},
        scheduler=DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    add_concept_token(theirs.tokenizer, theirs.text_encoder, base.token, base.rare_token)
    theirs.set_progress_bar_config(disable=True)
    mine = type(pipe)(
        **parts, scheduler=pipe.scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    ours = assembled(mine, base, pipe.unet.device, cpu_offload=False)
    return Measured(name, base, theirs, ours, settings, weights)
