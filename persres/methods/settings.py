"""Settings of the rivals, at their own authors' recommended values (sources in each class)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A frozen part of params.yaml: unknown keys refused, no silent conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Baseline(Section):
    concepts: int | None = Field(None, ge=1)  # learn only so many, spread evenly over the names; none: all
    weight_decay: float = Field(0.01, ge=0)
    seed: int = 0
    checkpoint_every: int = Field(200, ge=1)


class _Word(_Baseline):
    """A rival that learns V* as a word of its own."""

    init_word: str | None = None  # one token; none takes the macro class's last word
    templates: Literal["neutral", "prompt"] = "neutral"
    prompt: str = "a photo of a {}"  # for templates: prompt


class _WithPrior(_Baseline):
    """A rival that learns images of the class beside the photos."""

    prior_images: int = Field(200, ge=0)
    prior_weight: float = Field(1.0, ge=0)
    prompt: str = "a photo of a {}"


class TextualInversion(_Word):
    """rinongal/textual_inversion: lr 5e-3 × batch (scale_lr is on), batch 2, 6,100 steps, one vector, neutral templates."""

    method: Literal["textual_inversion"]
    steps: int = Field(6100, ge=1)
    batch_size: int = Field(2, ge=1)
    lr: float = Field(1e-2, gt=0)


class DreamBooth(_WithPrior):
    """XavierXiao/Dreambooth-Stable-Diffusion: whole U-Net, lr 1e-6, 1 + 1 images, prior weight 1, 800 steps, 200 class images."""

    method: Literal["dreambooth"]
    steps: int = Field(800, ge=1)
    batch_size: int = Field(1, ge=1)
    lr: float = Field(1e-6, gt=0)
    train_text_encoder: bool = False


class CustomDiffusion(_WithPrior):
    """adobe-research/custom-diffusion: K/V of cross-attention and V*, effective lr 8e-5, 250 steps, 200 prior images, flips."""

    method: Literal["custom_diffusion"]
    steps: int = Field(250, ge=1)
    batch_size: int = Field(4, ge=1)
    lr: float = Field(8e-5, gt=0)
    prior_folder: str | None = None  # real class images; none: drawn by the base model
    resize: bool = True  # random scale, the loss masked to the valid area
    size_words: bool = True  # "very small", "far away", "zoomed in", "close up" before a resized picture's caption


class ViCo(_Word):
    """haoosz/ViCo: V* at 5e-3, image cross-attention in four decoder blocks at 1e-5, attention regularisation 5e-4,
    checkpoint 400. Its own paper samples at guidance 7.5: say ``cfg_scale: 7.5`` in its method for that."""

    method: Literal["vico"]
    steps: int = Field(400, ge=1)
    batch_size: int = Field(1, ge=1)
    token_lr: float = Field(5e-3, gt=0)
    lr: float = Field(1e-5, gt=0)
    attention_weight: float = Field(5e-4, ge=0)


Settings = TextualInversion | DreamBooth | CustomDiffusion | ViCo
