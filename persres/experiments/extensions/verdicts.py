"""Claims of the parts, in the form that the pages and tests know, and the sentence on how their margins came about."""

from __future__ import annotations

import numpy as np

from persres.metrics.summary import bootstrap_interval

ROUNDS = 10_000


def claim(name: str, says: str, column: str, values: np.ndarray, margin: float) -> dict:
    """A paired difference, one value a concept (or subject, pair, scene): its mean, 95% bootstrap interval over them, and whether
    it holds, that is reaches ``margin`` with the interval above zero. NaNs are a mistake of the caller's and never hold."""
    low, high = bootstrap_interval(np.asarray(values, dtype=float), ROUNDS, 0)
    effect = float(np.mean(values))
    return {"claim": name, "says": says, "column": column, "effect": effect, "low": low, "high": high, "margin": margin,
            "holds": bool(effect >= margin and low > 0)}  # fmt: skip


def at_most(name: str, says: str, column: str, values: np.ndarray, bound: float) -> dict:
    """A claim that a loss is small: the mean paired loss and its interval's upper end stay below ``bound``. Its ``effect`` is what is
    left to the bound, so that it reads as the others do."""
    return claim(name, says, column, bound - np.asarray(values, dtype=float), 0.0)


def verdict(unbroken: dict, when_broken: dict) -> str:
    """``falls``, ``still holds``, or ``not held unbroken``: a claim that does not hold of the whole method proves nothing."""
    if not unbroken["holds"]:
        return "not held unbroken"
    return "still holds" if when_broken["holds"] else "falls"
