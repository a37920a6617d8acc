"""What is claimed of LAG or not, by itself."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from persres.experiments.extensions.sampled import paired
from persres.experiments.extensions.verdicts import at_most, claim, verdict
from persres.prompts import APPEARANCE_GROUPS, SCENE_GROUPS

CONFIGS = {
    "ours": "never",
    "ours_lag": "always, the paper's masks",
    "auto": "always, our masks",
    "when_scenes": "our masks, not where the prompt asks for another look",
    "when_sure": "our masks, not where no block is sure",
    "auto_inverted": "always, our masks inverted",
}


def claims(rows: pd.DataFrame, always: str = "auto") -> Iterator[dict]:
    """``rows`` of scores; ``always`` names the method that masks every prompt."""
    looks, scenes = rows["prompt_group"].isin(APPEARANCE_GROUPS), rows["prompt_group"].isin(SCENE_GROUPS)
    lost = paired(rows, "dino", "ours", always, looks)
    yield at_most(
        "looks_identity", "always: on style and property prompts at most .02 of identity is lost", "dino", lost, 0.02
    )
    gained = paired(rows, "clip_text", always, "ours", looks)
    yield claim(
        "looks_text", "always: there it follows the prompt better than never (CLIP text)", "clip_text", gained, 0.0
    )
    lost = paired(rows, "dino", "ours", always, scenes)
    yield at_most(
        "scenes_identity",
        "always: on background and object prompts at most .02 of identity is lost",
        "dino",
        lost,
        0.02,
    )
    less = paired(rows, "background_change", "when_scenes", always)
    yield claim(
        "words_background", "by the words changes more of the background than always", "background_change", less, 0.002
    )
    less = paired(rows, "background_change", "ours", always)
    yield claim("always_background", "always changes less of it than never", "background_change", less, 0.01)


def negative_controls(rows: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Claims that must fall when the masks are inverted."""
    whole, inverted = ({c["claim"]: c for c in claims(rows, name)} for name in ("auto", "auto_inverted"))
    names = ("scenes_identity", "looks_identity")
    return {"masks inverted": {name: verdict(whole[name], inverted[name]) for name in names}}
