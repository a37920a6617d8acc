"""From one row per image to tables: per concept first, then over concepts, with bootstrap intervals."""

from __future__ import annotations

import numpy as np
import pandas as pd

SCORES = ("clip_text", "clip_image", "dino")
CLASSIFIER_SCORES = ("dino_object", "followed", "background_change")  # only where a judge reads the pictures
FEWEST_FOR_INTERVAL = 5  # concepts; an interval over fewer says more than they know


def score_columns(rows: pd.DataFrame) -> list[str]:
    """The paper's scores, and what a judge adds where there is one."""
    return [*SCORES, *(c for c in CLASSIFIER_SCORES if c in rows and rows[c].notna().any())]


def bootstrap_interval(values: np.ndarray, rounds: int, seed: int) -> tuple[float, float]:
    """95% percentile interval of the mean, resampling concepts (scipy.stats.bootstrap). NaN below five concepts."""
    if len(values) < FEWEST_FOR_INTERVAL or np.isnan(values).any():
        return float("nan"), float("nan")
    if np.ptp(values) == 0:  # nothing to resample: scipy would warn and give NaN
        return float(values[0]), float(values[0])
    from scipy.stats import bootstrap

    found = bootstrap(
        (values,), np.mean, n_resamples=rounds, method="percentile", vectorized=True, rng=np.random.default_rng(seed)
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def per_concept(rows: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Mean of each column by (method, concept)."""
    return rows.groupby(["method", "concept"], sort=False)[columns].mean().reset_index()


def method_table(rows: pd.DataFrame, columns: list[str], rounds: int, seed: int) -> pd.DataFrame:
    """One row a method: means over concepts of per-concept means, each with ``_low`` and ``_high``."""
    table = []
    for method, part in per_concept(rows, columns).groupby("method", sort=False):
        row: dict[str, object] = {"method": method}
        for column in columns:
            values = part[column].to_numpy()
            row[column] = float(values.mean())
            row[f"{column}_low"], row[f"{column}_high"] = bootstrap_interval(values, rounds, seed)
        table.append(row)
    return pd.DataFrame(table)


def sign_flip_p(values: np.ndarray, rounds: int, seed: int) -> float:
    """Two-sided p of a paired mean difference of zero by flipping signs (scipy.stats.permutation_test); exact where there
    are no more flips than ``rounds``. NaN below five concepts, where it could not fall under .05."""
    if len(values) < FEWEST_FOR_INTERVAL or np.isnan(values).any():
        return float("nan")
    from scipy.stats import permutation_test

    # With "samples" and one sample the signs of its values are flipped.
    found = permutation_test(
        (values,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=rounds,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def difference(
    rows: pd.DataFrame, columns: list[str], method: str, against: str, rounds: int, seed: int
) -> dict[str, object]:
    """Paired difference of two methods over the concepts that both have, with intervals and the sign-flip test's p."""
    means = per_concept(rows, columns).set_index(["method", "concept"])
    one, two = means.loc[method], means.loc[against]
    shared = one.index.intersection(two.index)
    row: dict[str, object] = {"method": method, "against": against, "concepts": len(shared)}
    for column in columns:
        values = (one.loc[shared, column] - two.loc[shared, column]).to_numpy()
        row[column] = float(values.mean())
        row[f"{column}_low"], row[f"{column}_high"] = bootstrap_interval(values, rounds, seed)
        row[f"{column}_p"] = sign_flip_p(values, rounds, seed)
    return row
