"""Claims of the study ``zero_shot_class`` with their margins, and its negative controls.

Rows: for each method, one dict per set of photos with ``noun``, ``right`` and, for the zero-shot class, ``confidence``.
"""

from __future__ import annotations

import numpy as np

from persres.experiments.extensions.verdicts import at_most, claim, verdicts

PHOTOS = 5
COUNTS = (1, 2, PHOTOS)  # photos that the zero-shot class is derived from
CONFIDENT = 0.9
TESTED = ("zero_shot_over_nearest", "classifier_adds")  # what the negative controls must make fail
Rows = dict[str, list[dict]]


def accuracy_of(rows: list[dict]) -> np.ndarray:
    """Return 1 for each set with the right class, else 0, [sets]."""
    return np.array([row["right"] for row in rows], dtype=float)


def zero_shot_rows(rows: Rows) -> list[dict]:
    """Return the zero-shot rows of every number of photos."""
    return [row for k in COUNTS for row in rows[f"zero_shot_{k}"]]


def claims(few: Rows, all_words: Rows, concepts: Rows) -> list[dict]:
    """Return the claims. ``few``: among eight nouns; ``all_words``: among all words of the encoder; ``concepts``: the ten concepts."""
    best = f"zero_shot_{PHOTOS}"
    right, every = accuracy_of(few[best]), zero_shot_rows(few)
    confidence, every_right = np.array([row["confidence"] for row in every]), accuracy_of(every)
    near, encoder = (accuracy_of(few[name])[: len(right)] for name in ("nearest", "encoder"))
    return [
        claim("zero_shot_over_nearest", "the zero-shot class is right more often than the nearest noun", "accuracy", right - near, 0.05),
        claim("classifier_adds", "the diffusion classifier adds to photos, prompts and WordNet", "accuracy", right - encoder, 0.05),
        claim("on_the_concepts", "on the ten concepts the zero-shot class is right more often than the nearest noun", "accuracy",
              accuracy_of(concepts[best]) - accuracy_of(concepts["nearest"]), 0.1),
        claim("one_photo", "the zero-shot class of one photo is right more often than the nearest noun of five", "accuracy",
              accuracy_of(few["zero_shot_1"]) - near, 0.0),
        claim("encoder_over_nearest", "photos, prompts and WordNet alone, among all words, are right more often than the nearest noun",
              "accuracy", accuracy_of(all_words["encoder"]) - accuracy_of(all_words["nearest"]), 0.02),
        at_most("not_overconfident", "confidence exceeds accuracy by less than .05, over one to five photos", "accuracy",
                confidence - every_right, 0.05),
        claim("confident_is_right", f"at a confidence of {CONFIDENT:.0%} or more the class is right more often than on average", "accuracy",
              every_right[confidence >= CONFIDENT] - every_right.mean(), 0.0),
    ]  # fmt: skip


def negative_controls(original: list[dict], controls: dict[str, list[dict]]) -> dict[str, dict[str, str]]:
    """Return verdicts on the claims that must fail; ``controls``: the claims under each negative control."""
    return {what: verdicts(original, control, TESTED) for what, control in controls.items()}
