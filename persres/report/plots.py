"""The paper's figure 7 and scores by prompt group, as PNG files; DVC plots the same CSV files (dvc.yaml)."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display on a worker
import matplotlib.pyplot as plt
import pandas as pd

from persres.metrics.scores import PAPER_SCORES

TEXT_SCORE, *IMAGE_SCORES = PAPER_SCORES


def category_figure(table: pd.DataFrame, path: Path) -> None:
    """Image alignments against text alignment, one dot per config and category (paper figure 7)."""
    figure, axes = plt.subplots(1, len(IMAGE_SCORES), figsize=(10, 4.2))
    for axis, score in zip(axes, IMAGE_SCORES, strict=True):
        for config, part in table.groupby("config", sort=False):
            axis.scatter(part[TEXT_SCORE], part[score], label=config, s=18, **_marker(table, config))
        axis.set(xlabel=TEXT_SCORE, ylabel=score)
    _save(figure, path)


def group_figure(table: pd.DataFrame, path: Path) -> None:
    """The paper's scores by prompt group, one dot per config with its interval over concepts."""
    groups, configs = list(dict.fromkeys(table["prompt_group"])), list(dict.fromkeys(table["config"]))
    figure, axes = plt.subplots(1, len(PAPER_SCORES), figsize=(14, 4.2))
    for axis, score in zip(axes, PAPER_SCORES, strict=True):
        for i, config in enumerate(configs):
            part = table[table["config"] == config]
            at = [groups.index(g) + 0.7 * ((i + 0.5) / len(configs) - 0.5) for g in part["prompt_group"]]
            ends = (part[score] - part[f"{score}_low"], part[f"{score}_high"] - part[score])
            axis.errorbar(at, part[score], yerr=ends, ls="", ms=4, lw=0.8, label=config, **_marker(table, config))
        axis.set_xticks(range(len(groups)), groups)
        axis.set_ylabel(score)
    _save(figure, path)


def _marker(table: pd.DataFrame, config: object) -> dict[str, object]:
    """Colour and marker of a config, distinct for up to 50 configs."""
    number = list(dict.fromkeys(table["config"])).index(config)
    return {"color": plt.get_cmap("tab10")(number % 10), "marker": "os^Dv"[number // 10 % 5]}


def _save(figure: plt.Figure, path: Path) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": ""}, bbox_inches="tight")
    plt.close(figure)
