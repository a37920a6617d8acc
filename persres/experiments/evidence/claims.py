"""The paper's claims as differences with margins, and what a broken method must fail.

Each claim compares two methods, drawn from the same noise, over concepts. It holds where the mean difference is at least
the margin and its 95% bootstrap interval over concepts lies above zero. The margins were set after the first measurement, well
below what was seen and well above what a broken method reaches: they guard what was found, they are no test of a hypothesis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from persres.metrics.summary import bootstrap_interval
from persres.prompts import APPEARANCE_GROUPS, SCENE_GROUPS

MARGINS = (
    "A claim holds where the mean difference over concepts reaches the margin and its 95% interval lies above zero. The margins were"
    " set after the first measurement: they guard what was found, and are no test of a hypothesis."
)


@dataclass(frozen=True)
class Claim:
    """``column`` of ``more`` minus that of ``less`` is at least ``margin`` (over ``groups`` of prompts; none takes all)."""

    name: str
    says: str
    column: str
    more: str
    less: str
    margin: float
    groups: tuple[str, ...] | None = None


CLAIMS: tuple[Claim, ...] = (
    Claim("identity_dino", "the residual raises identity over the base model (DINO)", "dino", "ours", "base", 0.10),
    Claim("identity_clip", "the residual raises identity over the base model (CLIP image)", "clip_image", "ours", "base", 0.06),
    Claim("identity_object", "so it does with the background painted over", "dino_object", "ours", "base", 0.05),
    Claim("text_cost", "text alignment falls against the base model", "clip_text", "base", "ours", 0.04),
    Claim("lag_identity", "LAG keeps identity above the base model's", "dino", "ours_lag", "base", 0.08),
    Claim("lag_text", "LAG gives text alignment back", "clip_text", "ours_lag", "ours", 0.01),
    Claim("lag_background", "LAG keeps the background nearer to the base model's", "background_change", "ours", "ours_lag", 0.008),
    Claim("lag_identity_cost", "LAG gives a little identity for it", "dino", "ours", "ours_lag", 0.0),
    Claim("lag_worth", "LAG buys more identity per unit of background change than no mask", "dino_per_change", "ours_lag", "ours", 1.0),
    Claim("lag_worth_random", "and more than a random half", "dino_per_change", "ours_lag", "lag_random", 1.0),
    Claim("lag_worth_disk", "and more than a central disk", "dino_per_change", "ours_lag", "lag_disk", 1.0),
    Claim("lag_worth_weaker", "and more than a residual that is simply weaker", "dino_per_change", "ours_lag", "weaker", 1.0),
    Claim("shared_worth", "past the paper: masks from the best block buy more than each block's own", "dino_per_change", "lag_shared", "ours_lag", 0.3),
    Claim("shared_worth_disk", "and more than a central disk", "dino_per_change", "lag_shared", "lag_disk", 0.3),
    Claim("lag_scenes_text", "LAG helps background and added-object prompts (CLIP text)", "clip_text", "ours_lag", "ours", 0.005, SCENE_GROUPS),
    Claim("lag_scenes_followed", "there the picture shows more of what was asked", "followed", "ours_lag", "ours", 0.005, SCENE_GROUPS),
    Claim("lag_looks_text", "LAG hurts style and property prompts (CLIP text)", "clip_text", "ours", "ours_lag", 0.0, APPEARANCE_GROUPS),
    Claim("lag_looks_followed", "there the picture shows less of what was asked", "followed", "ours", "ours_lag", 0.0, APPEARANCE_GROUPS),
    Claim("lag_groups_differ", "scenes gain more by LAG than looks do (CLIP text)", "clip_text_scenes_over_looks", "ours_lag", "ours", 0.005),
)  # fmt: skip

# Broken on purpose: which method stands in for which, and the claims that must fall with it. Each of them compares two different
# things when broken, and one that does not hold of the whole method either proves nothing and is reported so.
NEGATIVE_CONTROLS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "residual zeroed": (
        {"ours": "v_alone", "ours_lag": "v_alone"},
        ("identity_dino", "identity_clip", "identity_object", "text_cost", "lag_identity"),
    ),
    "another concept's residual": ({"ours": "wrong_concept"}, ("identity_dino", "identity_clip", "identity_object")),
    "mask inverted": (
        {"ours_lag": "lag_inverted"},
        ("lag_identity", "lag_worth", "lag_worth_random", "lag_worth_weaker"),
    ),
}


def _per_concept(rows: pd.DataFrame, groups: tuple[str, ...] | None) -> pd.DataFrame:
    """Means by (method, concept), with the derived columns."""
    part = rows if groups is None else rows[rows["prompt_group"].isin(groups)]
    columns = ["clip_text", "clip_image", "dino", "dino_object", "followed", "background_change"]
    means = part.groupby(["method", "concept"])[columns].mean()
    base = means.loc["base"].reindex(means.index.get_level_values("concept"))
    for score in ("dino", "dino_object"):
        means[f"{score}_per_change"] = (means[score] - base[score].to_numpy()) / means["background_change"]
    text = {
        side: rows[rows["prompt_group"].isin(names)].groupby(["method", "concept"])["clip_text"].mean()
        for side, names in (("scenes", SCENE_GROUPS), ("looks", APPEARANCE_GROUPS))
    }
    means["clip_text_scenes_over_looks"] = (text["scenes"] - text["looks"]).reindex(means.index)
    return means


def effect(rows: pd.DataFrame, claim: Claim, standins: dict[str, str] | None = None, rounds: int = 10_000) -> dict:
    """The claim's difference with its interval, and whether it holds; ``standins`` replaces methods by others. Raises ValueError
    where they leave a method to be compared with itself."""
    means = _per_concept(rows, claim.groups)
    more, less = ((standins or {}).get(name, name) for name in (claim.more, claim.less))
    if more == less:
        raise ValueError(f"{claim.name}: {standins} compares {more} with itself")
    present = set(means.index.get_level_values("method"))
    if not {more, less} <= present:
        return {"claim": claim.name, "effect": float("nan"), "low": float("nan"), "high": float("nan"), "holds": False}
    one, two = means.loc[more, claim.column], means.loc[less, claim.column]
    shared = one.index.intersection(two.index)
    values = (one.loc[shared] - two.loc[shared]).to_numpy()
    low, high = bootstrap_interval(values, rounds, 0)
    value = float(np.mean(values))
    return {"claim": claim.name, "effect": value, "low": low, "high": high, "margin": claim.margin,
            "holds": bool(value >= claim.margin and low > 0)}  # fmt: skip


def examine_claims(rows: pd.DataFrame) -> list[dict]:
    """Every claim as measured."""
    return [effect(rows, claim) | {"says": claim.says, "column": claim.column} for claim in CLAIMS]


def examine_negative_controls(rows: pd.DataFrame) -> dict[str, dict[str, str]]:
    """By broken method, of each claim that must fall: ``falls``, ``still holds``, or ``not held unbroken``."""
    named = {claim.name: claim for claim in CLAIMS}
    return {
        what: {name: _verdict(rows, named[name], standins) for name in names}
        for what, (standins, names) in NEGATIVE_CONTROLS.items()
    }


def _verdict(rows: pd.DataFrame, claim: Claim, standins: dict[str, str]) -> str:
    if not effect(rows, claim)["holds"]:
        return "not held unbroken"
    return "still holds" if effect(rows, claim, standins)["holds"] else "falls"


def by_group(rows: pd.DataFrame, columns: list[str], more: str = "ours_lag", less: str = "ours") -> dict[str, dict]:
    """Paired difference of two methods by prompt group: column -> effect and interval."""
    groups = list(dict.fromkeys(rows["prompt_group"]))
    return {group: {column: _plain(effect(rows, Claim("", "", column, more, less, 0.0, (group,)))) for column in columns}
            for group in groups}  # fmt: skip


def _plain(found: dict) -> dict:
    return {"mean": found["effect"], "low": found["low"], "high": found["high"]}
