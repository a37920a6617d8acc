"""Masks from the concept's attention, each one function: ``mask(attention, area) -> mask``.

``attention`` [n, pixels] is the summed attention of the V* and macro-class tokens (of one block, or blended from several); the mask has
the same shape, 1 where the residual acts. ``area`` is the share of the picture that is asked for, where a mask asks for one.

``median`` is the paper's (3.3): always half of the picture, whatever the object's size. ``otsu`` and ``soft`` find the size in the map:
N. Otsu, "A threshold selection method from gray-level histograms", 1979, without the histogram.

Controls take a mask and mark as much of the picture elsewhere: a mask that keeps the residual from part of every block's output leaves
more of the base model's picture standing wherever it lies. That attention is why can only be seen beside masks of the same area that
know nothing of the concept: a random choice, and a disk in the middle, where objects tend to be.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from persres.errors import PersresError

Generators = Callable[[int], list[torch.Generator]]  # n generators for a number of pixels, the same ones at every step
Mask = Callable[[torch.Tensor, float], torch.Tensor]
Control = Callable[[torch.Tensor, tuple[int, int], Generators | None], torch.Tensor]


def median(attention: torch.Tensor, area: float = 0.5) -> torch.Tensor:
    """M_i (paper 3.3): 1 strictly above the median of each row, else 0.

    torch's median is the lower one, so of 2k different values exactly k are marked.
    """
    return (attention > attention.median(dim=-1, keepdim=True).values).to(attention.dtype)


def quantile(attention: torch.Tensor, area: float = 0.5) -> torch.Tensor:
    """The ``area`` of each row with the most attention, to the pixel; ties go to the later pixel."""
    return largest(attention, torch.full_like(attention[:, 0], round(area * attention.shape[1])))


def otsu(attention: torch.Tensor, area: float = 0.5) -> torch.Tensor:
    """1 above Otsu's threshold of each row: the cut that leaves the least variance within the two parts. Nothing of a flat row."""
    below, above, _ = otsu_means(attention)
    return (attention > _cut(attention, below, above)).to(attention.dtype)


def soft(attention: torch.Tensor, area: float = 0.5) -> torch.Tensor:
    """From 0 at the mean of Otsu's lower part to 1 at the mean of its upper part, straight in between."""
    below, above, _ = otsu_means(attention)
    return ((attention - below) / (above - below).clamp_min(torch.finfo(attention.dtype).tiny)).clamp(0, 1)


MASKS: dict[str, Mask] = {"median": median, "quantile": quantile, "otsu": otsu, "soft": soft}


def otsu_means(attention: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Means [n, 1] of the two parts of each row that Otsu's threshold makes, and how far they lie apart, [n]: the variance between
    them over the whole, 0 to 1; 0 for a flat row."""
    ordered = attention.sort(dim=-1).values
    count, sums = ordered.shape[-1], ordered.cumsum(-1)
    k = torch.arange(1, count, device=attention.device, dtype=attention.dtype)
    below, above = sums[:, :-1] / k, (sums[:, -1:] - sums[:, :-1]) / (count - k)
    between = k / count * (1 - k / count) * (above - below).square()
    best = between.argmax(-1, keepdim=True)
    whole = attention.var(dim=-1, unbiased=False)
    apart = between.gather(1, best)[:, 0] / whole.clamp_min(torch.finfo(attention.dtype).tiny)
    return below.gather(1, best), above.gather(1, best), apart


def _cut(attention: torch.Tensor, below: torch.Tensor, above: torch.Tensor) -> torch.Tensor:
    """The best two-part split of numbers cuts halfway between the parts' means (the fixed point of 2-means)."""
    return (below + above) / 2


def disk(mask: torch.Tensor, shape: tuple[int, int], draws: Generators | None = None) -> torch.Tensor:
    """As many pixels as the mask's, nearest to the picture's centre."""
    return largest(nearness(shape).to(mask).expand_as(mask), mask.sum(1).round())


def random(mask: torch.Tensor, shape: tuple[int, int], draws: Generators | None = None) -> torch.Tensor:
    """As many pixels as the mask's, by an order drawn for each sample and block size, the same at every step. Raises PersresError
    without draws."""
    if draws is None:
        raise PersresError("mask_control random: nothing to draw from")
    order = torch.stack([torch.rand(mask.shape[1], generator=g) for g in draws(mask.shape[1])])
    return largest(order.to(mask), mask.sum(1).round())


def inverted(mask: torch.Tensor, shape: tuple[int, int], draws: Generators | None = None) -> torch.Tensor:
    """The complement."""
    return 1 - mask


CONTROLS: dict[str, Control] = {"disk": disk, "random": random, "inverted": inverted}


def largest(values: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """The ``counts`` [n] largest of each row [n, pixels] as 1, else 0; ties go to the later pixel."""
    ranks = values.argsort(dim=-1, stable=True).argsort(dim=-1)
    return (ranks >= values.shape[-1] - counts[:, None]).to(values.dtype)


def upper_half(order: torch.Tensor) -> torch.Tensor:
    """Exactly the pixels // 2 largest of each row as 1, else 0. [n, pixels] -> same."""
    return largest(order, torch.full((len(order),), order.shape[-1] // 2, device=order.device))


def nearness(shape: tuple[int, int]) -> torch.Tensor:
    """Minus the squared distance from the centre, float [1, height · width]."""
    rows, columns = (torch.arange(n) - (n - 1) / 2 for n in shape)
    return -(rows[:, None].square() + columns[None, :].square()).flatten()[None]


def central_disk(pixels: int) -> torch.Tensor:
    """The half of a square picture nearest to its centre, float [pixels]."""
    side = round(pixels**0.5)
    return upper_half(nearness((side, side)))[0]
