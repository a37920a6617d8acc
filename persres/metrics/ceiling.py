"""How near a config comes to the ground truth: what a perfect image would score.

Only for datasets whose renderer can draw the right answer (``ground_truth`` in a sampling config). Identity is a share of the way from the
base model to the ground truth, text alignment a distance to it: a perfect image may score lower than the base model's.
"""

from __future__ import annotations

import pandas as pd

from persres.metrics.scores import SCORES
from persres.metrics.summary import bootstrap_interval, ratio_interval

SHARES = tuple(score.name for score in SCORES.values() if score.identity)
DISTANCES = ("clip_text",)


def ceiling_row(rows: pd.DataFrame, config: str, ends: tuple[str, str], rounds: int, seed: int) -> dict[str, object]:
    """``<score>_share`` for identity, (config − base) / (truth − base), and ``<score>_distance`` for text alignment, config − truth; each with
    ``_low`` and ``_high``.

    ``ends``: the base model's config and the ground truth's. ``rows`` hold the same images of all three. A share is a ratio of means over
    concepts, and its interval resamples the concepts.
    """
    scores = [name for name in (*SHARES, *DISTANCES) if rows[name].notna().any()]
    means = rows.groupby(["config", "concept"], sort=False)[scores].mean()
    here, base, truth = (means.loc[name] for name in (config, *ends))
    row: dict[str, object] = {"config": config}
    for name in scores:
        if name in SHARES:
            gained, possible = ((part[name] - base[name]).to_numpy() for part in (here, truth))
            _add(row, f"{name}_share", gained.mean() / possible.mean(), ratio_interval(gained, possible, rounds, seed))
        else:
            distance = (here[name] - truth[name]).to_numpy()
            _add(row, f"{name}_distance", distance.mean(), bootstrap_interval(distance, rounds, seed))
    return row


def _add(row: dict[str, object], name: str, value: float, interval: tuple[float, float]) -> None:
    row[name] = float(value)
    row[f"{name}_low"], row[f"{name}_high"] = interval
