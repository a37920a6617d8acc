"""What a rival learns from: the concept's photos, class images where it uses some, and one step's batch of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from persres.images import to_tensor
from persres.models.diffusion import Diffusion, posterior


@dataclass(frozen=True)
class EncodedImages:
    """Photos of one kind with the autoencoder's posterior of each, [n, c, h, w], in the denoiser's scale."""

    photos: list[Image.Image]
    mean: torch.Tensor
    std: torch.Tensor

    @classmethod
    def of(cls, diffusion: Diffusion, photos: list[Image.Image]) -> EncodedImages:
        """Encode square photos of the working resolution."""
        mean, std = posterior(diffusion.vae, to_tensor(photos))
        return cls(photos, mean, std)

    def draw(self, rows: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
        """Latents of some photos, sampled from their posterior."""
        noise = torch.randn((len(rows), *self.mean.shape[1:]), generator=draw).to(self.mean.device)
        rows = rows.to(self.mean.device)
        return self.mean[rows] + self.std[rows] * noise


@dataclass(frozen=True)
class Batch:
    """``latents`` [n, c, h, w]; ``captions`` n; ``weight`` [n] adds up the losses; ``valid`` [n, 1, h, w] or none: where the loss counts."""

    latents: torch.Tensor
    captions: list[str]
    weight: torch.Tensor
    valid: torch.Tensor | None = None

    def joined(self, other: Batch) -> Batch:
        """Both in one."""
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


BatchFunction = Callable[[int, torch.Generator], Batch]  # step, this step's draws -> what to learn from


@dataclass(frozen=True)
class Plan:
    """One rival's way with one concept.

    ``names`` of what trains in the model (persres.models.weight_patching), ``rates`` by name prefix, the longest counts; ``batch``
    of a step; ``loss`` of a batch where it is not the plain one; ``new``: trained parameters that the model does not have.
    """

    names: list[str]
    rates: dict[str, float]
    batch: BatchFunction
    token: torch.Tensor | None = None  # where V*'s embedding starts, if not at the rare token's
    loss: Callable[[Batch, torch.Generator], torch.Tensor] | None = None
    new: dict[str, nn.Parameter] = field(default_factory=dict)


def rows_of(count: int, size: int, draw: torch.Generator) -> torch.Tensor:
    """Which pictures a step shows, long [size]."""
    return torch.randint(count, (size,), generator=draw)


def plain_batch(
    pictures: EncodedImages, caption: str | list[str], size: int, draw: torch.Generator, weight: float = 1.0
) -> Batch:
    """``size`` of the pictures; a list of captions is drawn from."""
    rows = rows_of(len(pictures.photos), size, draw)
    options = [caption] if isinstance(caption, str) else caption
    captions = [options[i] for i in torch.randint(len(options), (size,), generator=draw)]
    return Batch(pictures.draw(rows, draw), captions, torch.full((size,), weight / size))


def with_class_images(own: BatchFunction, prior: EncodedImages | None, caption: str, settings) -> BatchFunction:
    """A step's own batch, and behind it as many class images under ``caption``, weighted by ``prior_weight``; without
    class images the own batch alone."""
    if prior is None:
        return own

    def batch(step: int, draw: torch.Generator) -> Batch:
        first = own(step, draw)
        return first.joined(plain_batch(prior, caption, settings.batch_size, draw, settings.prior_weight))

    return batch


def masked_error(out: torch.Tensor, target: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """Mean squared error of each sample, [n], over its valid area."""
    error = F.mse_loss(out.float(), target.float(), reduction="none").mean(1, keepdim=True)
    if valid is None:
        return error.flatten(1).mean(1)
    return (error * valid).flatten(1).sum(1) / valid.flatten(1).sum(1).clamp(min=1)
