"""Figures of the evidence: where attention lies, what each method buys, and the claims with their intervals."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no screen on an agent
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from persres.experiments.evidence.labels import name_points
from persres.experiments.evidence.localisation import STEPS, Case, attention_maps, upsampled
from persres.images import to_images
from persres.models.diffusion import Diffusion, decode


def save(figure: plt.Figure, path: Path) -> None:
    """Write a figure as a PNG whose bytes depend on what it shows, and close it."""
    figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": ""})
    plt.close(figure)


def _short(block: str) -> str:
    return block.replace("_blocks", "").replace(".attentions", "").replace("_block", "")


def localisation_figure(found: dict[str, pd.DataFrame], plain: dict[str, dict], path: Path) -> None:
    """AUC and IoU by block and t: a row for each set of scenes; dashed what knows nothing of attention."""
    figure, axes = plt.subplots(len(found), 2, figsize=(11, 3.6 * len(found)), squeeze=False, sharex=True)
    for row, (name, table) in zip(axes, found.items(), strict=True):
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


def attention_figure(diffusion: Diffusion, case: Case, token: str, path: Path, t: int = 400, count: int = 8) -> None:
    """Scenes (at most ``count``), their true masks and every block's map of V* and class, side by side."""
    count = min(count, len(case.prompts))
    shown = Case(case.latents[:count], case.truth[:count], case.prompts[:count], case.classes[:count])
    side = case.truth.shape[1]
    maps = {block: seen.cpu() for block, seen in attention_maps(diffusion, shown, token, None, t).items()}
    pictures = to_images(decode(diffusion.vae, shown.latents))
    figure, axes = plt.subplots(count, 2 + len(maps), figsize=(1.35 * (2 + len(maps)), 1.4 * count), squeeze=False)
    for i in range(count):
        panels = [("scene", pictures[i]), ("true mask", case.truth[i])]
        panels += [(_short(b), upsampled(m[i : i + 1], side).view(side, side)) for b, m in maps.items()]
        for axis, (title, panel) in zip(axes[i], panels, strict=True):
            axis.imshow(np.asarray(panel), cmap="magma")
            axis.set_axis_off()
            if i == 0:
                axis.set_title(title, fontsize=8)
    figure.suptitle(f"attention of V* and class at t = {t}", fontsize=10, y=0.92)
    save(figure, path)


def frontier_figure(methods: dict[str, dict], path: Path, score: str = "dino") -> None:
    """Identity over the base model against background change, with intervals: up and left is better."""
    base = methods["base"]["overall"][score]["mean"]
    figure, axis = plt.subplots(figsize=(7, 4.6))
    named = []
    for place, (name, found) in enumerate(methods.items()):
        change, value = found["overall"]["background_change"], found["overall"][score]
        if change["mean"] is None:
            continue
        x, y = change["mean"], value["mean"] - base
        spread = (
            None if change["low"] is None else [[x - change["low"]], [change["high"] - x]]
        )  # none below five concepts
        axis.errorbar(x, y, xerr=spread, fmt="o", capsize=2, color=f"C{place}")
        named.append((name, (x, y), "black"))
    axis.set(
        xlabel="background change (mean squared difference outside the objects)",
        ylabel=f"{score} over the base model",
        xlim=(0, None),
    )
    axis.grid(alpha=0.3)
    axis.margins(y=0.12)
    name_points(axis, named, 9)
    save(figure, path)


def claims_figure(claims: list[dict], path: Path) -> None:
    """Effect over margin of each claim: right of the dotted line it holds; grey did not appear."""
    figure, axis = plt.subplots(figsize=(8, 0.34 * len(claims) + 1))
    for y, claim in enumerate(reversed(claims)):
        scale = max(abs(claim["low"]), abs(claim["high"]), 1e-9)
        colour = "tab:blue" if claim["holds"] else "grey"
        axis.plot([claim["low"] / scale, claim["high"] / scale], [y, y], color=colour)
        axis.plot(claim["effect"] / scale, y, "o", color=colour)
    axis.axvline(0, linestyle=":", color="black")
    axis.set_yticks(range(len(claims)), [c["says"] for c in reversed(claims)], fontsize=8)
    axis.set_xlabel("effect with its 95% interval, each scaled to its own largest end")
    save(figure, path)


def group_figure(groups: dict[str, dict], path: Path) -> None:
    """LAG minus no mask by prompt group, one panel a score (paper figure 4 in numbers)."""
    columns = list(next(iter(groups.values())))
    figure, axes = plt.subplots(1, len(columns), figsize=(3.1 * len(columns), 2.8))
    for axis, column in zip(np.atleast_1d(axes), columns, strict=True):
        _bars(axis, {group: found[column] for group, found in groups.items()})
        axis.set_title(column, fontsize=9)
    figure.tight_layout()
    save(figure, path)


def _bars(axis: Axes, values: dict[str, dict]) -> None:
    middle = np.array([v["mean"] for v in values.values()])
    spread = np.array([[v["mean"] - v["low"], v["high"] - v["mean"]] for v in values.values()]).T
    axis.bar(range(len(values)), middle, yerr=spread, capsize=3, color="tab:blue")
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_xticks(range(len(values)), list(values), rotation=30, fontsize=8)
