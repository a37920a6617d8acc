"""Figures of the masks: the frontier of identity against background change, and where masks lie."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no screen on an agent
import matplotlib.pyplot as plt

from persres.evidence.figures import save

FAMILIES = {
    "a share by attention": ([f"share_{s}" for s in (10, 20, 30, 40, 50)], "tab:blue"),
    "a disk of that share": ([f"disk_{s}" for s in (10, 20, 30, 40, 50)], "tab:orange"),
}
ALONE = ("ours", "ours_lag", "own_otsu", "auto", "auto_disk", "auto_random", "soft", "smooth", "weaker")


def frontier(methods: dict[str, dict], path: Path) -> None:
    """Identity over the base model against background change: up and left is better. Lines: the same share by attention and as a disk."""
    base = methods["base"]["dino"]["mean"]
    figure, axis = plt.subplots(figsize=(8, 5.4))
    for label, (names, colour) in FAMILIES.items():
        x = [methods[n]["background_change"]["mean"] for n in names]
        y = [methods[n]["dino"]["mean"] - base for n in names]
        axis.plot(x, y, "o-", color=colour, label=label)
        for name, a, b in zip(names, x, y, strict=True):
            axis.annotate(
                f"{name.split('_')[1]}%", (a, b), xytext=(4, -11), textcoords="offset points", fontsize=8, color=colour
            )
    for name in ALONE:
        found = methods[name]
        axis.plot(found["background_change"]["mean"], found["dino"]["mean"] - base, "D", color="black", markersize=5)
        place = (found["background_change"]["mean"], found["dino"]["mean"] - base)
        axis.annotate(name, place, xytext=(6, 4), textcoords="offset points", fontsize=9)
    axis.set(
        xlabel="background change (mean squared difference outside the objects)",
        ylabel="DINO over the base model",
        xlim=(0, None),
    )
    axis.legend(loc="lower right")
    axis.grid(alpha=0.3)
    save(figure, path)


def places(found: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
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
