"""DreamBooth (Ruiz et al. 2022) in its Stable Diffusion port: trains the whole U-Net on "a photo of a sks class".

Class images of the base model preserve the class (prior preservation).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from persres.config.schema import LearningRate
from persres.methods.common.rival import Rival, RivalSettings
from persres.models.diffusion import Diffusion
from persres.prompts import fill
from persres.training.batches import Batch, EncodedData, TrainingPlan, plain_batch, with_class_images
from persres.training.settings import WithClassImages


class DreamBooth(RivalSettings, WithClassImages):
    """XavierXiao/Dreambooth-Stable-Diffusion: whole U-Net, lr 1e-6, 1 + 1 images, prior weight 1, 800 steps, 200 class images."""

    method: Literal["dreambooth"] = "dreambooth"
    steps: int = Field(800, ge=1)
    batch_size: int = Field(1, ge=1)
    lr: LearningRate = 1e-6
    train_text_encoder: bool = False


def phrase(token: str, rare_token: str, macro_class: str) -> str:
    """The rare token before the class."""
    return f"{rare_token} {macro_class}"


def trained_names(diffusion: Diffusion, text_encoder: bool) -> list[str]:
    """All parameters of the U-Net, and optionally of the text encoder."""
    names = [f"unet.{name}" for name, _ in diffusion.unet.named_parameters()]
    return names + (
        [f"text_encoder.{name}" for name, _ in diffusion.text_encoder.named_parameters()] if text_encoder else []
    )


def plan(diffusion: Diffusion, settings: DreamBooth, data: EncodedData) -> TrainingPlan:
    """One photo and one class image per step, the latter weighted by ``prior_weight``."""
    caption = fill(settings.prompt, f"{data.base.rare_token} {data.macro_class}")
    class_caption = fill(settings.prompt, data.macro_class)

    def batch(step: int, draw: torch.Generator) -> Batch:
        return plain_batch(data.photos, caption, settings.batch_size, draw)

    names = trained_names(diffusion, settings.train_text_encoder)
    batches = with_class_images(batch, data.class_images, class_caption, settings)
    return TrainingPlan(names, {"": settings.lr}, batches)


METHOD = Rival("dreambooth", DreamBooth, phrase, plan, sd14_parameters=859_520_964)
