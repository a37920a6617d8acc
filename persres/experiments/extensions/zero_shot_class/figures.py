"""The figure of the study ``zero_shot_class``: accuracy of each method, and accuracy by confidence."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # workers have no display
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from persres.experiments.evidence.figures import save

METHODS = {
    "nearest": "nearest noun (paper)",
    "encoder": "photos, prompts, WordNet",
    "zero_shot_1": "zero-shot, 1 photo",
    "zero_shot_2": "zero-shot, 2 photos",
    "zero_shot_5": "zero-shot, 5 photos",
}


def accuracy_figure(summary: dict, path: Path) -> None:
    """Draw each method's accuracy with its interval, and accuracy against confidence."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.6), layout="constrained", width_ratios=(3, 2))
    rows = summary["accuracy"]
    for y, row in enumerate(reversed(rows)):
        colour = "tab:red" if row["method"].startswith("zero_shot") else "tab:blue"
        left.plot([row["low"], row["high"]], [y, y], color=colour)
        left.plot(row["mean"], y, "o", color=colour)
    left.set_yticks(range(len(rows)), [f"{r['sets']}: {METHODS[r['method']]}" for r in reversed(rows)], fontsize=8)
    left.set(xlabel="accuracy, with 95% interval", xlim=(min(row["low"] for row in rows) - 0.03, 1.03))
    left.grid(axis="x", alpha=0.3)
    _by_confidence(right, summary["confidence"])
    save(figure, path)


def _by_confidence(axis: Axes, bins: list[dict]) -> None:
    """One column per bin, of equal width: nearly all sets lie in the last two."""
    names = [f"{b['from']:g}–{b['to']:g}\n{b['n']} sets" for b in bins]
    x = range(len(bins))
    axis.plot(x, [b["confidence"] for b in bins], "_", color="black", markersize=26, label="mean confidence")
    axis.plot(x, [b["accuracy"] for b in bins], "o", color="tab:red", label="accuracy")
    for column, b in zip(x, bins, strict=True):
        offset = 16 if abs(b["accuracy"] - b["confidence"]) < 0.03 else 7  # past the dash at the same height
        axis.annotate(f"{b['accuracy']:.2f}", (column, b["accuracy"]), (offset, 0), textcoords="offset points", va="center", fontsize=9)  # fmt: skip
    axis.set_xticks(x, names, fontsize=9)
    axis.set(xlabel="confidence of the zero-shot class", ylim=(0.3, 1.05), xlim=(-0.5, len(bins) - 0.2))
    axis.grid(axis="y", alpha=0.3)
    axis.legend(loc="lower right", fontsize=9)
