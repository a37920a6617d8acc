"""Figures of the evidence: attention maps, identity against background change, claims with intervals; labels of points."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # workers have no display
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.text import Text

from persres.experiments.evidence.localisation import STEPS, Case, attention_maps, upsampled
from persres.images import to_images
from persres.models.diffusion import Diffusion, decode

Label = tuple[str, tuple[float, float], str]  # text, point in data coordinates, colour
MAX_ITERATIONS = 200  # of the label placement: bounded by steps, not by time, so that a figure can be reproduced


def save(figure: plt.Figure, path: Path) -> None:
    """Write a figure as PNG, with bytes that depend on its content only, and close it."""
    figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": ""})
    plt.close(figure)


def label_points(axis: Axes, labels: list[Label], size: float = 8.5) -> list[Text]:
    """Write each label next to its point without overlaps, and return the texts.

    Points outside of the axes' limits, which must be final, get no label.
    """
    from adjustText import adjust_text  # in the extra ``experiments``

    axis.figure.canvas.draw()
    frame = axis.get_window_extent()
    shown = [label for label in labels if frame.contains(*axis.transData.transform(label[1]))]
    texts = [axis.text(*point, text, fontsize=size, color=colour) for text, point, colour in shown]
    lines = np.concatenate([_points_along(line.get_xydata()) for line in axis.lines])
    np.random.seed(0)  # adjust_text shuffles texts at equal positions
    adjust_text(texts, *lines.T, ax=axis, iter_lim=MAX_ITERATIONS, expand=(1.15, 1.4), force_text=(0.3, 0.5),
                arrowprops={"arrowstyle": "-", "color": "grey", "linewidth": 0.6})  # fmt: skip
    return texts


def _points_along(line: np.ndarray, count: int = 8) -> np.ndarray:
    """Points [n, 2] along a line, so that labels avoid it."""
    steps = np.linspace(0, 1, count, endpoint=False)[:, None]
    return np.concatenate([*(a + (b - a) * steps for a, b in pairwise(line)), line[-1:]])


def _short(block: str) -> str:
    return block.replace("_blocks", "").replace(".attentions", "").replace("_block", "")


def localisation_figure(tables: dict[str, pd.DataFrame], plain: dict[str, dict], path: Path) -> None:
    """Draw AUC and IoU by block and t, one row per set of scenes; dashed: baselines without attention."""
    figure, axes = plt.subplots(len(tables), 2, figsize=(11, 3.6 * len(tables)), squeeze=False, sharex=True)
    for row, (name, table) in zip(axes, tables.items(), strict=True):
        table = table[table["tokens"] == "both"]
        for axis, score in zip(row, ("auc", "iou"), strict=True):
            for block, part in table.groupby("block", sort=False):
                axis.plot(part["t"], part[score], marker="o", label=_short(block))
            for label, key in _lines(score):
                axis.axhline(plain[name][key], linestyle="--", linewidth=1, color="grey")
                axis.text(STEPS[-1], plain[name][key], f" {label}", fontsize=8, va="center", color="grey")
            axis.set(
                title=f"{name}: {score.upper().replace('IOU', 'IoU')}",
                xlabel="t",
                xticks=STEPS,
                ylim=(0.2, 1.0) if score == "auc" else (0, 0.8),
            )
    axes[0, 0].legend(fontsize=8, title="block", loc="lower left", ncol=2)
    figure.tight_layout()
    save(figure, path)


def _lines(score: str) -> list[tuple[str, str]]:
    if score == "auc":
        return [("centre", "centre_auc")]
    return [("best half", "half_mask_ceiling_iou"), ("disk", "disk_iou"), ("random", "random_half_iou")]


def attention_figure(diffusion: Diffusion, case: Case, path: Path, t: int = 400, count: int = 8) -> None:
    """Draw up to ``count`` scenes with their true masks and every block's attention map of V* and class."""
    count = min(count, len(case.prompts))
    shown = Case(case.latents[:count], case.truth[:count], case.prompts[:count], case.classes[:count], case.token)
    side = case.truth.shape[1]
    maps = {block: values.cpu() for block, values in attention_maps(diffusion, shown, None, t).items()}
    images = to_images(decode(diffusion.vae, shown.latents))
    figure, axes = plt.subplots(count, 2 + len(maps), figsize=(1.35 * (2 + len(maps)), 1.4 * count), squeeze=False)
    for i in range(count):
        panels = [("scene", images[i]), ("true mask", case.truth[i])]
        panels += [(_short(b), upsampled(m[i : i + 1], side).view(side, side)) for b, m in maps.items()]
        for axis, (title, panel) in zip(axes[i], panels, strict=True):
            axis.imshow(np.asarray(panel), cmap="magma")
            axis.set_axis_off()
            if i == 0:
                axis.set_title(title, fontsize=8)
    figure.suptitle(f"attention of V* and class at t = {t}", fontsize=10, y=0.92)
    save(figure, path)


