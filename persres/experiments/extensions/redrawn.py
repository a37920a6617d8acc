"""Figures that need a study's summary only: drawn after a study and again by ``persres dev pages --figures``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from persres.experiments.extensions.masked_lora import figures as lora_figures
from persres.experiments.extensions.masks import figures as mask_figures
from persres.experiments.extensions.multi_concept import figures as multi_figures
from persres.experiments.extensions.zero_shot_class.figures import accuracy_figure

FIGURES: dict[str, dict[str, Callable[[dict, Path], None]]] = {
    "masks": {"frontier.png": mask_figures.frontier_figure, "coverage.png": mask_figures.coverage_figure},
    "masked_lora": {"frontier.png": lora_figures.frontier_figure},
    "multi_concept": {"scores.png": multi_figures.scores_figure},
    "zero_shot_class": {"accuracy.png": accuracy_figure},
}


def redraw(name: str, summary: dict, folder: Path) -> None:
    """Draw a study's figures from its summary into its folder."""
    for file, draw in FIGURES.get(name, {}).items():
        draw(summary, folder / file)
