"""Figures of the study ``early_stopping``: mean curves over the concepts, and the curves of each concept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # workers have no display
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from persres.experiments.evidence.figures import save
from persres.methods.ours import Ours
from persres.metrics.scores import SCORES
from persres.training.early_stopping import relative_change

IDENTITY = {name: SCORES[name].title for name in ("dino", "clip_image", "dino_object")}
TEXT = {name: SCORES[name].title for name in ("clip_text", "followed")}
WINDOW = 10  # steps that the training loss is averaged over


@dataclass(frozen=True)
class CurveData:
    """Traces by concept, mean scores by concept and steps, and the step at which each concept stops."""

    traces: dict[str, dict]
    means: pd.DataFrame
    stops: dict[str, int]
    settings: Ours


def _save(figure: plt.Figure, path: Path) -> None:
    figure.tight_layout()
    save(figure, path)


def _checks(losses: list[float], settings: Ours) -> np.ndarray:
    return np.arange(len(losses)) * settings.early_stop_every


def _stops(axis: Axes, stops: Mapping[str, int]) -> None:
    """Draw a line at each step where concepts stop; darker for more concepts."""
    ends, counts = np.unique(list(stops.values()), return_counts=True)
    for steps, count in zip(ends, counts, strict=True):
        axis.axvline(steps, color="tab:red", linewidth=1.2, alpha=0.25 + 0.75 * count / len(stops), linestyle=":")


def curves_figure(data: CurveData, path: Path) -> None:
    """Draw means over concepts against steps: losses, the rule's signal, identity, text; dotted lines where concepts stop."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), sharex=True)
    _losses(axes[0, 0], data.traces, data.settings)
    _signal(axes[0, 1], data.traces, data.settings)
    table = data.means.groupby("steps").mean(numeric_only=True)
    for axis, shown, title in ((axes[1, 0], IDENTITY, "identity"), (axes[1, 1], TEXT, "text alignment")):
        for column, label in shown.items():
            axis.plot(table.index, table[column], marker="o", markersize=4, label=label)
        axis.set(title=f"{title}, held-out prompts", xlabel="steps")
        axis.legend(fontsize=8)
    for axis in axes.flat:
        _stops(axis, data.stops)
        axis.grid(alpha=0.3)
    _save(figure, path)


def _losses(axis: Axes, traces: dict[str, dict], settings: Ours) -> None:
    loss = np.mean([trace["loss"] for trace in traces.values()], 0)
    smooth = np.convolve(loss, np.ones(WINDOW) / WINDOW, "valid")
    axis.plot(np.arange(len(loss)) + 1, loss, color="lightgrey", linewidth=0.8, label="training loss")
    axis.plot(np.arange(len(smooth)) + WINDOW, smooth, color="grey", label=f"mean of {WINDOW} steps")
    fixed = np.mean([trace["fixed"] for trace in traces.values()], 0)
    axis.plot(
        _checks(fixed, settings), fixed, color="tab:blue", marker="o", markersize=4, label="loss at the fixed draws"
    )
    axis.set(title="loss", ylim=(0.9 * min(smooth.min(), fixed.min()), 1.1 * max(fixed.max(), smooth.max())))
    axis.legend(fontsize=8)


def _signal(axis: Axes, traces: dict[str, dict], settings: Ours) -> None:
    for trace in traces.values():
        shares = [relative_change(trace["fixed"][: check + 1]) for check in range(1, len(trace["fixed"]))]
        axis.plot(_checks(trace["fixed"], settings)[1:], shares, linewidth=0.9, marker=".", alpha=0.7)
    axis.axhline(settings.early_stop_below, color="black", linewidth=1)
    axis.text(axis.get_xlim()[1], settings.early_stop_below, "early_stop_below ", fontsize=8, va="bottom", ha="right")
    axis.set(
        title=f"signal: change of the loss in {settings.early_stop_every} steps, as a share of its fall",
        ylim=(-0.03, 1.05),
    )


def concepts_figure(data: CurveData, path: Path) -> None:
    """Draw each concept: identity and text on the left axis, the loss at fixed draws on the right; dotted where it stops."""
    columns, traces = 5, data.traces
    figure, axes = plt.subplots(
        -(-len(traces) // columns), columns, figsize=(16, 6.2), sharex=True, sharey=True, squeeze=False
    )
    lines = []
    for number, (name, trace) in enumerate(traces.items()):
        axis, rows = axes.flat[number], data.means[data.means["concept"] == name]
        other = axis.twinx()
        lines = [axis.plot(rows["steps"], rows[c], label=label)[0] for c, label in (IDENTITY | TEXT).items()]
        lines += other.plot(
            _checks(trace["fixed"], data.settings),
            trace["fixed"],
            color="black",
            linewidth=0.8,
            label="loss, fixed draws (right)",
        )
        other.tick_params(labelsize=7)
        axis.axvline(data.stops[name], color="tab:red", linestyle=":")
        axis.set_title(f"{name}: {data.stops[name]}", fontsize=10)
        axis.grid(alpha=0.3)
    figure.legend(handles=lines, loc="lower center", ncol=len(lines), fontsize=9, bbox_to_anchor=(0.5, -0.04))
    figure.supxlabel("steps", fontsize=9)
    _save(figure, path)
