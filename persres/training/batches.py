"""Training batches of the rivals: photos and class images, encoded, with their captions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from persres.config.schema import Base
from persres.images import to_tensor
from persres.models.diffusion import Diffusion, posterior


@dataclass(frozen=True)
class EncodedImages:
    """Images with the autoencoder's posterior of each, [n, c, h, w], in the denoiser's scale."""

    images: list[Image.Image]
    mean: torch.Tensor
    std: torch.Tensor

    @classmethod
    def of(cls, diffusion: Diffusion, images: list[Image.Image]) -> EncodedImages:
        """Encode square images of the training resolution."""
        mean, std = posterior(diffusion.vae, to_tensor(images))
        return cls(images, mean, std)

    def sample(self, rows: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
        """Latents of the images ``rows``, sampled from their posterior."""
        noise = torch.randn((len(rows), *self.mean.shape[1:]), generator=draw).to(self.mean.device)
        rows = rows.to(self.mean.device)
        return self.mean[rows] + self.std[rows] * noise


@dataclass(frozen=True)
class EncodedData:
    """The encoded :class:`persres.methods.common.base.TrainingData` of one concept."""

    photos: EncodedImages
    class_images: EncodedImages | None
    base: Base
    macro_class: str


@dataclass(frozen=True)
class Batch:
    """``latents`` [n, c, h, w]; n ``captions``; ``weight`` [n] of each sample's loss; ``valid`` [n, 1, h, w]: where the loss counts."""

    latents: torch.Tensor
    captions: list[str]
    weight: torch.Tensor
    valid: torch.Tensor | None = None

    def joined(self, other: Batch) -> Batch:
        """Both batches as one."""
        valid = None
        if self.valid is not None or other.valid is not None:
            valid = torch.cat(
                [b.valid if b.valid is not None else torch.ones_like(b.latents[:, :1]) for b in (self, other)]
            )
        return Batch(
            torch.cat([self.latents, other.latents]),
            self.captions + other.captions,
            torch.cat([self.weight, other.weight]),
            valid,
        )


BatchFunction = Callable[[int, torch.Generator], Batch]  # step, the step's generator -> batch


@dataclass(frozen=True)
class TrainingPlan:
    """How a rival trains one concept.

    ``names``: the model's parameters that train (persres.models.weight_patching). ``lrs``: learning rates by name prefix; the longest
    matching prefix counts. ``batch``: the batch of a step. ``token``: the initial embedding of V*; the default is the rare token's.
    ``loss``: replaces the plain loss. ``new``: trained parameters that the model does not have.
    """

    names: list[str]
    lrs: dict[str, float]
    batch: BatchFunction
    token: torch.Tensor | None = None
    loss: Callable[[Batch, torch.Generator], torch.Tensor] | None = None
    new: dict[str, nn.Parameter] = field(default_factory=dict)


def random_rows(count: int, size: int, draw: torch.Generator) -> torch.Tensor:
    """Indices of a step's images, long [size], of ``count``."""
    return torch.randint(count, (size,), generator=draw)


def plain_batch(
    images: EncodedImages, caption: str | list[str], size: int, draw: torch.Generator, weight: float = 1.0
) -> Batch:
    """A batch of ``size`` random images; of a list of captions, each image gets a random one."""
    rows = random_rows(len(images.images), size, draw)
    options = [caption] if isinstance(caption, str) else caption
    captions = [options[i] for i in torch.randint(len(options), (size,), generator=draw)]
    return Batch(images.sample(rows, draw), captions, torch.full((size,), weight / size))


def with_class_images(
    concept_batch: BatchFunction, class_images: EncodedImages | None, caption: str, settings
) -> BatchFunction:
    """A batch function that appends as many class images under ``caption``, weighted by ``prior_weight``.

    Without class images, ``concept_batch`` itself.
    """
    if class_images is None:
        return concept_batch

    def batch(step: int, draw: torch.Generator) -> Batch:
        first = concept_batch(step, draw)
        return first.joined(plain_batch(class_images, caption, settings.batch_size, draw, settings.prior_weight))

    return batch


def masked_error(out: torch.Tensor, target: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """Mean squared error of each sample over its valid area, [n]."""
    error = F.mse_loss(out.float(), target.float(), reduction="none").mean(1, keepdim=True)
    if valid is None:
        return error.flatten(1).mean(1)
    return (error * valid).flatten(1).sum(1) / valid.flatten(1).sum(1).clamp(min=1)
