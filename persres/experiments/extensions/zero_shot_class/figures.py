"""The figure of the macro class: how often each way is right, and how often at each confidence.

Beside persres.experiments.extensions.zero_shot_class.measure and not in it, because that module's digest belongs to its figures' numbers, which a picture of them
does not change. What it draws itself is replaced by this (persres.experiments.extensions.redrawn).
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no screen on an agent
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from persres.experiments.evidence.figures import save


def accuracy_figure(summary: dict, titles: dict[str, str], path: Path) -> None:
    """Left: each way with its interval, ``titles`` by way; right: right against confidence, the number of sets beside each point."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.6), layout="constrained", width_ratios=(3, 2))
    rows = summary["accuracy"]
    for y, row in enumerate(reversed(rows)):
        colour = "tab:red" if row["way"].startswith("found") else "tab:blue"
        left.plot([row["low"], row["high"]], [y, y], color=colour)
        left.plot(row["mean"], y, "o", color=colour)
    left.set_yticks(range(len(rows)), [f"{r['sets']}: {titles[r['way']]}" for r in reversed(rows)], fontsize=8)
    left.set(xlabel="right, with 95% interval", xlim=(min(row["low"] for row in rows) - 0.03, 1.03))
    left.grid(axis="x", alpha=0.3)
    _by_confidence(right, summary["confidence"])
    save(figure, path)


def _by_confidence(axis: Axes, bins: list[dict]) -> None:
    """Places side by side, since nearly all sets lie in the last two bins."""
    names = [f"{b['from']:g}–{b['to']:g}\n{b['n']} sets" for b in bins]
    places = range(len(bins))
    axis.plot(places, [b["confidence"] for b in bins], "_", color="black", markersize=26, label="its mean confidence")
    axis.plot(places, [b["accuracy"] for b in bins], "o", color="tab:red", label="right")
    for place, b in zip(places, bins, strict=True):
        beside = (
            16 if abs(b["accuracy"] - b["confidence"]) < 0.03 else 7
        )  # past the dash where it is at the same height
        axis.annotate(f"{b['accuracy']:.2f}", (place, b["accuracy"]), (beside, 0), textcoords="offset points", va="center", fontsize=9)  # fmt: skip
    axis.set_xticks(places, names, fontsize=9)
    axis.set(xlabel="confidence of the found class", ylim=(0.3, 1.05), xlim=(-0.5, len(bins) - 0.2))
    axis.grid(axis="y", alpha=0.3)
    axis.legend(loc="lower right", fontsize=9)
