"""Pictures that a part's summary alone is enough for: drawn when the part has been measured, and again by ``persres dev pages``.

So a picture can be made clearer without measuring anything anew.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from persres.experiments.extensions.masked_lora import figures as lora_figures
from persres.experiments.extensions.masks import figures as mask_figures
from persres.experiments.extensions.multi_concept import figures as multi_figures
from persres.experiments.extensions.multi_concept.measure import TITLES
from persres.experiments.extensions.zero_shot_class.figures import accuracy_figure
from persres.experiments.extensions.zero_shot_class.measure import METHODS

FIGURES: dict[str, dict[str, Callable[[dict, Path], None]]] = {
    "masks": {
        "frontier.png": lambda found, path: mask_figures.frontier_figure(found["methods"], path),
        "places.png": lambda found, path: mask_figures.coverage_figure(found["places"], path),
    },
    "loras": {"frontier.png": lambda found, path: lora_figures.frontier_figure(found["ways"], path)},
    "several": {"scores.png": lambda found, path: multi_figures.scores_figure(found["methods"], TITLES, path)},
    "nouns": {"nouns.png": lambda found, path: accuracy_figure(found, METHODS, path)},
}


def redraw(name: str, summary: dict, folder: Path) -> None:
    """A part's pictures from its summary into its folder."""
    for file, draw in FIGURES.get(name, {}).items():
        draw(summary, folder / file)
