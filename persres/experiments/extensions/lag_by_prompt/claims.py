"""Claims of the study ``lag_by_prompt`` with their margins, and its negative control."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from persres.experiments.extensions.sampled import paired
from persres.experiments.extensions.verdicts import at_most, claim, verdicts
from persres.prompts import APPEARANCE_GROUPS, SCENE_GROUPS

CONFIGS = {
    "ours": "never",
    "ours_lag": "always, the paper's masks",
    "auto": "always, our masks",
    "when_scenes": "our masks, unless the prompt asks for another appearance",
    "when_high_confidence": "our masks, unless no block is confident",
    "auto_inverted": "always, our masks inverted",
}


def claims(rows: pd.DataFrame, always: str = "auto") -> Iterator[dict]:
    """Yield every claim. ``rows``: scored images; ``always``: the config that masks every prompt."""
    appearance, scene = (rows["prompt_group"].isin(groups) for groups in (APPEARANCE_GROUPS, SCENE_GROUPS))
    lost = paired(rows, "dino", "ours", always, appearance)
    yield at_most("appearance_identity", "masking style and property prompts loses at most .02 of identity", "dino", lost, 0.02)  # fmt: skip
    gained = paired(rows, "clip_text", always, "ours", appearance)
    yield claim("appearance_text", "masking style and property prompts raises CLIP text", "clip_text", gained, 0.0)
    lost = paired(rows, "dino", "ours", always, scene)
    yield at_most("scenes_identity", "masking background and object prompts loses at most .02 of identity", "dino", lost, 0.02)  # fmt: skip
    less = paired(rows, "background_change", "when_scenes", always)
    yield claim("words_background", "masking every prompt changes less of the background than choosing by its words", "background_change", less, 0.002)  # fmt: skip
    less = paired(rows, "background_change", "ours", always)
    yield claim("always_background", "masking every prompt changes less of the background than never masking", "background_change", less, 0.01)  # fmt: skip


def negative_controls(rows: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Return verdicts on the claims that must fail with inverted masks."""
    original, inverted = (list(claims(rows, name)) for name in ("auto", "auto_inverted"))
    return {"masks inverted": verdicts(original, inverted, ("scenes_identity", "appearance_identity"))}
