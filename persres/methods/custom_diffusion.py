"""Custom Diffusion (Kumari et al. 2023): trains keys and values of cross-attention, and V*'s embedding.

Class images regularise training; photos are flipped and resized at random.

Differences from the authors' code: they stop gradients at the keys and values of the start token. V* starts at the same rare token's
embedding as ours; theirs is another rare token.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field

from persres.config.schema import ClassImageRequest, LearningRate
from persres.images import to_tensor
from persres.methods.common.rival import Rival, RivalSettings
from persres.models.diffusion import Diffusion, posterior
from persres.models.weight_patching import TOKEN
from persres.prompts import fill
from persres.training.batches import (
    Batch,
    EncodedData,
    EncodedImages,
    TrainingPlan,
    plain_batch,
    random_rows,
    with_class_images,
)
from persres.training.settings import WithClassImages


class CustomDiffusion(RivalSettings, WithClassImages):
    """adobe-research/custom-diffusion: K/V of cross-attention and V*, effective lr 8e-5, 250 steps, 200 class images, flips."""

    method: Literal["custom_diffusion"] = "custom_diffusion"
    steps: int = Field(250, ge=1)
    batch_size: int = Field(4, ge=1)
    lr: LearningRate = 8e-5
    prior_folder: str | None = None  # real class images, in a folder by class; none: the base model samples them
    resize: bool = True  # random scale; the loss counts in the valid area only
    size_words: bool = True  # "very small", "far away", "zoomed in", "close up" before a resized photo's caption

    def class_images(self) -> ClassImageRequest | None:
        """Sampled class images, or the real ones of a folder."""
        request = super().class_images()
        return request and request.model_copy(update={"folder": self.prior_folder})


SMALL, LARGE = ("very small", "far away"), ("zoomed in", "close up")


def phrase(token: str, rare_token: str, macro_class: str) -> str:
    """V* before the class, as in our method."""
    return f"{token} {macro_class}"


def trained_names(diffusion: Diffusion) -> list[str]:
    """Keys and values of every cross-attention, and V*."""
    names = [name for name, _ in diffusion.unet.named_parameters() if ".attn2.to_k." in name or ".attn2.to_v." in name]
    return [f"unet.{name}" for name in names] + [TOKEN]


def _uniform(low: float, high: float, draw: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=draw))


def resized(photo: Image.Image, draw: torch.Generator) -> tuple[Image.Image, torch.Tensor, str | None]:
    """A random view: the image, its valid area (float [h, w], in pixels), and a word for its size.

    Two of three views scale the photo to 1/3–1 of its side, on black. The others scale it to 1.2–1.4 and crop at random. The word
    applies below 0.6 and above 1 (the authors' data.py).
    """
    side = photo.width
    small = _uniform(0, 1, draw) < 2 / 3
    scale = max(1, round(side * (_uniform(1 / 3, 1, draw) if small else _uniform(1.2, 1.4, draw))))
    view, gap = photo.resize((scale, scale), Image.BILINEAR), abs(side - scale)
    left, top = (int(_uniform(0, gap + 1, draw)) for _ in range(2))
    words = LARGE if scale > side else SMALL if scale < 0.6 * side else None
    word = words[int(_uniform(0, 2, draw))] if words else None
    if scale > side:
        return view.crop((left, top, left + side, top + side)), torch.ones(side, side), word
    canvas, valid = Image.new("RGB", (side, side)), torch.zeros(side, side)
    canvas.paste(view, (left, top))
    valid[top : top + scale, left : left + scale] = 1
    return canvas, valid, word


def augmented_batch(
    diffusion: Diffusion, photos: EncodedImages, caption: str, settings: CustomDiffusion, draw: torch.Generator
) -> Batch:
    """Resized and flipped photos, encoded in this step; the loss counts in their valid area."""
    images, masks, captions = [], [], []
    for row in random_rows(len(photos.images), settings.batch_size, draw).tolist():
        image, valid, word = resized(photos.images[row], draw)
        if _uniform(0, 1, draw) < 0.5:
            image, valid = image.transpose(Image.FLIP_LEFT_RIGHT), valid.flip(1)
        images.append(image)
        masks.append(valid)
        captions.append(f"{word} {caption}" if word and settings.size_words else caption)
    mean, std = posterior(diffusion.vae, to_tensor(images))
    latents = mean + std * torch.randn(mean.shape, generator=draw).to(mean.device)
    area = F.adaptive_avg_pool2d(torch.stack(masks)[:, None], latents.shape[2:]).to(latents.device)
    size = settings.batch_size
    return Batch(latents, captions, torch.full((size,), 1 / size), (area > 0.99).float())


def plan(diffusion: Diffusion, settings: CustomDiffusion, data: EncodedData) -> TrainingPlan:
    """Photos and class images in equal numbers."""
    caption = fill(settings.prompt, f"{data.base.token} {data.macro_class}")
    class_caption = fill(settings.prompt, data.macro_class)

    def batch(step: int, draw: torch.Generator) -> Batch:
        if settings.resize:
            return augmented_batch(diffusion, data.photos, caption, settings, draw)
        return plain_batch(data.photos, caption, settings.batch_size, draw)

    batches = with_class_images(batch, data.class_images, class_caption, settings)
    return TrainingPlan(trained_names(diffusion), {"": settings.lr}, batches)


METHOD = Rival("custom_diffusion", CustomDiffusion, phrase, plan, sd14_parameters=19_170_048)
