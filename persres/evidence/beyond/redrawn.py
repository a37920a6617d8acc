"""Pictures that a part's summary alone is enough for: drawn when the part has been measured, and again by ``persres pages``.

So a picture can be made clearer without measuring anything anew.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from persres.evidence.beyond import lora_figures, mask_figures, several_figures
from persres.evidence.beyond.nouns import WAYS
from persres.evidence.beyond.nouns_figure import nouns_figure
from persres.evidence.beyond.several import TITLES

DRAWN: dict[str, dict[str, Callable[[dict, Path], None]]] = {
    "masks": {
        "frontier.png": lambda found, path: mask_figures.frontier(found["methods"], path),
        "places.png": lambda found, path: mask_figures.places(found["places"], path),
    },
    "loras": {"frontier.png": lambda found, path: lora_figures.frontier(found["ways"], path)},
    "several": {"scores.png": lambda found, path: several_figures.scores(found["methods"], TITLES, path)},
    "nouns": {"nouns.png": lambda found, path: nouns_figure(found, WAYS, path)},
}


def redraw(name: str, summary: dict, folder: Path) -> None:
    """A part's pictures from its summary into its folder."""
    for file, draw in DRAWN.get(name, {}).items():
        draw(summary, folder / file)
