"""Target modules: the layers of a U-Net that take a residual, and their ranks (paper 3.2 and 4.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from persres.errors import PersresError

if TYPE_CHECKING:  # settings name targets, and torch takes seconds to import
    from torch import nn


def _cross_attention(block: nn.Module) -> list[str]:
    """Keys and values of a block's cross-attention, which read the text."""
    names = [f"transformer_blocks.{i}.attn2" for i in range(len(block.transformer_blocks))]
    return [f"{name}.{part}" for name in names for part in ("to_k", "to_v")]


# Names of layers below a transformer block, by the value of the setting `target`. All but proj_out are ablations.
TARGET_MODULES: dict[str, Callable[[nn.Module], list[str]]] = {
    "proj_out": lambda block: ["proj_out"],
    "proj_in": lambda block: ["proj_in"],
    "attn_kv": _cross_attention,
}


@dataclass(frozen=True)
class TargetLayer:
    """One layer that takes a residual: ``width`` outputs m, ``width_in`` inputs m'; ``conv`` for a 1×1 convolution, else it is
    linear."""

    path: str
    width: int
    conv: bool
    rank: int
    width_in: int


def rank_of(width: int, ratio: float = 0.05, fixed: int | None = None) -> int:
    """Returns r = max(1, round(ratio · m)) (paper 4.1), or the fixed rank, at most the width (paper table 5)."""
    return min(width, fixed if fixed is not None else max(1, round(ratio * width)))


def find_targets(
    unet: nn.Module, rank_ratio: float = 0.05, rank: int | None = None, target: str = "proj_out"
) -> list[TargetLayer]:
    """Returns the layers that take a residual, in the order of the model's modules.

    ``target`` is a key of :data:`TARGET_MODULES`; ``rank``, where given, holds for all layers. Raises PersresError for an unknown target and
    for a model without transformer blocks.
    """
    from diffusers.models.transformers.transformer_2d import Transformer2DModel
    from torch import nn

    from persres.models.call_hooks import innermost

    if target not in TARGET_MODULES:
        raise PersresError(f"unknown target {target!r}; one of {', '.join(TARGET_MODULES)}")
    targets = []
    for path, block in unet.named_modules():
        for name in TARGET_MODULES[target](block) if isinstance(block, Transformer2DModel) else ():
            layer = innermost(block.get_submodule(name))
            width, width_in = layer.weight.shape[:2]
            layer_rank = min(rank_of(width, rank_ratio, rank), width_in)
            targets.append(TargetLayer(f"{path}.{name}", width, isinstance(layer, nn.Conv2d), layer_rank, width_in))
    if not targets:
        raise PersresError(
            f"{type(unet).__name__} has no transformer block; give the U-Net of a Stable Diffusion model"
        )
    return targets
