"""Controls for LAG's masks: the same share of the picture, marked without looking at the attention.

A mask that keeps half of every block's output from the residual leaves more of the base model's picture
standing wherever it lies. That attention is why can only be seen beside masks of the same area that
know nothing of the concept: a random half, and a disk in the middle, where objects tend to be.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from persres.errors import PersresError

MASKS = ("attention", "inverted", "random", "disk")
Standin = Callable[[torch.Tensor], torch.Tensor]


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


def standin(mask: str, draws: Callable[[int], list[torch.Generator]]) -> Standin | None:
    """Attention [n, pixels] -> mask [n, pixels] in place of the median's; None for LAG itself.

    ``inverted`` is the complement of LAG's own mask. ``random`` is one half per sample and block size, the same
    at every step: ``draws(pixels)`` gives the n samples' generators. Raises PersresError for another name.
    """
    if mask == "attention":
        return None
    if mask == "inverted":
        return lambda attention: (attention <= attention.median(dim=-1, keepdim=True).values).to(attention.dtype)
    if mask == "disk":
        return lambda attention: central_disk(attention.shape[1]).to(attention).expand_as(attention)
    if mask != "random":
        raise PersresError(f"unknown mask {mask!r}; one of {', '.join(MASKS)}")
    kept: dict[int, torch.Tensor] = {}

    def random_half(attention: torch.Tensor) -> torch.Tensor:
        pixels = attention.shape[1]
        if pixels not in kept:
            kept[pixels] = upper_half(torch.stack([torch.rand(pixels, generator=g) for g in draws(pixels)]))
        return kept[pixels].to(attention)

    return random_half
