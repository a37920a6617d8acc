"""Claims of the studies: a paired difference with a margin, and the verdict on a negative control."""

from __future__ import annotations

import numpy as np

from persres.metrics.summary import bootstrap_interval

ROUNDS = 10_000


def claim(name: str, text: str, column: str, values: np.ndarray, margin: float) -> dict:
    """Return a claim about paired differences, one value per concept (or subject, pair, scene).

    ``effect`` is their mean, ``low`` and ``high`` the 95% bootstrap interval. The claim holds if the effect reaches ``margin`` and
    the interval lies above zero. A NaN among the values makes it fail.
    """
    low, high = bootstrap_interval(np.asarray(values, dtype=float), ROUNDS, 0)
    effect = float(np.mean(values))
    return {"claim": name, "text": text, "column": column, "effect": effect, "low": low, "high": high, "margin": margin,
            "holds": bool(effect >= margin and low > 0)}  # fmt: skip


def at_most(name: str, text: str, column: str, values: np.ndarray, bound: float) -> dict:
    """Return the claim that a loss stays below ``bound``. ``effect`` is the bound minus the mean loss, so the margin is 0."""
    return claim(name, text, column, bound - np.asarray(values, dtype=float), 0.0)


def verdict(original: dict, control: dict) -> str:
    """Return ``fails`` or ``still holds`` for a claim under a negative control; ``never held`` if it did not hold before."""
    if not original["holds"]:
        return "never held"
    return "still holds" if control["holds"] else "fails"


def verdicts(original: list[dict], control: list[dict], names: tuple[str, ...]) -> dict[str, str]:
    """Return the verdict of each named claim; both lists hold claims by these names."""
    before, after = ({c["claim"]: c for c in claims} for claims in (original, control))
    return {name: verdict(before[name], after[name]) for name in names}
