"""A benchmark record as a bar chart: time over the FLOP lower bound, ours and the baselines."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from persres.experiments.benchmarks.tables import title

OURS, BASELINES = "#1f6f8b", "#b8b8b8"


def bench_figure(record: dict, path: Path) -> None:
    """Draw a training step of one concept (left) and an image at every batch size (right)."""
    figure, axes = plt.subplots(1, 2, figsize=(13, 4.6), layout="constrained")
    training = {title(n): v for n, v in record["training"]["over_flop_bound"].items()}
    sampling = {
        f"{title(n)}, batch {b}": v for b, row in record["sampling"].items() for n, v in row["over_flop_bound"].items()
    }
    _bars(axes[0], training, "training, one step of one concept")
    _bars(axes[1], sampling, "sampling, one image")
    figure.suptitle(f"{record['model']}, {record['device']}, {record['dtype']}: time / FLOP lower bound")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": ""})
    plt.close(figure)


def _bars(axis: Axes, values: dict[str, float], title: str) -> None:
    names = list(values)
    colours = [OURS if name.startswith("ours") else BASELINES for name in names]
    bars = axis.barh(names, [values[name] for name in names], color=colours)
    axis.bar_label(bars, fmt="%.1f", padding=2)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.invert_yaxis()
    axis.set_title(title)
    axis.margins(x=0.12)
