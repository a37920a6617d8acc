"""Pictures that a part's summary alone is enough for: drawn when the part has been measured, and again by ``persres pages``.

So a picture can be made clearer without measuring anything anew.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from persres.experiments.extensions.masked_lora import figures as lora_figures
from persres.experiments.extensions.masks import figures as mask_figures
from persres.experiments.extensions.multi_concept import figures as multi_figures
from persres.experiments.extensions.multi_concept.measure import TITLES
from persres.experiments.extensions.zero_shot_class.figures import nouns_figure
from persres.experiments.extensions.zero_shot_class.measure import WAYS

DRAWN: dict[str, dict[str, Callable[[dict, Path], None]]] = {
    "masks": {
        "frontier.png": lambda found, path: mask_figures.frontier(found["methods"], path),
        "places.png": lambda found, path: mask_figures.places(found["places"], path),
    },
    "loras": {"frontier.png": lambda found, path: lora_figures.frontier(found["ways"], path)},
    "several": {"scores.png": lambda found, path: multi_figures.scores(found["methods"], TITLES, path)},
    "nouns": {"nouns.png": lambda found, path: nouns_figure(found, WAYS, path)},
}


def redraw(name: str, summary: dict, folder: Path) -> None:
    """A part's pictures from its summary into its folder."""
    for file, draw in DRAWN.get(name, {}).items():
        draw(summary, folder / file)
