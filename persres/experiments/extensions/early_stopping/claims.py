"""Claims of the study ``early_stopping``: the rule against fixed steps and against other ways to choose the steps; its controls."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from persres.experiments.extensions.early_stopping.traces import COLUMNS, EVERY
from persres.experiments.extensions.verdicts import at_most, claim, verdicts
from persres.methods.ours import Ours
from persres.training.early_stopping import relative_change

PASSES = 2  # forward passes per step: the backward pass counts as one, which overstates the cost of a check
# Bounds set on the tuning subjects, before the concepts were measured.
SAVED, DINO, CLIP, OBJECT, TEXT, FOLLOWED = 0.1, 0.015, 0.01, 0.02, 0.005, 0.03


def stop_step(losses: list[float], settings: Ours) -> int:
    """Return the step at which the rule stops, given the losses at its checks, the first before any step."""
    for check in range(1, len(losses)):
        finished = check * settings.early_stop_every
        if finished >= settings.steps:
            break
        if relative_change(losses[: check + 1]) < settings.early_stop_below:
            return finished
    return settings.steps


def net_saved(steps: np.ndarray, settings: Ours) -> np.ndarray:
    """Return the share of the fixed steps' computation that is saved, minus the checks.

    Checks run before the first step and every ``early_stop_every`` steps until the stop, but not after the last fixed step. One check
    is ``early_stop_draws`` samples forward; one step is a batch forward and backward.
    """
    checks = 1 + steps // settings.early_stop_every - (steps == settings.steps)
    cost = checks * settings.early_stop_draws / (settings.batch_size * PASSES)
    return 1 - (steps + cost) / settings.steps


@dataclass(frozen=True)
class StopSteps:
    """Steps by stopping rule and concept, [concepts]. ``permuted`` has no single number: it is the mean over all assignments of the
    rule's steps to other concepts, which is the mean over the steps themselves."""

    rule: np.ndarray
    other: np.ndarray  # the rule with other draws at every check
    loose: np.ndarray  # negative control: any movement counts as little
    fixed: int

    @property
    def mean(self) -> int:
        """The rule's mean, rounded up to the next saved state."""
        return int(np.ceil(self.rule.mean() / EVERY) * EVERY)

    @property
    def quarter(self) -> int:
        """A quarter of the fixed steps, rounded down to a saved state."""
        return int(self.fixed / 4 // EVERY * EVERY)

    def needed(self, concept: int) -> list[int]:
        """Return all numbers of steps for which a concept's images are needed."""
        single = int(self.other[concept]), int(self.loose[concept])
        return sorted({*self.rule.tolist(), *single, self.mean, self.quarter, self.fixed})


def scores_by_rule(stops: StopSteps, means: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return each rule's scores by concept, :data:`COLUMNS` and ``steps``. ``means`` has a row per pair of concept and steps."""
    names = list(dict.fromkeys(means["concept"]))
    table = means.set_index(["concept", "steps"])[list(COLUMNS)]

    def at(steps: np.ndarray | int) -> pd.DataFrame:
        selected = np.broadcast_to(steps, len(names))
        rows = table.loc[[(name, int(s)) for name, s in zip(names, selected, strict=True)]].reset_index(drop=True)
        return rows.assign(steps=selected)

    every = [at(int(steps)) for steps in stops.rule]
    permuted = sum(part.to_numpy() for part in every) / len(every)
    return {
        "fixed": at(stops.fixed),
        "rule": at(stops.rule),
        "mean": at(stops.mean),
        "permuted": pd.DataFrame(permuted, columns=every[0].columns),
        "quarter": at(stops.quarter),
        "loose": at(stops.loose),
        "other_draws": at(stops.other),
    }


def stopping_claims(scores: dict[str, pd.DataFrame], rule: str, settings: Ours) -> list[dict]:
    """Return the claims about the rule, or about another rule in its place."""
    current, lost = scores[rule], scores["fixed"] - scores[rule]
    saved = net_saved(current["steps"].to_numpy(), settings)
    return [
        claim("steps_saved", "the rule saves a tenth of the computation or more, net of its checks", "share saved", saved, SAVED),
        at_most("identity_dino", f"DINO falls by less than {DINO} against fixed steps", "dino", lost["dino"], DINO),
        at_most("identity_clip", f"CLIP image falls by less than {CLIP}", "clip_image", lost["clip_image"], CLIP),
        at_most("identity_object", f"DINO of the object falls by less than {OBJECT}", "dino_object", lost["dino_object"], OBJECT),
        at_most("text_clip", f"CLIP text falls by less than {TEXT}", "clip_text", lost["clip_text"], TEXT),
        at_most("text_followed", f"prompt followed falls by less than {FOLLOWED}", "followed", lost["followed"], FOLLOWED),
        claim("over_mean", "stopping per concept retains more identity than one stop for all at the rule's mean",
              "dino", current["dino"] - scores["mean"]["dino"], 0.0),
        claim("over_permuted", "stopping per concept retains more identity than the rule's stops assigned to other concepts",
              "dino", current["dino"] - scores["permuted"]["dino"], 0.0),
    ]  # fmt: skip


IDENTITY = ("identity_dino", "identity_object")
NEGATIVE_CONTROLS = {
    "stop after a quarter of the steps": ("quarter", IDENTITY),
    "a threshold that accepts any movement": ("loose", IDENTITY),
    "never stop": ("fixed", ("steps_saved",)),
}


def negative_controls(scores: dict[str, pd.DataFrame], claims: list[dict], settings: Ours) -> dict[str, dict[str, str]]:
    """Return verdicts on the claims that must fail; ``claims``: as measured."""
    return {
        what: verdicts(claims, stopping_claims(scores, rule, settings), names)
        for what, (rule, names) in NEGATIVE_CONTROLS.items()
    }


def thresholds(
    losses: dict[str, list[float]], means: pd.DataFrame, settings: Ours, values: tuple[float, ...]
) -> list[dict]:
    """Return for each threshold the rule's mean steps, net share saved, and the loss of each score, over the concepts of ``losses``."""
    rows, table = [], means.set_index(["concept", "steps"])[list(COLUMNS)]
    fixed = table.loc[[(name, settings.steps) for name in losses]].to_numpy()
    for below in values:
        rule = settings.model_copy(update={"early_stop_below": below})
        stops = np.array([stop_step(checks, rule) for checks in losses.values()])
        lost = fixed - table.loc[list(zip(losses, stops.tolist(), strict=True))].to_numpy()
        rows.append({"below": below, "steps": float(stops.mean()), "saved": float(net_saved(stops, rule).mean()),
                     **dict(zip(COLUMNS, lost.mean(0).tolist(), strict=True))})  # fmt: skip
    return rows
