"""Claims of the study ``masked_lora`` with their margins, and its negative controls."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import pandas as pd

from persres.experiments.evidence.pages import COLUMNS as TITLES
from persres.experiments.extensions.verdicts import at_most, claim, verdicts
from persres.metrics.scores import SCORES

COLUMNS = (*SCORES, "area")
SHARE = 2 / 3  # of the LoRA's gain that must remain
MAX_LOSS = {"dino_object": 0.07, "dino": 0.08}  # what masking may cost
BASELINES = {
    "lora": "the unmasked LoRA",
    "disk": "a disk of equal area",
    "random": "a random mask of equal area",
    "weaker": "the unmasked LoRA at half strength",
    "paper": "the paper's masks",
}
RECIPE = "attention"  # the variant that is the recipe itself


def per_concept(rows: pd.DataFrame) -> pd.DataFrame:
    """Return means by (variant, config, concept).

    ``gained``: the object's DINO over the base model's; ``efficiency``: that per unit of background change (NaN for the base model).
    """
    means = rows.groupby(["variant", "config", "concept"], sort=False)[list(COLUMNS)].mean()
    base = means.xs("base", level="config")["dino_object"]
    gained = means["dino_object"] - base.reindex(means.index.droplevel("config")).to_numpy()
    means["gained"] = gained
    means["efficiency"] = gained / means["background_change"]
    return means.sort_index()


def claims(means: pd.DataFrame, variants: list[str]) -> list[dict]:
    """Return the claims of every variant; ``means`` as of :func:`per_concept`."""
    return [
        c | {"claim": f"{variant}_{c['claim']}", "text": f"{variant}: {c['text']}"}
        for variant in variants
        for c in _variant_claims(means.loc[variant])
    ]


def _variant_claims(means: pd.DataFrame) -> Iterator[dict]:
    """Claims of one variant, ``means`` by (config, concept)."""
    yield claim("learned", "the unmasked LoRA raises the object's DINO over the base model", "dino_object", _values(means, "lora", "gained"), 0.05)  # fmt: skip
    yield from _masked_claims(means, "auto")


def _masked_claims(means: pd.DataFrame, config: str) -> Iterator[dict]:
    masked, whole = partial(_values, means, config), partial(_values, means, "lora")
    over = masked("gained") - SHARE * whole("gained")
    yield claim("identity_retained", "two thirds or more of the LoRA's gain in the object's DINO remain", "dino_object", over, 0.0)  # fmt: skip
    for column, bound in MAX_LOSS.items():
        yield at_most(f"max_loss_{column}", f"at most {bound} of {TITLES[column]} is lost", column, whole(column) - masked(column), bound)  # fmt: skip
    yield claim("gained", "the object's DINO stays above the base model's", "dino_object", masked("gained"), 0.05)
    share = masked("background_change") / whole("background_change")
    yield at_most("halved", "background change falls to half or less", "share_of_the_LoRA's_change", share, 0.5)
    yield claim("text", "CLIP text rises", "clip_text", masked("clip_text") - whole("clip_text"), 0.0)
    for other, text in BASELINES.items():
        more = masked("efficiency") - _values(means, other, "efficiency")
        yield claim(f"efficiency_{other}", f"more identity per unit of background change than {text}", "dino_object_per_change", more, 1.0)  # fmt: skip


def _values(means: pd.DataFrame, config: str, column: str) -> np.ndarray:
    return means.loc[config, column].to_numpy()


def negative_controls(means: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Return verdicts on the recipe's claims with masks inverted, of ones, and of zeros; only claims that hold are tested."""
    means = means.loc[RECIPE]
    original = list(_variant_claims(means))
    holds = {c["claim"] for c in original if c["holds"]}
    efficiency = tuple(f"efficiency_{other}" for other in BASELINES)
    controls = {
        "masks inverted": ("inverted", ("identity_retained", "halved", *efficiency)),
        "masks of ones: the unmasked LoRA": ("lora", ("halved", "text", *(n for n in efficiency if n != "efficiency_lora"))),
        "masks of zeros: the base model": ("base", ("identity_retained", "gained", *efficiency)),
    }  # fmt: skip
    result = {}
    for what, (config, names) in controls.items():
        tested = tuple(name for name in names if name in holds)
        by_claim = verdicts(original, list(_masked_claims(means, config)), tested)
        result[what] = {f"{RECIPE}_{name}": value for name, value in by_claim.items()}
    return result
