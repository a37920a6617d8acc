"""Aggregate score rows, one per image: means per concept, then over concepts, with bootstrap intervals."""

from __future__ import annotations

import numpy as np
import pandas as pd

MIN_FOR_INTERVAL = 5  # concepts; fewer are too few for an interval or a test


def bootstrap_interval(values: np.ndarray, rounds: int, seed: int) -> tuple[float, float]:
    """95% percentile interval of the mean, resampling concepts (scipy.stats.bootstrap). NaN below five concepts."""
    if len(values) < MIN_FOR_INTERVAL or np.isnan(values).any():
        return float("nan"), float("nan")
    if np.ptp(values) == 0:  # nothing to resample: scipy would warn and give NaN
        return float(values[0]), float(values[0])
    from scipy.stats import bootstrap

    rng = np.random.default_rng(seed)
    interval = bootstrap((values,), np.mean, n_resamples=rounds, method="percentile", vectorized=True, rng=rng)
    return float(interval.confidence_interval.low), float(interval.confidence_interval.high)


def ratio_interval(above: np.ndarray, below: np.ndarray, rounds: int, seed: int) -> tuple[float, float]:
    """95% percentile interval of mean(above) / mean(below), resampling concepts in pairs. NaN below five concepts."""
    if len(above) < MIN_FOR_INTERVAL or np.isnan(above).any() or np.isnan(below).any():
        return float("nan"), float("nan")
    rows = np.random.default_rng(seed).integers(len(above), size=(rounds, len(above)))
    low, high = np.percentile(above[rows].mean(1) / below[rows].mean(1), [2.5, 97.5])
    return float(low), float(high)


def per_concept(rows: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Mean of each column by config and concept."""
    return rows.groupby(["config", "concept"], sort=False)[columns].mean().reset_index()


def config_table(rows: pd.DataFrame, columns: list[str], rounds: int, seed: int) -> pd.DataFrame:
    """One row per config: means over concepts of per-concept means, each with ``_low`` and ``_high``."""
    table = []
    for config, part in per_concept(rows, columns).groupby("config", sort=False):
        row: dict[str, object] = {"config": config}
        for column in columns:
            values = part[column].to_numpy()
            row[column] = float(values.mean())
            row[f"{column}_low"], row[f"{column}_high"] = bootstrap_interval(values, rounds, seed)
        table.append(row)
    return pd.DataFrame(table)


def sign_flip_p(values: np.ndarray, rounds: int, seed: int) -> float:
    """Two-sided p of the paired sign-flip test (scipy.stats.permutation_test), exact up to ``rounds`` flips.

    NaN below five concepts, where p cannot fall under .05."""
    if len(values) < MIN_FOR_INTERVAL or np.isnan(values).any():
        return float("nan")
    from scipy.stats import permutation_test

    # With "samples" and one sample scipy flips the signs of its values.
    options = {"permutation_type": "samples", "vectorized": True, "n_resamples": rounds}
    return float(permutation_test((values,), np.mean, **options, rng=np.random.default_rng(seed)).pvalue)


def difference(
    rows: pd.DataFrame, columns: list[str], pair: tuple[str, str], rounds: int, seed: int
) -> dict[str, object]:
    """Paired difference (first minus second config) over the concepts that both have, with intervals, sign-flip p and what the test can find."""
    means = per_concept(rows, columns).set_index(["config", "concept"])
    one, two = (means.loc[name] for name in pair)
    shared = one.index.intersection(two.index)
    row: dict[str, object] = {"config": pair[0], "against": pair[1], "concepts": len(shared)}
    for column in columns:
        values = (one.loc[shared, column] - two.loc[shared, column]).to_numpy()
        row[column] = float(values.mean())
        row[f"{column}_low"], row[f"{column}_high"] = bootstrap_interval(values, rounds, seed)
        row[f"{column}_p"] = sign_flip_p(values, rounds, seed)
        row[f"{column}_detectable"] = detectable_difference(values)
    return row


def detectable_difference(values: np.ndarray, power: float = 0.8, level: float = 0.05) -> float:
    """The smallest mean difference that a two-sided paired test finds with this power, given the spread of these differences over concepts.

    By the paired t test, which the sign-flip test equals for this purpose. NaN below five concepts.
    """
    if len(values) < MIN_FOR_INTERVAL or np.isnan(values).any():
        return float("nan")
    from scipy.stats import t

    degrees = len(values) - 1
    return float((t.ppf(1 - level / 2, degrees) + t.ppf(power, degrees)) * values.std(ddof=1) / np.sqrt(len(values)))
