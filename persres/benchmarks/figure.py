"""The bench as a picture: seconds over the floor, ours beside what it is measured against."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

OURS, THEIRS = "#1f6f8b", "#b8b8b8"


def bench_figure(found: dict, path: Path) -> None:
    """Left: a training step of one concept; right: a picture at the largest batch; bars in multiples of the floor."""
    largest = max(found["sampling"], key=int)
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
    _bars(axes[0], found["training"]["over_floor"], "training step of a concept")
    _bars(axes[1], found["sampling"][largest]["over_floor"], f"picture, batch {largest}")
    figure.suptitle(
        f"{found['model']}, {found['device']}, {found['dtype']}: time over the floor (1: matrix products' full rate)"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": ""})
    plt.close(figure)


def _bars(axis: Axes, values: dict[str, float], title: str) -> None:
    names = list(values)
    colours = [THEIRS if name in ("plain", "cached", "base pipeline") else OURS for name in names]
    bars = axis.barh(names, [values[name] for name in names], color=colours)
    axis.bar_label(bars, fmt="%.1f", padding=2)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.invert_yaxis()
    axis.set_title(title)
    axis.margins(x=0.12)
