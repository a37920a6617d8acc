"""Parametrisations of ΔW = A B: the tensors that train, their initial values, and the A and B that they stand for.

The paper says that both factors are "randomly initialized" and gives no scale. The default, ``scaled_normal``, samples B ~ N(0, 1/m), so
that B x is of x's size, and A ~ N(0, gain²/r), so that ΔW x starts at ``gain`` times the size of x whatever the width and rank. At gain
0.01 training starts at the base model. Unit-variance factors start from noise, which training must first remove; a zero factor, as LoRA
has it (``lora``), is not what the paper describes.

To add one, define a :class:`Parametrisation` in a module of its own and register it in :data:`PARAMETRISATIONS`. The setting ``init``, the
checkpoints and the file, which holds A and B, then know it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from persres.residuals.targets import TargetLayer

if TYPE_CHECKING:  # settings name parametrisations, and torch takes seconds to import
    import torch

    Pair = tuple[torch.Tensor, torch.Tensor]


def _unchanged(up: torch.Tensor, down: torch.Tensor) -> Pair:
    return up, down


@dataclass(frozen=True)
class Parametrisation:
    """One parametrisation of a layer's residual.

    ``initial(target, gain, draw)`` returns the initial values of the tensors that train, of shapes [m, r] and [r, m'].
    ``factors(up, down)`` returns A and B of those tensors, differentiably; all have a leading dimension of K concepts.
    """

    initial: Callable[[TargetLayer, float, torch.Generator], Pair]
    factors: Callable[[torch.Tensor, torch.Tensor], Pair] = _unchanged


def _standard(target: TargetLayer, draw: torch.Generator) -> Pair:
    import torch

    up = torch.randn(target.width, target.rank, generator=draw)
    return up, torch.randn(target.rank, target.width_in, generator=draw)


def _scaled_normal(target: TargetLayer, gain: float, draw: torch.Generator) -> Pair:
    up, down = _standard(target, draw)
    return up * gain / math.sqrt(target.rank), down / math.sqrt(target.width_in)


def _normal(target: TargetLayer, gain: float, draw: torch.Generator) -> Pair:
    """Both factors from N(0, gain²)."""
    up, down = _standard(target, draw)
    return up * gain, down * gain


def _lora(target: TargetLayer, gain: float, draw: torch.Generator) -> Pair:
    """A = 0 and B ~ U(±1/√m'), as LoRA starts."""
    import torch

    up, down = _standard(target, draw)  # drawn all the same: the seeds of published runs count on it
    return up * 0, (torch.rand(down.shape, generator=draw) * 2 - 1) / math.sqrt(target.width_in)


PARAMETRISATIONS: dict[str, Parametrisation] = {
    "scaled_normal": Parametrisation(_scaled_normal),
    "normal": Parametrisation(_normal),
    "lora": Parametrisation(_lora),
}
