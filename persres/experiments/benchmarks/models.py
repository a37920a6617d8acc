"""The benchmarked models: as diffusers loads them and as persres does, with the same weights.

``mini`` is the mini world's model; a family is built at full size with random weights, since time and memory do not depend on them.
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
class ModelChoice:
    """``mini`` or a family; ``resolution`` None: the family's."""

    name: str = MINI
    dtype: str = "float32"
    resolution: int | None = None


@dataclass(frozen=True)
class Measured:
    """``pipe``: diffusers' pipeline with V* and DDIM. ``ours``: the same weights as the stages use them. ``settings``: of the residuals."""

    name: str
    base: Base
    pipe: DiffusionPipeline
    ours: Diffusion
    settings: Ours
    weights: str

    @property
    def device(self) -> torch.device:
        """The device of both."""
        return self.ours.unet.device


def load_measured(choice: ModelChoice, device: torch.device) -> Measured:
    """Return the model on the device. Raises PersresError for an unknown name, and for SDXL, which the baseline loops do not support."""
    name, dtype = choice.name, choice.dtype
    if name == MINI:
        base = Base(model="package:miniworld/weights/sd", resolution=64, rare_token="sks", dtype=dtype)
        pipe = StableDiffusionPipeline.from_pretrained(
            located(base.model), dtype=getattr(torch, dtype), safety_checker=None, requires_safety_checker=False
        ).to(device)
        return _measured(name, base, pipe, Ours(rank_ratio=0.4), "the mini world's")
    if name not in FAMILIES or FAMILIES[name].second is not None:
        names = [MINI, *(family for family, about in FAMILIES.items() if about.second is None)]
        raise PersresError(f"no model {name!r} for this benchmark; one of {', '.join(names)}")
    base = Base(model=f"random {name}", resolution=choice.resolution or FAMILIES[name].resolution, dtype=dtype)
    return _measured(name, base, random_pipeline(FAMILIES[name], dtype, device), Ours(), "random")


def random_pipeline(family: Family, dtype: str, device: torch.device) -> DiffusionPipeline:
    """Return a family's pipeline with random weights in ``dtype`` on the device."""
    with tempfile.TemporaryDirectory() as folder, torch.device(device):
        write_tokenizer(Path(folder), 77)
        pipe = build_pipeline(family, Path(folder))
    return pipe.to(getattr(torch, dtype))


def image_specs(base: Base, count: int) -> list[ImageSpec]:
    """Return images to sample, all of one prompt with V*."""
    phrase = f"{base.token} {CLASS}"
    return [
        ImageSpec(name=str(i), prompt=f"a photo of a {phrase}", phrase=phrase, image=i, plain=f"a photo of a {CLASS}")
        for i in range(count)
    ]


def _measured(name: str, base: Base, pipe: DiffusionPipeline, settings: Ours, weights: str) -> Measured:
    """Both sides of a comparison, with copies of the same weights."""
    pipe.set_progress_bar_config(disable=True)
    names = ("unet", "vae", "text_encoder", "tokenizer")
    copies = {part: deepcopy(getattr(pipe, part)) for part in names}
    without_safety = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    ddim = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    baseline = type(pipe)(**{part: getattr(pipe, part) for part in names}, scheduler=ddim, **without_safety)
    add_concept_token(baseline.tokenizer, baseline.text_encoder, base.token, base.rare_token)
    baseline.set_progress_bar_config(disable=True)
    copy = type(pipe)(**copies, scheduler=pipe.scheduler, **without_safety)
    ours = assembled(copy, base, pipe.unet.device, cpu_offload=False)
    return Measured(name, base, baseline, ours, settings, weights)
