"""The bench as a picture: seconds over the floor, ours beside what it is measured against."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from persres.experiments.benchmarks.tables import title

OURS, THEIRS = "#1f6f8b", "#b8b8b8"


def bench_figure(found: dict, path: Path) -> None:
    """Left: a training step of one concept; right: a picture at every batch size; bars in multiples of the floor."""
    figure, axes = plt.subplots(1, 2, figsize=(13, 4.6), layout="constrained")
    _bars(axes[0], {title(n): v for n, v in found["training"]["over_floor"].items()}, "training step of a concept")
    drawn = {f"{title(n)}, batch {b}": v for b, row in found["sampling"].items() for n, v in row["over_floor"].items()}
    _bars(axes[1], drawn, "picture")
    figure.suptitle(
        f"{found['model']}, {found['device']}, {found['dtype']}: time over the floor (1: matrix products' full rate)"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": ""})
    plt.close(figure)


def _bars(axis: Axes, values: dict[str, float], title: str) -> None:
    names = list(values)
    colours = [OURS if name.startswith("ours") else THEIRS for name in names]
    bars = axis.barh(names, [values[name] for name in names], color=colours)
    axis.bar_label(bars, fmt="%.1f", padding=2)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.invert_yaxis()
    axis.set_title(title)
    axis.margins(x=0.12)
