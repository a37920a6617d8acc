"""The paper's claims as differences with margins, and the negative controls that must make them fail.

Each claim compares two configs, sampled from the same noise, over concepts. It holds if the mean difference is at least the margin and
its 95% bootstrap interval over concepts lies above zero. The margins were set after the first measurement, well below the effects and
well above the negative controls: they guard the results and are not a test of a hypothesis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from persres.metrics.scores import SCORES
from persres.metrics.summary import bootstrap_interval
from persres.prompts import APPEARANCE_GROUPS, SCENE_GROUPS

MARGINS = (
    "A claim holds if the mean difference over concepts reaches the margin and its 95% interval lies above zero. The margins were set"
    " after the first measurement: they guard the results and are not a test of a hypothesis."
)


@dataclass(frozen=True)
class Claim:
    """``column`` of config ``more`` minus that of ``less`` is at least ``margin``, over prompt ``groups`` (None: all)."""

    name: str
    text: str
    column: str
    more: str
    less: str
    margin: float
    groups: tuple[str, ...] | None = None


CLAIMS: tuple[Claim, ...] = (
    Claim("identity_dino", "the residual raises identity over the base model (DINO)", "dino", "ours", "base", 0.10),
    Claim("identity_clip", "the residual raises identity over the base model (CLIP image)", "clip_image", "ours", "base", 0.06),
    Claim("identity_object", "the residual raises identity of the object alone", "dino_object", "ours", "base", 0.05),
    Claim("text_cost", "the residual lowers text alignment", "clip_text", "base", "ours", 0.04),
    Claim("lag_identity", "LAG retains identity above the base model's", "dino", "ours_lag", "base", 0.08),
    Claim("lag_text", "LAG restores text alignment", "clip_text", "ours_lag", "ours", 0.01),
    Claim("lag_background", "LAG changes less of the background", "background_change", "ours", "ours_lag", 0.008),
    Claim("lag_identity_cost", "LAG costs some identity", "dino", "ours", "ours_lag", 0.0),
    Claim("lag_efficiency", "LAG gives more identity per unit of background change than no mask", "dino_per_change", "ours_lag", "ours", 1.0),
    Claim("lag_efficiency_random", "… than a random half", "dino_per_change", "ours_lag", "lag_random", 1.0),
    Claim("lag_efficiency_disk", "… than a central disk", "dino_per_change", "ours_lag", "lag_disk", 1.0),
    Claim("lag_efficiency_weaker", "… than a weaker residual", "dino_per_change", "ours_lag", "weaker", 1.0),
    Claim("shared_efficiency", "extension: the best block's mask gives more identity per unit of background change than each block's mask", "dino_per_change", "lag_shared", "ours_lag", 0.3),
    Claim("shared_efficiency_disk", "… than a central disk", "dino_per_change", "lag_shared", "lag_disk", 0.3),
    Claim("lag_scenes_text", "LAG raises CLIP text of background and object prompts", "clip_text", "ours_lag", "ours", 0.005, SCENE_GROUPS),
    Claim("lag_scenes_followed", "LAG raises prompt followed of background and object prompts", "followed", "ours_lag", "ours", 0.005, SCENE_GROUPS),
    Claim("lag_appearance_text", "LAG lowers CLIP text of style and property prompts", "clip_text", "ours", "ours_lag", 0.0, APPEARANCE_GROUPS),
    Claim("lag_appearance_followed", "LAG lowers prompt followed of style and property prompts", "followed", "ours", "ours_lag", 0.0, APPEARANCE_GROUPS),
    Claim("lag_groups_differ", "LAG raises CLIP text of scene prompts more than of appearance prompts", "clip_text_scenes_over_appearance", "ours_lag", "ours", 0.005),
)  # fmt: skip

# By negative control: which config replaces which, and the claims that must fail.
NEGATIVE_CONTROLS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "residual zeroed": (
        {"ours": "v_alone", "ours_lag": "v_alone"},
        ("identity_dino", "identity_clip", "identity_object", "text_cost", "lag_identity"),
    ),
    "another concept's residual": ({"ours": "wrong_concept"}, ("identity_dino", "identity_clip", "identity_object")),
    "mask inverted": (
        {"ours_lag": "lag_inverted"},
        ("lag_identity", "lag_efficiency", "lag_efficiency_random", "lag_efficiency_weaker"),
    ),
}


def _per_concept(rows: pd.DataFrame, groups: tuple[str, ...] | None) -> pd.DataFrame:
    """Means by (config, concept), with the derived columns."""
    part = rows if groups is None else rows[rows["prompt_group"].isin(groups)]
    columns = list(SCORES)
    means = part.groupby(["config", "concept"])[columns].mean()
    base = means.loc["base"].reindex(means.index.get_level_values("concept"))
    for score in ("dino", "dino_object"):
        means[f"{score}_per_change"] = (means[score] - base[score].to_numpy()) / means["background_change"]
    text = {
        side: rows[rows["prompt_group"].isin(names)].groupby(["config", "concept"])["clip_text"].mean()
        for side, names in (("scenes", SCENE_GROUPS), ("appearance", APPEARANCE_GROUPS))
    }
    means["clip_text_scenes_over_appearance"] = (text["scenes"] - text["appearance"]).reindex(means.index)
    return means


def effect(rows: pd.DataFrame, claim: Claim, standins: dict[str, str] | None = None, rounds: int = 10_000) -> dict:
    """Return the claim's difference with its interval, and whether it holds. ``standins`` replaces configs by others.

    Raises ValueError if a config would be compared with itself.
    """
    means = _per_concept(rows, claim.groups)
    more, less = ((standins or {}).get(name, name) for name in (claim.more, claim.less))
    if more == less:
        raise ValueError(f"{claim.name}: {standins} compares {more} with itself")
    present = set(means.index.get_level_values("config"))
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
    """Return every claim as measured."""
    return [effect(rows, claim) | {"text": claim.text, "column": claim.column} for claim in CLAIMS]


def examine_negative_controls(rows: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Return by negative control the verdict on each claim: ``fails``, ``still holds``, or ``never held``."""
    named = {claim.name: claim for claim in CLAIMS}
    return {
        what: {name: _verdict(rows, named[name], standins) for name in names}
        for what, (standins, names) in NEGATIVE_CONTROLS.items()
    }


def _verdict(rows: pd.DataFrame, claim: Claim, standins: dict[str, str]) -> str:
    if not effect(rows, claim)["holds"]:
        return "never held"
    return "still holds" if effect(rows, claim, standins)["holds"] else "fails"


def by_group(rows: pd.DataFrame, columns: list[str], more: str = "ours_lag", less: str = "ours") -> dict[str, dict]:
    """Return the paired difference of two configs by prompt group: column -> effect and interval."""
    groups = list(dict.fromkeys(rows["prompt_group"]))
    return {group: {column: _plain(effect(rows, Claim("", "", column, more, less, 0.0, (group,)))) for column in columns}
            for group in groups}  # fmt: skip


def _plain(result: dict) -> dict:
    return {"mean": result["effect"], "low": result["low"], "high": result["high"]}
