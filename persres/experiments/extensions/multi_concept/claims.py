"""Claims of the study ``multi_concept`` with their margins, and its negative controls."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd

from persres.experiments.extensions.verdicts import at_most, claim, verdicts

CLAIMS = (
    ("worse_added", "our masks raise the worse identity over adding both residuals", "worse", "ours", "added", 0.05),
    ("contrast_added", "our masks raise identity contrast over adding both residuals", "contrast", "ours", "added", 0.08),
    ("leakage_added", "our masks lower identity leakage against adding both residuals", "leakage", "added", "ours", 0.03),
    ("background_added", "our masks change less of the background than adding both residuals", "background_change", "added", "ours", 0.005),
    ("worse_base", "our masks raise the worse identity over the base model", "worse", "ours", "base", 0.05),
    ("worse_merged", "our masks raise the worse identity over Custom Diffusion's merge", "worse", "ours", "merged", 0.03),
    ("contrast_merged", "our masks raise identity contrast over Custom Diffusion's merge", "contrast", "ours", "merged", 0.05),
    ("worse_halves", "our masks raise the worse identity over image halves in prompt order", "worse", "ours", "halves", 0.03),
    ("contrast_halves_best", "our masks raise identity contrast over the better order of halves", "contrast", "ours", "halves_best", 0.03),
    ("contrast_one_mask", "separate masks raise identity contrast over one shared mask", "contrast", "ours", "one_mask", 0.05),
    ("contrast_per_block", "blended maps raise identity contrast over each block's map at its median", "contrast", "ours", "per_block_median", 0.03),
    ("mask_accuracy", "our masks are more accurate than halves", "mask_accuracy", "ours", "halves", 0.1),
    ("worse_halves_best", "our masks raise the worse identity over the better order of halves", "worse", "ours", "halves_best", 0.0),
)  # fmt: skip
MAX_MISSING = 0.05  # accepted increase of the share of missing objects
NEGATIVE_CONTROLS = {
    "masks swapped": (
        "swapped",
        ("worse_added", "contrast_added", "leakage_added", "worse_base", "contrast_one_mask", "mask_accuracy"),
    ),
    "the second concept's residual zeroed": ("one_zeroed", ("worse_added", "worse_base")),
}


def by_pair(rows: pd.DataFrame, column: str, more: str, less: str) -> np.ndarray:
    """Return per-pair means of config ``more`` minus those of ``less``, [pairs]."""
    means = rows.pivot_table(index="group", columns="config", values=column, aggfunc="mean", dropna=False)
    return (means[more] - means[less]).to_numpy()


def claims(rows: pd.DataFrame, ours: str = "ours", names: tuple[str, ...] = ()) -> list[dict]:
    """Return all claims, or the named ones, with config ``ours`` in place of ours."""
    difference = partial(by_pair, rows)
    result = [
        claim(name, text, column, difference(column, *(ours if m == "ours" else m for m in (more, less))), margin)
        for name, text, column, more, less, margin in CLAIMS
        if not names or name in names
    ]
    if not names:
        text = f"the share of missing objects rises by less than {MAX_MISSING:.0%} over the base model"
        result.append(at_most("missing_base", text, "missing", difference("missing", ours, "base"), MAX_MISSING))
    return result


def negative_controls(rows: pd.DataFrame, original: list[dict]) -> dict[str, dict[str, str]]:
    """Return verdicts on the claims that must fail; ``original``: the claims as measured."""
    return {
        what: verdicts(original, claims(rows, config, names), names)
        for what, (config, names) in NEGATIVE_CONTROLS.items()
    }
