"""Where masks lie: intersection over union with the object's true mask, by masking, for scenes of three groups.

Scenes are noised to several t and one pass is made, as for the localisation of single blocks (persres.experiments.evidence.localisation). Maskings
were chosen on nameable scenes under the base model and are tested on the concepts, with their residual acting.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pandas as pd
import torch

from persres.experiments.evidence.localisation import STEPS, Case, attention_maps, half_mask_ceiling, iou, upsampled
from persres.models.diffusion import Diffusion
from persres.residuals.bank import ResidualBank
from persres.sampling.mask_config import AUTO, CONFIDENCE_WEIGHTED, PAPER, MaskConfig, blended, confidence

BEST = ("up_blocks.1.attentions.0",)  # needs true masks to be known (data/evidence/localisation.md)
MASK_CONFIGS: dict[str, MaskConfig] = {
    "ours_lag": PAPER,
    "own_otsu": MaskConfig("otsu"),
    "best_median": MaskConfig(source_blocks=BEST),
    "best_otsu": MaskConfig("otsu", source_blocks=BEST),
    "share_50": MaskConfig(source_blocks=CONFIDENCE_WEIGHTED),
    "share_30": MaskConfig("quantile", 0.3, CONFIDENCE_WEIGHTED),
    "share_20": MaskConfig("quantile", 0.2, CONFIDENCE_WEIGHTED),
    "auto": AUTO,
    "auto_disk": replace(AUTO, control="disk"),
    "disk_50": MaskConfig(control="disk"),
}
SHUFFLED = "auto, another scene's"  # broken on purpose: a good mask of the wrong picture
OFF = 0.12  # of the side: a centroid further than this from the middle is off-centre
GROUPS = ("in the middle", "off-centre", "beside another")


def masks_from_maps(maps: dict[str, torch.Tensor], mask_config: MaskConfig, side: int) -> list[torch.Tensor]:
    """Masks [n, side · side] of blocks' maps [n, pixels]: one where a map is shared, else each block's own, enlarged in squares."""
    square = {block: m.unflatten(1, (round(m.shape[1] ** 0.5),) * 2) for block, m in maps.items()}
    if not mask_config.shared:
        cut = [mask_config.mask(m.flatten(1), tuple(m.shape[1:])) for m in square.values()]
        return [upsampled(mask, side) for mask in cut]
    chosen = [m for block, m in square.items() if mask_config.is_source(block)]
    trust = [confidence(m) for m in chosen] if mask_config.source_blocks == CONFIDENCE_WEIGHTED else None
    return [mask_config.mask(blended(chosen, trust, (side, side)), (side, side))]


def scene_groups(case: Case, beside: list[bool]) -> list[str]:
    """Each scene's group. ``truth`` bool [n, s, s]."""
    n, side = len(case.truth), case.truth.shape[1]
    line = (torch.arange(side) - (side - 1) / 2) / side
    mass = case.truth.float() / case.truth.float().sum((1, 2), keepdim=True)
    across, down = (mass.sum(1) * line).sum(1), (mass.sum(2) * line).sum(1)
    off = (across.square() + down.square()).sqrt() > OFF
    return [GROUPS[2] if beside[i] else GROUPS[1] if off[i] else GROUPS[0] for i in range(n)]


@torch.no_grad()
def coverage_rows(
    diffusion: Diffusion, case: Case, token: str, bank: ResidualBank | None, labels: dict, beside: list[bool]
) -> Iterator[dict]:
    """A row per scene and masking: IoU and marked share, means over t; ``labels`` stand in every row."""
    truth, side, groups = (
        case.truth.flatten(1).to(diffusion.unet.device),
        case.truth.shape[1],
        scene_groups(case, beside),
    )
    ceiling = half_mask_ceiling(truth)
    found: dict[str, list[torch.Tensor]] = {}
    for t in STEPS:
        maps = attention_maps(diffusion, case, token, bank, t)
        for name, mask_config in MASK_CONFIGS.items():
            masks = masks_from_maps(maps, mask_config, side)
            found.setdefault(name, []).append(torch.stack([_measured(m, truth) for m in masks]).mean(0))
        moved = masks_from_maps(maps, AUTO, side)[0].roll(1, 0)
        found.setdefault(SHUFFLED, []).append(_measured(moved, truth))
    for name, parts in found.items():
        mean = torch.stack(parts).mean(0)
        for i, group in enumerate(groups):
            yield labels | {"masking": name, "scene": i, "group": group, "iou": float(mean[0, i]), "area": float(mean[1, i]),
                            "object_area": float(truth[i].double().mean()), "ceiling": float(ceiling[i])}  # fmt: skip


def _measured(masks: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """IoU and marked share, [2, n]."""
    return torch.stack([iou(masks, truth), masks.double().mean(1)])


def by_group(rows: pd.DataFrame) -> dict[str, dict[str, dict[str, float]]]:
    """set -> masking -> group (and ``all``) -> mean IoU; and ``area``, the mean marked share."""
    found: dict = {}
    for (which, mask_config), part in rows.groupby(["set", "masking"], sort=False):
        means = part.groupby("group")["iou"].mean()
        cells = {group: round(float(means[group]), 4) for group in GROUPS if group in means}
        cells |= {"all": round(float(part["iou"].mean()), 4), "area": round(float(part["area"].mean()), 4)}
        found.setdefault(which, {})[mask_config] = cells
    return found
