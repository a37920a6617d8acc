"""The paper's figure 7 and scores by prompt group, as pictures; DVC draws the same from the CSV files (dvc.yaml)."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no screen on an agent
import matplotlib.pyplot as plt
import pandas as pd


def category_figure(table: pd.DataFrame, path: Path) -> None:
    """CLIP image and DINO against CLIP text, a dot per method and category (paper figure 7)."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2))
    for axis, score in zip(axes, ("clip_image", "dino"), strict=True):
        for method, part in table.groupby("method", sort=False):
            axis.scatter(part["clip_text"], part[score], label=method, s=18, **_look(table, method))
        axis.set(xlabel="clip_text", ylabel=score)
    _save(figure, path)


def group_figure(table: pd.DataFrame, path: Path) -> None:
    """CLIP text, CLIP image and DINO by prompt group, a dot per method with its interval over concepts."""
    groups, methods = list(dict.fromkeys(table["prompt_group"])), list(dict.fromkeys(table["method"]))
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.2))
    for axis, score in zip(axes, ("clip_text", "clip_image", "dino"), strict=True):
        for i, method in enumerate(methods):
            part = table[table["method"] == method]
            at = [groups.index(g) + 0.7 * ((i + 0.5) / len(methods) - 0.5) for g in part["prompt_group"]]
            ends = (part[score] - part[f"{score}_low"], part[f"{score}_high"] - part[score])
            axis.errorbar(at, part[score], yerr=ends, ls="", ms=4, lw=0.8, label=method, **_look(table, method))
        axis.set_xticks(range(len(groups)), groups)
        axis.set_ylabel(score)
    _save(figure, path)


def _look(table: pd.DataFrame, method: object) -> dict[str, object]:
    """A colour and a marker of its own for each method, however many there are."""
    number = list(dict.fromkeys(table["method"])).index(method)
    return {"color": plt.get_cmap("tab10")(number % 10), "marker": "os^Dv"[number // 10 % 5]}


def _save(figure: plt.Figure, path: Path) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": ""}, bbox_inches="tight")
    plt.close(figure)
