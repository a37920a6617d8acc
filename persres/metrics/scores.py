"""The scores, declared once: every table, figure and page takes its columns from :data:`SCORES`.

A new score is one function ``name(inputs: ScoreInputs) -> [images]`` in a module of this package, and one line here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Score:
    """One column of the score rows.

    ``module`` of this package holds the function ``name`` that computes it. ``paper``: the paper reports it too. ``headline``:
    it stands in the short tables (terminal, README). ``identity``: it measures likeness to the concept, so that it can be given as a share of
    the ground truth's. ``note`` explains it below a table.
    """

    name: str
    title: str
    module: str
    paper: bool = False
    headline: bool = False
    identity: bool = False
    needs_classifier: bool = False
    higher_is_better: bool = True
    digits: int = 3
    note: str = ""

    @property
    def heading(self) -> str:
        """The title with the better direction."""
        return f"{self.title} {'↑' if self.higher_is_better else '↓'}"

    @property
    def function(self) -> Callable[[Any], Any]:
        """``function(inputs: ScoreInputs)`` returns one value per image, float64 [n]."""
        return getattr(import_module(f"persres.metrics.{self.module}"), self.name)


SCORES = {score.name: score for score in (
    Score("clip_text", "CLIP text", "encoder_scores", paper=True, headline=True),
    Score("clip_image", "CLIP image", "encoder_scores", paper=True, headline=True, identity=True),
    Score("dino", "DINO", "encoder_scores", paper=True, headline=True, identity=True),
    Score("dino_object", "DINO, object alone", "encoder_scores", identity=True, needs_classifier=True,
          note="DINO of the images and references with everything outside the objects painted grey."),
    Score("followed", "prompt followed", "prompt_attributes", needs_classifier=True,
          note="share of the attributes in the prompt (background, second object, style, colour) that the attribute classifier "
          "predicts."),
    Score("background_change", "background change", "background", headline=True, needs_classifier=True, higher_is_better=False,
          digits=4, note="mean squared difference from the base model's image outside the objects (pixels in [0, 1])."),
)}  # fmt: skip
PAPER_SCORES = tuple(score.name for score in SCORES.values() if score.paper)  # text first, then images
HEADLINE_SCORES = tuple(score.name for score in SCORES.values() if score.headline)
SCORE_MODULES = tuple(dict.fromkeys(f"persres.metrics.{score.module}" for score in SCORES.values()))


def score_columns(rows: pd.DataFrame) -> list[str]:
    """The scores that a table of rows has; without the classifier's where no row has a value."""
    present = [score for score in SCORES.values() if score.name in rows]
    return [score.name for score in present if not score.needs_classifier or rows[score.name].notna().any()]
