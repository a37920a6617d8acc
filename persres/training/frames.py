"""The loss of photos that are no plain squares: latents of several sizes, and borders that do not count (persres/training/framing.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from persres.images import to_tensor
from persres.models.conditioning import Conditioning
from persres.training.framing import Box, framed

Posterior = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]  # images -> mean and std of their latents
Photo = tuple[Image.Image, Box]  # a training image, and its area that counts


@dataclass(frozen=True)
class Frames:
    """The frames of n photos. ``sizes``: height and width of their latents, which lie in the upper left corner of a canvas; ``valid``
    [n, 1, h, w]: 1 where the loss counts; ``factor``: pixels per latent pixel."""

    sizes: list[tuple[int, int]]
    valid: torch.Tensor
    factor: int


def encode_framed(
    photos: list[Image.Image], resolution: int, crop: str, factor: int, posterior: Posterior
) -> tuple[torch.Tensor, torch.Tensor, Frames]:
    """Mean and std of the latents of whole photos [n, c, h, w] on a canvas that holds the largest, and their frames."""
    images = [framed(photo, resolution, crop, factor) for photo in photos]
    parts = [posterior(to_tensor([image])) for image, _ in images]
    sizes = [tuple(mean.shape[-2:]) for mean, _ in parts]
    canvas = max(height for height, _ in sizes), max(width for _, width in sizes)
    mean, std = (torch.cat([_on_canvas(part, canvas) for part in tensors]) for tensors in zip(*parts, strict=True))
    valid = [_on_canvas(_valid(image, frame.area, factor), canvas) for image, frame in images]
    return mean, std, Frames(sizes, torch.cat(valid).to(mean.device), factor)


def _valid(image: Image.Image, area: Box, factor: int) -> torch.Tensor:
    """1 at the latent pixels [1, 1, h, w] that lie in the area; where none does so entirely, at those that it covers most."""
    left, top, right, bottom = area
    pixels = torch.zeros(1, 1, image.height, image.width)
    pixels[..., top:bottom, left:right] = 1
    covered = torch.nn.functional.avg_pool2d(pixels, factor)
    return (covered >= covered.max()).float()


def _on_canvas(part: torch.Tensor, canvas: tuple[int, int]) -> torch.Tensor:
    height, width = part.shape[-2:]
    return torch.nn.functional.pad(part, (0, canvas[1] - width, 0, canvas[0] - height))


@dataclass(frozen=True)
class Sample:
    """One image of a step: its number in the batch, the size of its latents, where its loss counts ([1, h, w]; None: everywhere) and, of a
    bucket, its size in pixels for the conditioning."""

    number: int
    size: tuple[int, int]
    valid: torch.Tensor | None = None
    pixels: tuple[int, int] | None = None


def samples_of(frames: Frames | None, photos: Sequence[int], canvas: tuple[int, int], start: int) -> Iterator[Sample]:
    """The images of one concept's step, which shows these photos; ``start``: the number of the first in the batch."""
    for number, photo in enumerate(photos, start):
        if frames is None:
            yield Sample(number, canvas)
            continue
        height, width = size = frames.sizes[photo]
        yield Sample(number, size, frames.valid[photo], (height * frames.factor, width * frames.factor))


def by_size(samples: list[Sample]) -> list[list[Sample]]:
    """The samples in groups of one size, which the denoiser takes in one pass."""
    groups: dict[tuple[int, int], list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.size, []).append(sample)
    return list(groups.values())


def sized(text: Conditioning, group: list[Sample]) -> Conditioning:
    """The conditioning of a group: of its prompts, and for SDXL of its images' sizes."""
    rows = torch.tensor([sample.number for sample in group], device=text.states.device)
    text = text.each(lambda value: value[rows])
    if "time_ids" not in text.added or any(sample.pixels is None for sample in group):
        return text
    sizes = torch.tensor([[*sample.pixels, 0, 0, *sample.pixels] for sample in group]).to(text.added["time_ids"])
    return Conditioning(text.states, text.added | {"time_ids": sizes})


def mean_error(error: torch.Tensor, group: list[Sample]) -> torch.Tensor:
    """Each sample's mean of its squared errors [n, c, h, w], where they count, [n]."""
    height, width = group[0].size
    means = []
    for one, sample in zip(error, group, strict=True):
        valid = None if sample.valid is None else sample.valid[:, :height, :width]
        means.append(one.mean() if valid is None else (one.mean(0, keepdim=True) * valid).sum() / valid.sum())
    return torch.stack(means)
