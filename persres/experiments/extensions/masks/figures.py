"""Figures of the masks: the frontier of identity against background change, and where masks lie."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no screen on an agent
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from persres.experiments.evidence.figures import save
from persres.experiments.evidence.labels import Named, name_points

FAMILIES = {
    "a share by attention": ([f"share_{s}" for s in (10, 20, 30, 40, 50)], "tab:blue"),
    "a disk of that share": ([f"disk_{s}" for s in (10, 20, 30, 40, 50)], "tab:orange"),
}
ALONE = ("auto", "auto_disk", "soft", "smooth", "ours", "ours_lag", "own_otsu", "auto_random", "weaker")
CLOSE = ("soft", "smooth")  # beside auto, to be told apart in the right panel only
OURS = "tab:red"
KNEE = 0.021, 0.04  # the right panel: background change up to here, identity down to so far below the best


def frontier_figure(methods: dict[str, dict], path: Path) -> None:
    """Identity over the base model against background change: up and left is better. Lines: the same share by attention and as a disk.
    Left all methods, right those that change little and keep most."""
    base = methods["base"]["dino"]["mean"]
    names = [*ALONE, *(n for family, _ in FAMILIES.values() for n in family)]
    at = {n: (methods[n]["background_change"]["mean"], methods[n]["dino"]["mean"] - base) for n in names}
    best = max(y for _, y in at.values())
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.2), layout="constrained")
    left.set(title="all", xlim=(0, 0.054), ylim=(min(y for _, y in at.values()) - 0.01, best + 0.015))
    right.set(title="the upper left corner, larger", xlim=(0.0085, KNEE[0]), ylim=(best - KNEE[1], best + 0.008))
    named = [(axis, _points(axis, at)) for axis in (left, right)]
    left.set_ylabel("DINO over the base model")
    left.legend(loc="lower right")
    for axis, points in named:
        name_points(axis, [one for one in points if axis is right or one[0] not in CLOSE])
    save(figure, path)


def _points(axis: Axes, at: dict[str, tuple[float, float]]) -> list[Named]:
    """``at``: (background change, identity) by method."""
    named: list[Named] = []
    for name in ALONE:
        colour = OURS if name == "auto" else "black"
        axis.plot(*at[name], "D", color=colour, markersize=5, zorder=3)
        named.append((name, at[name], colour))
    for label, (names, colour) in FAMILIES.items():
        axis.plot(*zip(*(at[n] for n in names), strict=True), "o-", color=colour, label=label)
        named += [(f"{n.split('_')[1]}%", at[n], colour) for n in names]
    axis.set_xlabel("background change (mean squared difference outside the objects)")
    axis.grid(alpha=0.3)
    return named


def coverage_figure(found: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """IoU of each masking by group of scenes, one panel a set."""
    figure, axes = plt.subplots(1, len(found), figsize=(6.4 * len(found), 4.2), sharey=True, squeeze=False)
    for axis, (name, maskings) in zip(axes[0], found.items(), strict=True):
        groups = [g for g in next(iter(maskings.values())) if g not in ("all", "area")]
        for place, group in enumerate(groups):
            at = [i + 0.26 * (place - 1) for i in range(len(maskings))]
            axis.bar(at, [cells.get(group, 0) for cells in maskings.values()], width=0.25, label=group)
        axis.axhline(0.70, linestyle=":", color="black")
        axis.set_xticks(range(len(maskings)), list(maskings), rotation=40, ha="right", fontsize=8)
        axis.set(title=name, ylabel="IoU with the true mask")
    axes[0][0].legend(fontsize=8)
    save(figure, path)
