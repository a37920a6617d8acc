"""Masks from attention: ``mask(attention, area) -> mask``.

``attention`` [n, pixels] is the summed attention of the V* and macro-class tokens, of one block or blended from several. The mask has
the same shape and is 1 where the residual acts. ``area`` is the share of the image that ``quantile`` marks.

``median`` is the paper's (3.3) and always marks half of the image. ``otsu`` and ``soft`` derive the size from the map: N. Otsu, "A
threshold selection method from gray-level histograms", 1979, without the histogram.

Controls mark the same area elsewhere. Any mask keeps part of the base model's image, wherever it lies; only a control of the same area
shows whether attention chose the right part: random pixels, or a disk in the centre, where objects usually are.

To add a mask or a control, write its function here and add its name to ``MaskName`` or ``MaskControl`` of persres/config/schema.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import torch

from persres.config.schema import MaskControl, MaskName
from persres.errors import PersresError

Generators = Callable[[int], list[torch.Generator]]  # n generators for a number of pixels, the same ones at every step
Mask = Callable[[torch.Tensor, float], torch.Tensor]
Control = Callable[[torch.Tensor, tuple[int, int], Generators | None], torch.Tensor]


def median(attention: torch.Tensor, area: float = 0.5) -> torch.Tensor:
    """M_i (paper 3.3): 1 strictly above the median of each row, else 0.

    torch's median is the lower one, so of 2k different values exactly k are marked.
    """
    return (attention > attention.median(dim=1, keepdim=True).values).to(attention.dtype)


def quantile(attention: torch.Tensor, area: float = 0.5) -> torch.Tensor:
    """1 at the ``area`` of each row with the most attention, to the pixel; ties go to the later pixel."""
    return largest(attention, torch.full_like(attention[:, 0], round(area * attention.shape[1])))


def otsu(attention: torch.Tensor, area: float = 0.5) -> torch.Tensor:
    """1 above Otsu's threshold of each row, which minimises the variance within the two classes; zeros for a flat row."""
    below, above, _ = otsu_means(attention)
    # the best threshold of numbers lies halfway between the classes' means (the fixed point of 2-means)
    return (attention > (below + above) / 2).to(attention.dtype)


def soft(attention: torch.Tensor, area: float = 0.5) -> torch.Tensor:
    """Rises linearly from 0 at the mean of Otsu's lower class to 1 at the mean of its upper class."""
    below, above, _ = otsu_means(attention)
    return ((attention - below) / (above - below).clamp_min(torch.finfo(attention.dtype).tiny)).clamp(0, 1)


def otsu_means(attention: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The means [n, 1] of each row's two Otsu classes, and their separation [n].

    The separation is the variance between the classes over the total variance, 0 to 1; 0 for a flat row.
    """
    if attention.shape[1] == 1:  # one pixel is no two classes
        return attention, attention, torch.zeros_like(attention[:, 0])
    ordered = attention.sort(dim=1).values
    count, sums = ordered.shape[1], ordered.cumsum(1)
    k = torch.arange(1, count, device=attention.device, dtype=attention.dtype)
    below, above = sums[:, :-1] / k, (sums[:, -1:] - sums[:, :-1]) / (count - k)
    between = k / count * (1 - k / count) * (above - below).square()
    best = between.argmax(1, keepdim=True)
    total = attention.var(dim=1, unbiased=False)
    separation = between.gather(1, best)[:, 0] / total.clamp_min(torch.finfo(attention.dtype).tiny)
    return below.gather(1, best), above.gather(1, best), separation


def disk(mask: torch.Tensor, shape: tuple[int, int], draws: Generators | None = None) -> torch.Tensor:
    """The mask's number of pixels, nearest to the centre."""
    return largest(nearness(shape).to(mask).expand_as(mask), mask.sum(1).round())


def random(mask: torch.Tensor, shape: tuple[int, int], draws: Generators | None = None) -> torch.Tensor:
    """The mask's number of random pixels, the same at every step. Raises PersresError without ``draws``."""
    if draws is None:
        raise PersresError("mask_control random needs random generators; set the rule's draws")
    order = torch.stack([torch.rand(mask.shape[1], generator=g) for g in draws(mask.shape[1])])
    return largest(order.to(mask), mask.sum(1).round())


def inverted(mask: torch.Tensor, shape: tuple[int, int], draws: Generators | None = None) -> torch.Tensor:
    """The complement."""
    return 1 - mask


MASKS: dict[str, Mask] = {name: globals()[name] for name in get_args(MaskName)}
CONTROLS: dict[str, Control] = {name: globals()[name] for name in get_args(MaskControl)}


def largest(values: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """1 at the ``counts`` [n] largest of each row [n, pixels], else 0; ties go to the later pixel."""
    ranks = values.argsort(dim=-1, stable=True).argsort(dim=-1)
    return (ranks >= values.shape[-1] - counts[:, None]).to(values.dtype)


def upper_half(order: torch.Tensor) -> torch.Tensor:
    """1 at exactly the pixels // 2 largest of each row, else 0. [n, pixels] -> same."""
    return largest(order, torch.full((len(order),), order.shape[-1] // 2, device=order.device))


def nearness(shape: tuple[int, int]) -> torch.Tensor:
    """Minus the squared distance from the centre, float [1, height · width]."""
    rows, columns = (torch.arange(n) - (n - 1) / 2 for n in shape)
    return -(rows[:, None].square() + columns[None, :].square()).flatten()[None]


def central_disk(pixels: int) -> torch.Tensor:
    """The half of a square image nearest to its centre, float [pixels]."""
    side = round(pixels**0.5)
    return upper_half(nearness((side, side)))[0]
