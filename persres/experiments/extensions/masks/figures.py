"""Figures of the study ``masks``: identity against background change, and IoU with the true masks."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # workers have no display
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from persres.experiments.evidence.figures import Label, label_points, save

SHARES = (10, 20, 30, 40, 50)
FAMILIES = {
    "a share by attention": ([f"share_{s}" for s in SHARES], "tab:blue"),
    "a disk of that share": ([f"disk_{s}" for s in SHARES], "tab:orange"),
}
SINGLE = ("auto", "auto_disk", "soft", "smooth", "ours", "ours_lag", "per_block_otsu", "auto_random", "weaker")
CROWDED = ("soft", "smooth")  # labelled in the right panel only
OURS = "tab:red"
DETAIL = 0.021, 0.04  # the right panel: background change up to here, identity down to this far below the best


def frontier_figure(summary: dict, path: Path) -> None:
    """Draw identity over the base model against background change; the right panel enlarges the upper left corner."""
    scores = summary["configs"]
    base = scores["base"]["dino"]["mean"]
    names = [*SINGLE, *(n for family, _ in FAMILIES.values() for n in family)]
    points = {n: (scores[n]["background_change"]["mean"], scores[n]["dino"]["mean"] - base) for n in names}
    best = max(y for _, y in points.values())
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.2), layout="constrained")
    left.set(title="all configs", xlim=(0, 0.054), ylim=(min(y for _, y in points.values()) - 0.01, best + 0.015))
    right.set(title="upper left corner, enlarged", xlim=(0.0085, DETAIL[0]), ylim=(best - DETAIL[1], best + 0.008))
    labels = [(axis, _draw_points(axis, points)) for axis in (left, right)]
    left.set_ylabel("DINO over the base model")
    left.legend(loc="lower right")
    for axis, ours in labels:
        label_points(axis, [label for label in ours if axis is right or label[0] not in CROWDED])
    save(figure, path)


def _draw_points(axis: Axes, points: dict[str, tuple[float, float]]) -> list[Label]:
    labels: list[Label] = []
    for name in SINGLE:
        colour = OURS if name == "auto" else "black"
        axis.plot(*points[name], "D", color=colour, markersize=5, zorder=3)
        labels.append((name, points[name], colour))
    for title, (names, colour) in FAMILIES.items():
        axis.plot(*zip(*(points[n] for n in names), strict=True), "o-", color=colour, label=title)
        labels += [(f"{n.split('_')[1]}%", points[n], colour) for n in names]
    axis.set_xlabel("background change (mean squared difference outside the objects)")
    axis.grid(alpha=0.3)
    return labels


def coverage_figure(summary: dict, path: Path) -> None:
    """Draw the IoU of each mask config by group of scenes, one panel per set."""
    sets = summary["coverage"]
    figure, axes = plt.subplots(1, len(sets), figsize=(6.4 * len(sets), 4.2), sharey=True, squeeze=False)
    for axis, (name, masks) in zip(axes[0], sets.items(), strict=True):
        groups = [g for g in next(iter(masks.values())) if g not in ("all", "area")]
        for number, group in enumerate(groups):
            x = [i + 0.26 * (number - 1) for i in range(len(masks))]
            axis.bar(x, [cells.get(group, 0) for cells in masks.values()], width=0.25, label=group)
        axis.axhline(0.70, linestyle=":", color="black")
        axis.set_xticks(range(len(masks)), list(masks), rotation=40, ha="right", fontsize=8)
        axis.set(title=name, ylabel="IoU with the true mask")
    axes[0][0].legend(fontsize=8)
    save(figure, path)
