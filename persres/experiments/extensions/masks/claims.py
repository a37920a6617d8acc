"""Claims of the study ``masks`` with their margins, and its negative controls."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from persres.experiments.extensions.masks.coverage import GROUPS, SHUFFLED
from persres.experiments.extensions.sampled import paired, ratio
from persres.experiments.extensions.verdicts import at_most, claim, verdicts

SHARES = (10, 20, 30, 40, 50)
MAX_LOSS = 0.02  # DINO that a mask may cost
QUARTER = 0.25  # of the unmasked residual's background change


def claims(rows: pd.DataFrame, coverage: pd.DataFrame) -> Iterator[dict]:
    """Yield every claim. ``rows``: scored images; ``coverage``: rows of persres.experiments.extensions.masks.coverage."""
    yield from _coverage_claims(coverage, "auto")
    yield from _identity_claims(rows, "auto")
    for share in SHARES:
        values = paired(rows, "dino", f"share_{share}", f"disk_{share}")
        yield claim(f"share_{share}", f"{share}% by attention retains more identity than a disk of {share}%", "dino", values, 0.0)  # fmt: skip
    for name, group, text in (("off_centre", GROUPS[1], "off-centre"), ("second_object", GROUPS[2], "next to a second object")):  # fmt: skip
        values = paired(rows, "dino", "auto", "auto_disk", rows["group"] == group)
        yield claim(f"disk_{name}", f"{text}, auto retains more identity than a disk of equal area", "dino", values, 0.02)  # fmt: skip


def _iou(coverage: pd.DataFrame, mask: str, column: str = "iou", single: bool = True) -> np.ndarray:
    """Per-concept means on scenes with a single object or with a second one, [concepts]."""
    part = coverage[(coverage["set"] == "concepts") & (coverage["mask"] == mask)]
    part = part[(part["group"] != GROUPS[2]) if single else (part["group"] == GROUPS[2])]
    return part.groupby("concept")[column].mean().to_numpy()


def _coverage_claims(coverage: pd.DataFrame, name: str) -> Iterator[dict]:
    values = _iou(coverage, name)
    yield claim("iou", "auto reaches IoU .70 with the true masks of the concepts", "iou", values - 0.70, 0.0)
    over = values - _iou(coverage, "auto", "ceiling")
    yield claim("iou_ceiling", "auto exceeds the best IoU of any mask of half the image", "iou", over, 0.10)
    yield claim("iou_disk", "auto exceeds the IoU of a disk of equal area", "iou", values - _iou(coverage, "auto_disk"), 0.05)  # fmt: skip
    both = _iou(coverage, name, single=False) - _iou(coverage, "auto_disk", single=False)
    yield claim("iou_second_object", "next to a second object, auto exceeds the IoU of a disk of equal area", "iou", both, 0.05)  # fmt: skip


def _identity_claims(rows: pd.DataFrame, name: str) -> Iterator[dict]:
    lost = paired(rows, "dino", "ours", name)
    yield at_most("identity_retained", f"auto loses at most {MAX_LOSS} of the unmasked residual's identity", "dino", lost, MAX_LOSS)  # fmt: skip
    share = ratio(rows, "background_change", name, "ours")
    yield at_most("quarter", "auto makes at most a quarter of its background change", "background_change", share, QUARTER)  # fmt: skip
    yield claim("median", "auto retains more identity than the paper's masks", "dino", paired(rows, "dino", name, "ours_lag"), 0.01)  # fmt: skip
    less = paired(rows, "background_change", "ours_lag", name)
    yield claim("median_background", "auto changes less of the background than the paper's masks", "background_change", less, 0.005)  # fmt: skip
    for other, text in (("auto_disk", "a disk of equal area"), ("auto_random", "a random mask of equal area"), ("weaker", "a weaker residual")):  # fmt: skip
        yield claim(other, f"auto retains more identity than {text}", "dino", paired(rows, "dino", name, other), 0.01)


def negative_controls(rows: pd.DataFrame, coverage: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Return verdicts on the claims that must fail with inverted masks, and with another scene's masks."""
    original = list(claims(rows, coverage))
    inverted, shuffled = list(_identity_claims(rows, "auto_inverted")), list(_coverage_claims(coverage, SHUFFLED))
    names = ("identity_retained", "median", "auto_disk", "auto_random", "weaker", "quarter")
    return {
        "masks inverted": verdicts(original, inverted, names),
        "masks of another scene": verdicts(original, shuffled, ("iou", "iou_ceiling", "iou_disk")),
    }
