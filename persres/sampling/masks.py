"""Masks from the concept's attention, each one function: ``mask(attention, draws) -> mask``.

``attention`` [n, pixels] is the summed attention of the V* and macro-class tokens in one block; the mask has the same shape,
1 where the residual acts. ``draws(pixels)`` gives n generators, the same ones at every step, for masks that draw at random.

``median`` is the paper's (3.3). The others are controls: a mask that keeps half of every block's output from the residual leaves
more of the base model's picture standing wherever it lies. That attention is why can only be seen beside masks of the same area
that know nothing of the concept: a random half, and a disk in the middle, where objects tend to be.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from persres.errors import PersresError

Draws = Callable[[int], list[torch.Generator]]
Mask = Callable[[torch.Tensor, Draws], torch.Tensor]


def median(attention: torch.Tensor, draws: Draws | None = None) -> torch.Tensor:
    """M_i (paper 3.3): 1 strictly above the median of each row, else 0.

    torch's median is the lower one, so of 2k different values exactly k are marked: always half of the picture, whatever the
    object's size.
    """
    return (attention > attention.median(dim=-1, keepdim=True).values).to(attention.dtype)


def inverted(attention: torch.Tensor, draws: Draws | None = None) -> torch.Tensor:
    """The complement of the median's mask."""
    return (attention <= attention.median(dim=-1, keepdim=True).values).to(attention.dtype)


def disk(attention: torch.Tensor, draws: Draws | None = None) -> torch.Tensor:
    """The central disk of half of the area."""
    return central_disk(attention.shape[1]).to(attention).expand_as(attention)


def random(attention: torch.Tensor, draws: Draws) -> torch.Tensor:
    """A random half for each sample and block size, the same at every step."""
    pixels = attention.shape[1]
    return upper_half(torch.stack([torch.rand(pixels, generator=g) for g in draws(pixels)])).to(attention)


MASKS: dict[str, Mask] = {"median": median, "inverted": inverted, "random": random, "disk": disk}


def mask_named(name: str) -> Mask:
    """The mask of a name. Raises PersresError where there is none."""
    if name not in MASKS:
        raise PersresError(f"unknown mask {name!r}; one of {', '.join(MASKS)}")
    return MASKS[name]


def upper_half(order: torch.Tensor) -> torch.Tensor:
    """Exactly the pixels // 2 largest of each row as 1, else 0; ties go to the later pixel. [n, pixels] -> same."""
    ranks = order.argsort(dim=-1, stable=True).argsort(dim=-1)
    return (ranks >= order.shape[-1] - order.shape[-1] // 2).to(order.dtype)


def central_disk(pixels: int) -> torch.Tensor:
    """The half of a square picture nearest to its centre, float [pixels]."""
    side = round(pixels**0.5)
    if side * side != pixels:
        raise PersresError(f"mask: disk needs square pictures, this block sees {pixels} pixels; use another mask")
    line = torch.arange(side) - (side - 1) / 2
    return upper_half(-(line[:, None].square() + line[None, :].square()).flatten()[None])[0]
