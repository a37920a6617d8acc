"""How near a config comes to the ground truth."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from persres.metrics.ceiling import DISTANCES, SHARES, ceiling_row
from persres.metrics.scores import SCORES
from persres.metrics.summary import ratio_interval

CONCEPTS = [f"c{i}" for i in range(8)]


def rows(**values: float) -> pd.DataFrame:
    """One row per config and concept; every score is the config's value, with a spread over concepts that all configs share."""
    return pd.DataFrame(
        [
            {"config": config, "concept": concept} | dict.fromkeys(SCORES, value + 0.01 * i)
            for config, value in values.items()
            for i, concept in enumerate(CONCEPTS)
        ]
    )


@pytest.mark.parametrize(
    ("value", "share"), [(0.2, 0.0), (0.5, 0.5), (0.65, 0.75), (0.8, 1.0), (0.9, 7 / 6), (0.1, -1 / 6)]
)
def test_a_share_is_the_way_from_the_base_model_to_the_truth(value, share):
    row = ceiling_row(rows(base=0.2, ours=value, truth=0.8), "ours", ("base", "truth"), 200, 0)
    for name in SHARES:
        assert row[f"{name}_share"] == pytest.approx(share)
        assert row[f"{name}_share_low"] == pytest.approx(share), "concepts with the same way give no spread"
    for name in DISTANCES:
        assert row[f"{name}_distance"] == pytest.approx(value - 0.8)


def test_a_share_is_a_ratio_of_means_not_a_mean_of_ratios():
    table = rows(base=0.0, ours=0.0, truth=0.0)
    for name in SHARES:
        table[name] = 0.0
        table.loc[table["config"] == "truth", name] = [0.1, *[1.0] * 7]
        table.loc[table["config"] == "ours", name] = [0.2, *[0.5] * 7]
    row = ceiling_row(table, "ours", ("base", "truth"), 2000, 0)
    assert row["dino_share"] == pytest.approx((0.2 + 3.5) / 7.1)
    assert row["dino_share_low"] < row["dino_share"] < row["dino_share_high"]


def test_scores_that_no_row_has_are_left_out():
    table = rows(base=0.2, ours=0.5, truth=0.8).assign(dino_object=np.nan)
    row = ceiling_row(table, "ours", ("base", "truth"), 50, 0)
    assert "dino_object_share" not in row and "dino_share" in row


def test_an_interval_of_a_ratio_resamples_pairs():
    rng = np.random.default_rng(0)
    below = rng.uniform(1, 5, 30)
    low, high = ratio_interval(below / 2, below, 500, 0)
    assert low == pytest.approx(0.5) and high == pytest.approx(0.5), (
        "numerator and denominator of one concept stay together"
    )
    assert np.isnan(ratio_interval(below[:4], below[:4], 500, 0)).all()
    assert np.isnan(ratio_interval(np.array([np.nan, *below[1:]]), below, 500, 0)).all()
