"""DreamBooth (Ruiz et al. 2022) in its Stable Diffusion port: the whole U-Net learns "a photo of a sks class",
and class images drawn by the base model keep the class what it was."""

from __future__ import annotations

import torch

from persres.methods.lessons import Batch, Pictures, Plan, beside_prior, plain_batch
from persres.methods.settings import DreamBooth
from persres.models import Diffusion
from persres.prompt_text import fill


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
    photos: Pictures,
    prior: Pictures | None,
    rare_token: str,
    macro_class: str,
) -> Plan:
    """One photo and one class image a step, the second weighted by ``prior_weight``."""
    own, other = fill(settings.prompt, f"{rare_token} {macro_class}"), fill(settings.prompt, macro_class)

    def batch(step: int, draw: torch.Generator) -> Batch:
        return plain_batch(photos, own, settings.batch_size, draw)

    names = trained_names(diffusion, settings.train_text_encoder)
    return Plan(names, {"": settings.lr}, beside_prior(batch, prior, other, settings))
