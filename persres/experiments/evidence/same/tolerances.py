"""How much may differ, set before anything was compared, from what the claims could bear (persres/experiments/evidence/claims.py, docs/results.md,
docs/beyond.md).

- **Scores**, 0.002 of the mean of a method. A claim is a difference of two methods, so it moves by 0.004 at most, a tenth of what most hold
  by: LAG's cost in identity is .023, the smallest difference that holds beside a margin (our masks over the median's, DINO) is .020
  for a margin of .010, and the narrowest interval's end of a claim on LAG's text alignment is .010.
  ``background_change`` 0.0002: claims on it have margins from .002, and identity *per change* divides by values from .012, so that it
  moves by a sixtieth. ``contrast``, ``worse`` and ``leakage`` of several concepts 0.001: one claim there holds by .0027.
  ``effect``, the claims of a cut-down run themselves, 0.004: two methods' worth. A single verdict of the judge (``followed``,
  ``missing``; ``found``, a class) is more than that among so few pictures: none may change.
- **Where masks lie** (``auc``, ``iou``, ``area``, ``mask_right``), 0.005 of a masking's or block's mean: the claims' margins are .05 and more.
- **Losses** 0.001, of the order of what the rule of when to stop looks at (a tenth of a fall of about .05, that is .005);
  ``stopped_after`` 0 steps.
- **Pictures**, mean difference 0.5 of 255 levels over a method's pictures, less than the rounding of a picture to levels itself can make (0.5); and
  5% of all pictures may differ by more than 2 levels: LAG's masks are cut at a threshold, a pixel on it flips by a rounding, and the picture
  follows.
- **Masks**, mean difference 0.005 of the picture over a method's: a fiftieth of what a thing fills here (a quarter).
- **Tensors**, relative norm of the difference 1e-3 in the mean over all and 2e-2 in the worst: a residual that is off by 1e-3 has a thousandth of
  its identity (.22) to lose, .0002. A single one may be worse: Adam divides a gradient by its own size, so that where it is nearly 0 a rounding
  decides on the sign of a whole step.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from persres.errors import PersresError

FAR = 2.0  # levels: a picture that differs by more is seen to
TENSORS = {"tensors, mean": 1e-3, "tensors, worst": 2e-2}
PICTURES = {"pictures, levels": 0.5, f"pictures, share beyond {FAR:g} levels": 0.05, "masks": 0.005}
SCORES, OTHERWISE = 0.002, {
    "background_change": 0.0002, "contrast": 0.001, "worse": 0.001, "leakage": 0.001, "effect": 0.004, "found": 0.0,
    "auc": 0.005, "iou": 0.005, "area": 0.005, "mask_right": 0.005, "loss": 0.001, "stopped_after": 0.0,
}  # fmt: skip


def tolerance(measure: str) -> float:
    """Of a measure of :func:`measured`; a column of rows has its own or that of scores."""
    return (TENSORS | PICTURES | OTHERWISE).get(measure, SCORES)


def measured(table: pd.DataFrame) -> dict[str, tuple[float, str]]:
    """By measure, what is held against its tolerance and where it is the largest. ``table``: of
    :func:`persres.experiments.evidence.same.differences.differences`."""
    kinds = dict(tuple(table.groupby("kind", sort=False)))
    found: dict[str, tuple[float, str]] = {}
    if "tensors" in kinds:
        worst = kinds["tensors"].loc[kinds["tensors"]["value"].idxmax()]
        where = f"{worst['method']}/{worst['what']}"
        found |= dict(zip(TENSORS, [(kinds["tensors"]["value"].mean(), where), (worst["value"], where)], strict=True))
    for kind, measure in (("pictures", "pictures, levels"), ("masks", "masks")):
        if kind in kinds:
            found[measure] = _largest(kinds[kind])
    if "pictures" in kinds:
        far = kinds["pictures"]["value"] > FAR
        where = "none" if not far.any() else "{method}/{what}".format(**kinds["pictures"][far].iloc[0])
        found[f"pictures, share beyond {FAR:g} levels"] = (far.mean(), where)
    if "rows" in kinds:
        found |= {column: _largest(part) for column, part in kinds["rows"].groupby("column", sort=False)}
    return {measure: (float(value), where) for measure, (value, where) in found.items()}


def _largest(part: pd.DataFrame) -> tuple[float, str]:
    """The largest mean of a method, whichever its sign."""
    means = part.groupby("method", sort=False)["value"].mean().abs()
    return means.max(), str(means.idxmax())


def worst_rows(table: pd.DataFrame) -> dict[str, float]:
    """By column, the largest difference of a single row: recorded, and held against nothing, for claims rest on means."""
    rows = table[table["kind"] == "rows"]
    return {column: float(part["value"].abs().max()) for column, part in rows.groupby("column", sort=False)}


def check(name: str, found: dict[str, tuple[float, str]]) -> None:
    """Raises PersresError naming the first measure of a subject that is beyond its tolerance, and where."""
    for measure, (value, where) in found.items():
        if not np.isfinite(value) or value > tolerance(measure):
            raise PersresError(
                f"{name}: {measure} differs by {value:.3g} ({where}), more than {tolerance(measure):g}: this code computes something else;"
                " measure again"
            )
