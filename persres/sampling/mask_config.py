"""How a map of attention becomes a mask, and whose attention it is: one frozen value that every way to draw takes.

The paper's (3.3): each block by its own attention, cut at the median. Ours, :data:`AUTO`: the blocks' maps blended by a confidence that
needs no truth, cut by Otsu's threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from persres.errors import PersresError
from persres.sampling.masks import CONTROLS, MASKS, Generators, otsu_means
from persres.sampling.prompt_intent import MIN_CONFIDENCE, prompt_intent

CONFIDENCE_WEIGHTED = "confidence_weighted"
# Power of the confidence in the blend. Chosen on nameable scenes, by a search that was not kept: of 1, 2, 3, 4, 6, 8, 12 those within .005 of
# the best IoU with the true masks (2, 3, 4), and of them the one that marks least beside the object.
SHARPNESS = 4
MaskPolicy = Literal["always", "scenes", "high_confidence"]


@dataclass(frozen=True)
class MaskConfig:
    """``mask`` and ``area``: of persres.sampling.masks. ``blocks``: whose attention decides for all blocks; none: each its own (the
    paper), ``confident``: all, weighted by :func:`confidence`. ``smooth``: share of the map of the steps before that is kept, 0 to below
    1. ``control``: a place that knows nothing of the attention. ``when``: ``scenes`` masks no prompt that asks for another look of the
    thing, ``sure`` no picture in which the attention has found no place (persres.sampling.prompt_intent).

    Raises PersresError for an unknown name.
    """

    mask: str = "median"
    area: float = 0.5
    blocks: tuple[str, ...] | Literal["confidence_weighted"] = ()
    smooth: float = 0.0
    control: str | None = None
    when: MaskPolicy = "always"

    def __post_init__(self) -> None:
        for what, name, known in (("mask", self.mask, MASKS), ("mask_control", self.control, {None: 0, **CONTROLS})):
            if name not in known:
                raise PersresError(f"unknown {what} {name!r}; one of {', '.join(str(k) for k in known)}")
        if self.when == "high_confidence" and self.blocks != CONFIDENCE_WEIGHTED:
            raise PersresError("mask_when sure asks the blocks' confidence; say mask_blocks: confident")
        if not 0 < self.area < 1 or not 0 <= self.smooth < 1:
            raise PersresError(f"mask_area lies between 0 and 1, mask_smooth from 0 to below 1, not {self.area} and {self.smooth}")  # fmt: skip

    def unsure(self, trust: list[torch.Tensor]) -> torch.Tensor | None:
        """Under ``sure``, which pictures have no block that has found something, bool [n]; ``trust`` [n] of each block."""
        return torch.stack(trust).amax(0) < MIN_CONFIDENCE if self.when == "high_confidence" and trust else None

    @property
    def shared(self) -> bool:
        """Whether one map decides for all blocks."""
        return bool(self.blocks)

    def is_source(self, block: str) -> bool:
        """Whether a block's map is part of the shared one."""
        return self.blocks == CONFIDENCE_WEIGHTED or block in self.blocks

    def cut(self, attention: torch.Tensor, shape: tuple[int, int], draws: Generators | None = None) -> torch.Tensor:
        """The mask [n, pixels] of maps [n, pixels] of this height and width."""
        mask = MASKS[self.mask](attention, self.area)
        return mask if self.control is None else CONTROLS[self.control](mask, shape, draws)


PAPER = MaskConfig()
AUTO = MaskConfig(mask="otsu", blocks=CONFIDENCE_WEIGHTED)


def mask_config_of(lag: bool | str | MaskConfig) -> MaskConfig:
    """What is meant by ``lag``: True the paper's, ``auto`` ours, or a masking. Raises PersresError for anything else."""
    if isinstance(lag, MaskConfig):
        return lag
    if lag is True or lag == "auto":
        return PAPER if lag is True else AUTO
    raise PersresError(f"lag is True (the paper's), 'auto' (ours), False or a Masking, not {lag!r}")


def masks_prompt(mask_config: MaskConfig, prompt: str, phrase: str) -> bool:
    """Whether a prompt is masked at all."""
    return mask_config.when != "scenes" or prompt_intent(prompt, phrase) == "scene"


def confidence(maps: torch.Tensor) -> torch.Tensor:
    """How much a map [n, h, w] looks as if it had found something, [n] in [0, 1]; no truth is asked.

    Two parts that lie apart (Otsu's variance between over the whole) times neighbours that agree (Moran's I, P. Moran 1950: the
    correlation of touching pixels): a map of noise has neither, a map of an object both.
    """
    return otsu_means(maps.flatten(1))[2] * neighbours_agree(maps)


def neighbours_agree(maps: torch.Tensor) -> torch.Tensor:
    """Moran's I of maps [n, h, w] over touching pixels, [n], not below 0; 0 for a flat map."""
    centred = maps - maps.mean((1, 2), keepdim=True)
    variance = centred.square().mean((1, 2)).clamp_min(torch.finfo(maps.dtype).tiny)
    beside = (centred[:, :, 1:] * centred[:, :, :-1]).flatten(1)
    below = (centred[:, 1:] * centred[:, :-1]).flatten(1)
    return (torch.cat([beside, below], 1).mean(1) / variance).clamp(0, 1)


def blended(maps: list[torch.Tensor], trust: list[torch.Tensor] | None, shape: tuple[int, int]) -> torch.Tensor:
    """Maps [n, h, w] of any sizes, each over its own mean, brought to one shape and averaged, [n, height · width]; ``trust`` [n] of
    each weighs them."""
    same = torch.stack(
        [resized(m / m.mean((1, 2), keepdim=True).clamp_min(torch.finfo(m.dtype).tiny), shape) for m in maps]
    )
    if trust is None:
        return same.mean(0).flatten(1)
    weights = torch.stack(trust).pow(SHARPNESS) + torch.finfo(same.dtype).eps  # all flat: all the same
    return (same * (weights / weights.sum(0))[:, :, None, None]).sum(0).flatten(1)


def resized(maps: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Maps [n, h, w] at another height and width."""
    if tuple(maps.shape[1:]) == tuple(shape):
        return maps
    # bilinear: no ties inside a coarse cell, so that a finer mask has its half
    mode = "bilinear" if shape[0] > maps.shape[1] else "area"
    return nn.functional.interpolate(maps[:, None], size=tuple(shape), mode=mode)[:, 0]
