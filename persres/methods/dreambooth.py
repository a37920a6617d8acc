"""DreamBooth (Ruiz et al. 2022) in its Stable Diffusion port: the whole U-Net learns "a photo of a sks class",
and class images drawn by the base model keep the class what it was."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from persres.config.schema import Base
from persres.methods.common.rival import Rival, RivalSettings
from persres.models.diffusion import Diffusion
from persres.prompts import fill
from persres.training.batches import Batch, EncodedImages, Plan, plain_batch, with_class_images
from persres.training.settings import WithClassImages


class DreamBooth(RivalSettings, WithClassImages):
    """XavierXiao/Dreambooth-Stable-Diffusion: whole U-Net, lr 1e-6, 1 + 1 images, prior weight 1, 800 steps, 200 class images."""

    method: Literal["dreambooth"] = "dreambooth"
    steps: int = Field(800, ge=1)
    batch_size: int = Field(1, ge=1)
    lr: float = Field(1e-6, gt=0)
    train_text_encoder: bool = False


def phrase(token: str, rare_token: str, macro_class: str) -> str:
    """The rare word itself, before the class."""
    return f"{rare_token} {macro_class}"


def trained_names(diffusion: Diffusion, text_encoder: bool) -> list[str]:
    """Every weight of the U-Net, and of the text tower where asked."""
    names = [f"unet.{name}" for name, _ in diffusion.unet.named_parameters()]
    return names + (
        [f"text_encoder.{name}" for name, _ in diffusion.text_encoder.named_parameters()] if text_encoder else []
    )


def plan(
    diffusion: Diffusion,
    settings: DreamBooth,
    photos: EncodedImages,
    prior: EncodedImages | None,
    base: Base,
    macro_class: str,
) -> Plan:
    """One photo and one class image a step, the second weighted by ``prior_weight``."""
    own, other = fill(settings.prompt, f"{base.rare_token} {macro_class}"), fill(settings.prompt, macro_class)

    def batch(step: int, draw: torch.Generator) -> Batch:
        return plain_batch(photos, own, settings.batch_size, draw)

    names = trained_names(diffusion, settings.train_text_encoder)
    return Plan(names, {"": settings.lr}, with_class_images(batch, prior, other, settings))


METHOD = Rival("dreambooth", DreamBooth, phrase, plan)
