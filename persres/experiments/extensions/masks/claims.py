"""What is claimed of the masks, with margins, and what must fall when they are broken."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from persres.experiments.extensions.masks.coverage import GROUPS, SHUFFLED
from persres.experiments.extensions.sampled import paired, ratio
from persres.experiments.extensions.verdicts import at_most, claim, verdict

SHARES = (10, 20, 30, 40, 50)
KEPT = 0.02  # DINO that a mask may cost
QUARTER = 0.25  # of the unmasked residual's background change


def _iou(lying: pd.DataFrame, mask_config: str, column: str = "iou", alone: bool = True) -> np.ndarray:
    """Per-concept means on the concepts' scenes, alone or beside another object."""
    part = lying[(lying["set"] == "concepts") & (lying["masking"] == mask_config)]
    part = part[(part["group"] != GROUPS[2]) if alone else (part["group"] == GROUPS[2])]
    return part.groupby("concept")[column].mean().to_numpy()


def claims(rows: pd.DataFrame, lying: pd.DataFrame) -> Iterator[dict]:
    """Every claim: of where the masks lie (``lying``: rows of persres.experiments.extensions.masks.coverage) and of the pictures (``rows``)."""
    yield from _place_claims(lying, "auto")
    yield from _identity_claims(rows, "auto")
    for share in SHARES:
        values = paired(rows, "dino", f"share_{share}", f"disk_{share}")
        yield claim(f"share_{share}", f"{share}% by attention keeps more than a disk of {share}%", "dino", values, 0.0)
    off, beside = (rows["group"] == g for g in GROUPS[1:])
    for name, where, says in (
        ("off", off, "where the thing stands off-centre"),
        ("beside", beside, "beside a second object"),
    ):
        values = paired(rows, "dino", "auto", "auto_disk", where)
        yield claim(f"disk_{name}", f"{says} it keeps more than a disk of its area", "dino", values, 0.02)


def _place_claims(lying: pd.DataFrame, name: str) -> Iterator[dict]:
    iou = _iou(lying, name)
    yield claim("iou", "its masks reach IoU .70 with the true ones on the concepts", "iou", iou - 0.70, 0.0)
    over = iou - _iou(lying, "auto", "ceiling")
    yield claim("iou_ceiling", "and pass what any half of the picture can reach", "iou", over, 0.10)
    yield claim("iou_disk", "and a disk of their own area", "iou", iou - _iou(lying, "auto_disk"), 0.05)
    both = _iou(lying, name, alone=False) - _iou(lying, "auto_disk", alone=False)
    yield claim("iou_beside", "and do so beside a second object", "iou", both, 0.05)


def _identity_claims(rows: pd.DataFrame, name: str) -> Iterator[dict]:
    lost = paired(rows, "dino", "ours", name)
    yield at_most("kept", f"identity of the unmasked residual is kept (at most {KEPT} lost)", "dino", lost, KEPT)
    share = ratio(rows, "background_change", name, "ours")
    yield at_most("quarter", "at a quarter of its background change", "background_change", share, QUARTER)
    yield claim("median", "it keeps more than the paper's masks", "dino", paired(rows, "dino", name, "ours_lag"), 0.01)
    less = paired(rows, "background_change", "ours_lag", name)
    yield claim("median_background", "and changes less of the background", "background_change", less, 0.005)
    for other, says in (("auto_disk", "a disk"), ("auto_random", "a random choice")):
        values = paired(rows, "dino", name, other)
        yield claim(other, f"it keeps more than {says} of its own area", "dino", values, 0.01)
    values = paired(rows, "dino", name, "weaker")
    yield claim("weaker", "and more than a weaker residual", "dino", values, 0.01)


def negative_controls(rows: pd.DataFrame, lying: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Claims that must fall when auto's masks are inverted, and when they are another scene's."""
    whole = {c["claim"]: c for c in claims(rows, lying)}
    inverted = {c["claim"]: c for c in _identity_claims(rows, "auto_inverted")}
    moved = {c["claim"]: c for c in _place_claims(lying, SHUFFLED)}
    fell = ("kept", "median", "auto_disk", "auto_random", "weaker", "quarter")
    return {
        "masks inverted": {name: verdict(whole[name], inverted[name]) for name in fell},
        "masks of another scene": {
            name: verdict(whole[name], moved[name]) for name in ("iou", "iou_ceiling", "iou_disk")
        },
    }
