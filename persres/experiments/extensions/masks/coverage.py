"""Intersection over union of masks with the object's true mask, for scenes of three groups.

Scenes are noised to several t; one U-Net pass gives the attention maps (persres.experiments.evidence.localisation). The mask
configs were chosen on nameable scenes under the base model and are tested on the concepts with their residual applied.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pandas as pd
import torch

from persres.experiments.evidence.localisation import STEPS, Case, attention_maps, half_mask_ceiling, iou, upsampled
from persres.models.diffusion import Diffusion
from persres.residuals.bank import ResidualBank
from persres.sampling.mask_config import AUTO, CONFIDENCE_WEIGHTED, PAPER, MaskConfig, blended, confidence

BEST = ("up_blocks.1.attentions.0",)  # chosen with true masks (data/evidence/localisation.md)
MASK_CONFIGS: dict[str, MaskConfig] = {
    "ours_lag": PAPER,
    "per_block_otsu": MaskConfig("otsu"),
    "best_median": MaskConfig(source_blocks=BEST),
    "best_otsu": MaskConfig("otsu", source_blocks=BEST),
    "share_50": MaskConfig(source_blocks=CONFIDENCE_WEIGHTED),
    "share_30": MaskConfig("quantile", 0.3, CONFIDENCE_WEIGHTED),
    "share_20": MaskConfig("quantile", 0.2, CONFIDENCE_WEIGHTED),
    "auto": AUTO,
    "auto_disk": replace(AUTO, control="disk"),
    "disk_50": MaskConfig(control="disk"),
}
SHUFFLED = "auto, another scene's"  # negative control: a good mask of the wrong image
OFF_CENTRE = 0.12  # of the side: a centroid further than this from the middle is off-centre
GROUPS = ("centred", "off-centre", "second object")


@dataclass(frozen=True)
class Scenes:
    """Scenes of one set: ``labels`` are copied to every row, ``second`` says which scenes have a second object, ``bank`` is applied."""

    case: Case
    second: list[bool]
    bank: ResidualBank | None = None
    labels: dict = field(default_factory=dict)


def masks_from_maps(maps: dict[str, torch.Tensor], mask_config: MaskConfig, side: int) -> list[torch.Tensor]:
    """Return masks [n, side · side] from blocks' maps [n, pixels]: one if blocks share a map, else one per block, upsampled."""
    square = {block: m.unflatten(1, (round(m.shape[1] ** 0.5),) * 2) for block, m in maps.items()}
    if not mask_config.shared:
        masks = [mask_config.mask(m.flatten(1), tuple(m.shape[1:])) for m in square.values()]
        return [upsampled(mask, side) for mask in masks]
    sources = [m for block, m in square.items() if mask_config.is_source(block)]
    trust = [confidence(m) for m in sources] if mask_config.source_blocks == CONFIDENCE_WEIGHTED else None
    return [mask_config.mask(blended(sources, trust, (side, side)), (side, side))]


def scene_groups(case: Case, second: list[bool]) -> list[str]:
    """Return each scene's group, one of :data:`GROUPS`; ``second``: whether it has a second object."""
    n, side = len(case.truth), case.truth.shape[1]
    line = (torch.arange(side) - (side - 1) / 2) / side
    mass = case.truth.float() / case.truth.float().sum((1, 2), keepdim=True)
    across, down = (mass.sum(1) * line).sum(1), (mass.sum(2) * line).sum(1)
    off = (across.square() + down.square()).sqrt() > OFF_CENTRE
    return [GROUPS[2] if second[i] else GROUPS[1] if off[i] else GROUPS[0] for i in range(n)]


@torch.no_grad()
def coverage_rows(diffusion: Diffusion, scenes: Scenes) -> Iterator[dict]:
    """Yield a row per mask config and scene: IoU and marked share, means over t."""
    case = scenes.case
    truth, groups = case.truth.flatten(1).to(diffusion.unet.device), scene_groups(case, scenes.second)
    ceiling = half_mask_ceiling(truth)
    for name, measured in _coverage(diffusion, scenes, truth).items():
        mean = torch.stack(measured).mean(0)
        for i, group in enumerate(groups):
            yield scenes.labels | {"mask": name, "scene": i, "group": group, "iou": float(mean[0, i]), "area": float(mean[1, i]),
                                   "object_area": float(truth[i].double().mean()), "ceiling": float(ceiling[i])}  # fmt: skip


def _coverage(diffusion: Diffusion, scenes: Scenes, truth: torch.Tensor) -> dict[str, list[torch.Tensor]]:
    """IoU and marked share [2, n] of each mask config at each t."""
    measured: dict[str, list[torch.Tensor]] = {}
    side = scenes.case.truth.shape[1]
    for t in STEPS:
        maps = attention_maps(diffusion, scenes.case, scenes.bank, t)
        for name, mask_config in MASK_CONFIGS.items():
            masks = masks_from_maps(maps, mask_config, side)
            measured.setdefault(name, []).append(torch.stack([_iou_and_area(m, truth) for m in masks]).mean(0))
        shuffled = masks_from_maps(maps, AUTO, side)[0].roll(1, 0)
        measured.setdefault(SHUFFLED, []).append(_iou_and_area(shuffled, truth))
    return measured


def _iou_and_area(masks: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    return torch.stack([iou(masks, truth), masks.double().mean(1)])


def by_group(rows: pd.DataFrame) -> dict[str, dict[str, dict[str, float]]]:
    """Return set -> mask config -> mean IoU by group and over ``all``, and the mean marked ``area``."""
    result: dict = {}
    for (which, mask), part in rows.groupby(["set", "mask"], sort=False):
        means = part.groupby("group")["iou"].mean()
        cells = {group: round(float(means[group]), 4) for group in GROUPS if group in means}
        cells |= {"all": round(float(part["iou"].mean()), 4), "area": round(float(part["area"].mean()), 4)}
        result.setdefault(which, {})[mask] = cells
    return result