def frontier_figure(configs: dict[str, dict], path: Path) -> None:
    """Draw identity over the base model against background change, with intervals: up and left is better."""
    base = configs["base"]["overall"]["dino"]["mean"]
    figure, axis = plt.subplots(figsize=(7, 4.6))
    labels = []
    for number, (name, scores) in enumerate(configs.items()):
        change, value = scores["overall"]["background_change"], scores["overall"]["dino"]
        if change["mean"] is None:
            continue
        x, y = change["mean"], value["mean"] - base
        spread = None if change["low"] is None else [[x - change["low"]], [change["high"] - x]]
        axis.errorbar(x, y, xerr=spread, fmt="o", capsize=2, color=f"C{number}")
        labels.append((name, (x, y), "black"))
    axis.set_xlabel("background change (mean squared difference outside the objects)")
    axis.set(ylabel="DINO over the base model", xlim=(0, None))
    axis.grid(alpha=0.3)
    axis.margins(y=0.12)
    label_points(axis, labels, 9)
    save(figure, path)


def claims_figure(claims: list[dict], path: Path) -> None:
    """Draw each claim's effect with its interval; grey: does not hold."""
    figure, axis = plt.subplots(figsize=(8, 0.34 * len(claims) + 1))
    for y, claim in enumerate(reversed(claims)):
        scale = max(abs(claim["low"]), abs(claim["high"]), 1e-9)
        colour = "tab:blue" if claim["holds"] else "grey"
        axis.plot([claim["low"] / scale, claim["high"] / scale], [y, y], color=colour)
        axis.plot(claim["effect"] / scale, y, "o", color=colour)
    axis.axvline(0, linestyle=":", color="black")
    axis.set_yticks(range(len(claims)), [c["text"] for c in reversed(claims)], fontsize=8)
    axis.set_xlabel("effect with 95% interval, scaled to the larger end")
    save(figure, path)


def group_figure(groups: dict[str, dict], path: Path) -> None:
    """Draw LAG minus no mask by prompt group, one panel per score (paper figure 4 in numbers)."""
    columns = list(next(iter(groups.values())))
    figure, axes = plt.subplots(1, len(columns), figsize=(3.1 * len(columns), 2.8))
    for axis, column in zip(np.atleast_1d(axes), columns, strict=True):
        _bars(axis, {group: scores[column] for group, scores in groups.items()})
        axis.set_title(column, fontsize=9)
    figure.tight_layout()
    save(figure, path)


def _bars(axis: Axes, values: dict[str, dict]) -> None:
    middle = np.array([v["mean"] for v in values.values()])
    spread = np.array([[v["mean"] - v["low"], v["high"] - v["mean"]] for v in values.values()]).T
    axis.bar(range(len(values)), middle, yerr=spread, capsize=3, color="tab:blue")
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_xticks(range(len(values)), list(values), rotation=30, fontsize=8)
