"""Turns attention maps into masks: one frozen value that every sampling path takes.

The paper (3.3): each block by its own attention, binarised at the median. Ours, :data:`AUTO`: the blocks' maps blended by a confidence that
needs no ground truth, binarised at Otsu's threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from persres.config.schema import SamplingConfig
from persres.errors import PersresError
from persres.sampling.masks import CONTROLS, MASKS, Generators, otsu_means
from persres.sampling.prompt_intent import MIN_CONFIDENCE, prompt_intent

CONFIDENCE_WEIGHTED = "confidence_weighted"
# Power of the confidence in the blend. Of 1, 2, 3, 4, 6, 8 and 12, the values 2 to 4 were within .005 of the best IoU with the true masks
# of nameable scenes; 4 marks least next to the object. The data of this search was not saved.
SHARPNESS = 4
MASK_SETTINGS = [
    name for name in SamplingConfig.model_fields if name.startswith("mask")
]  # in the order of MaskConfig's fields


@dataclass(frozen=True)
class MaskConfig:
    """Which masks LAG uses; the settings ``mask``, ``mask_area``, … of a config, in this order.

    ``threshold`` and ``area``: see persres.sampling.masks. ``source_blocks``: the blocks whose attention decides for all; empty, each
    block its own (the paper); ``confidence_weighted``, all of them, weighted by :func:`confidence`. ``smooth``: the share of the
    previous steps' maps, 0 to below 1. ``control``: a mask of the same area that ignores attention. ``policy``: ``scenes`` masks no
    prompt that asks for another appearance of the concept; ``high_confidence`` masks no image in which no block is confident.

    Raises PersresError for an unknown name and a value out of range.
    """

    threshold: str = "median"
    area: float = 0.5
    source_blocks: tuple[str, ...] | Literal["confidence_weighted"] = ()
    smooth: float = 0.0
    control: str | None = None
    policy: Literal["always", "scenes", "high_confidence"] = "always"

    def __post_init__(self) -> None:
        for setting, name, known in (("mask", self.threshold, MASKS), ("mask_control", self.control, {None: 0, **CONTROLS})):  # fmt: skip
            if name not in known:
                raise PersresError(f"unknown {setting} {name!r}; use one of {', '.join(str(k) for k in known)}")
        if self.policy == "high_confidence" and self.source_blocks != CONFIDENCE_WEIGHTED:
            raise PersresError("mask_when: high_confidence needs mask_blocks: confidence_weighted")
        if not 0 < self.area < 1 or not 0 <= self.smooth < 1:
            raise PersresError(
                f"mask_area {self.area} must be between 0 and 1, mask_smooth {self.smooth} at least 0 and below 1"
            )

    @property
    def shared(self) -> bool:
        """Whether one map decides for all blocks."""
        return bool(self.source_blocks)

    def is_source(self, block: str) -> bool:
        """Whether a block's map contributes to the shared one."""
        return self.source_blocks == CONFIDENCE_WEIGHTED or block in self.source_blocks

    def mask(self, attention: torch.Tensor, shape: tuple[int, int], draws: Generators | None = None) -> torch.Tensor:
        """The mask [n, pixels] of attention maps [n, pixels] of this height and width."""
        mask = MASKS[self.threshold](attention, self.area)
        return mask if self.control is None else CONTROLS[self.control](mask, shape, draws)

    def uncertain(self, confidences: list[torch.Tensor]) -> torch.Tensor | None:
        """Under ``high_confidence`` the images in which no block is confident, bool [n], from each block's confidence [n]."""
        if self.policy != "high_confidence" or not confidences:
            return None
        return torch.stack(confidences).amax(0) < MIN_CONFIDENCE


PAPER = MaskConfig()
AUTO = MaskConfig("otsu", source_blocks=CONFIDENCE_WEIGHTED)


def mask_config_of(lag: bool | str | MaskConfig | SamplingConfig) -> MaskConfig:
    """The masks of a ``lag`` argument or of a config: True is the paper's, ``auto`` ours; a config with ``lag: true`` has its own settings.

    Raises PersresError for anything else.
    """
    if isinstance(lag, SamplingConfig):
        return AUTO if lag.lag == "auto" else MaskConfig(*(getattr(lag, name) for name in MASK_SETTINGS))
    if isinstance(lag, MaskConfig):
        return lag
    if lag is True or lag == "auto":
        return PAPER if lag is True else AUTO
    raise PersresError(f"lag must be True (the paper's masks), 'auto' (ours), False or a MaskConfig, not {lag!r}")


def masks_prompt(mask_config: MaskConfig, prompt: str, *phrases: str) -> bool:
    """Whether the policy masks images of this prompt with its concepts' phrases."""
    return mask_config.policy != "scenes" or all(prompt_intent(prompt, phrase) == "scene" for phrase in phrases)


def confidence(maps: torch.Tensor) -> torch.Tensor:
    """How clearly maps [n, h, w] show an object, [n] in [0, 1], without ground truth.

    The product of two measures: how far Otsu's two classes are apart (their variance over the whole), and how similar neighbouring
    pixels are (Moran's I, P. Moran 1950). Noise scores low in both, an object high in both.
    """
    return otsu_means(maps.flatten(1))[2] * neighbours_agree(maps)


def neighbours_agree(maps: torch.Tensor) -> torch.Tensor:
    """Moran's I of maps [n, h, w] over adjacent pixels, [n], at least 0; 0 for a flat map."""
    centred = maps - maps.mean((1, 2), keepdim=True)
    variance = centred.square().mean((1, 2)).clamp_min(torch.finfo(maps.dtype).tiny)
    across = (centred[:, :, 1:] * centred[:, :, :-1]).flatten(1)
    down = (centred[:, 1:] * centred[:, :-1]).flatten(1)
    return (torch.cat([across, down], 1).mean(1) / variance).clamp(0, 1)


def blended(maps: list[torch.Tensor], confidences: list[torch.Tensor] | None, shape: tuple[int, int]) -> torch.Tensor:
    """The mean of maps [n, h, w] of several sizes, [n, height · width]: each over its own mean, resized, weighted by its confidence [n]."""
    resized_maps = torch.stack(
        [resized(m / m.mean((1, 2), keepdim=True).clamp_min(torch.finfo(m.dtype).tiny), shape) for m in maps]
    )
    if confidences is None:
        return resized_maps.mean(0).flatten(1)
    weights = (
        torch.stack(confidences).pow(SHARPNESS) + torch.finfo(resized_maps.dtype).eps
    )  # equal weights if all are flat
    return (resized_maps * (weights / weights.sum(0))[:, :, None, None]).sum(0).flatten(1)


def resized(maps: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Maps [n, h, w] at another height and width."""
    if tuple(maps.shape[1:]) == tuple(shape):
        return maps
    # bilinear: no ties inside a coarse pixel, so that the median of a finer mask marks half
    mode = "bilinear" if shape[0] > maps.shape[1] else "area"
    return nn.functional.interpolate(maps[:, None], size=tuple(shape), mode=mode)[:, 0]
