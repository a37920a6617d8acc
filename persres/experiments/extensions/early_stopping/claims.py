"""What the rule of when to stop is compared with, and what is claimed of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from persres.experiments.extensions.early_stopping.traces import COLUMNS, EVERY
from persres.experiments.extensions.verdicts import at_most, claim, verdict
from persres.methods.ours import Ours
from persres.training.early_stopping import relative_change

PASSES = (
    2  # a step's forward and backward in forward passes; the backward costs at least as much, so a check counts dear
)
# Set from the tuning looks, before the concepts were measured.
SAVED, DINO, CLIP, OBJECT, TEXT, FOLLOWED = 0.1, 0.015, 0.01, 0.02, 0.005, 0.03


def stop_step(losses: list[float], settings: Ours) -> int:
    """Where the rule stops a training whose losses at its checks are known, the first before any step."""
    for seen in range(1, len(losses)):
        finished = seen * settings.early_stop_every
        if finished >= settings.steps:
            break
        if relative_change(losses[: seen + 1]) < settings.early_stop_below:
            return finished
    return settings.steps


def net_saved(steps: np.ndarray, settings: Ours) -> np.ndarray:
    """Share of the fixed steps that is not computed, less the checks: the one before the first step and every one until the stop (none
    after the last of the fixed steps), each ``early_stop_draws`` samples forward against a step's batch forward and backward."""
    checks = 1 + steps // settings.early_stop_every - (steps == settings.steps)
    paid = checks * settings.early_stop_draws / (settings.batch_size * PASSES)
    return 1 - (steps + paid) / settings.steps


@dataclass(frozen=True)
class StopSteps:
    """Steps by way and concept, in the concepts' order. ``permuted`` is no single number: it is the mean over all ways to hand
    the rule's steps out to other concepts, which is the mean over the steps themselves."""

    rule: np.ndarray
    other: np.ndarray  # the rule with other draws at every check
    loose: np.ndarray  # the rule broken: any movement is little to it
    fixed: int

    @property
    def mean(self) -> int:
        """The rule's mean, at the next state kept above it: what a fixed number would have to be."""
        return int(np.ceil(self.rule.mean() / EVERY) * EVERY)

    @property
    def quarter(self) -> int:
        """A quarter of the fixed steps, on the kept states."""
        return int(self.fixed / 4 // EVERY * EVERY)

    def needed(self, concept: int) -> list[int]:
        """All numbers of steps that a concept's pictures are wanted after."""
        own = int(self.other[concept]), int(self.loose[concept])
        every = {*self.rule.tolist(), *own, self.mean, self.quarter, self.fixed}
        return sorted(every)


def scores_by_rule(ways: StopSteps, means: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Each way's scores by concept, :data:`COLUMNS` and ``steps``, in the concepts' order; ``means`` holds a row for each pair of
    concept and steps."""
    names = list(dict.fromkeys(means["concept"]))
    table = means.set_index(["concept", "steps"])[list(COLUMNS)]

    def at(steps: np.ndarray | int) -> pd.DataFrame:
        chosen = np.broadcast_to(steps, len(names))
        rows = table.loc[[(name, int(s)) for name, s in zip(names, chosen, strict=True)]].reset_index(drop=True)
        return rows.assign(steps=chosen)

    every = [at(int(steps)) for steps in ways.rule]
    permuted = sum(part.to_numpy() for part in every) / len(every)
    return {
        "fixed": at(ways.fixed),
        "rule": at(ways.rule),
        "mean": at(ways.mean),
        "permuted": pd.DataFrame(permuted, columns=every[0].columns),
        "quarter": at(ways.quarter),
        "loose": at(ways.loose),
        "other_draws": at(ways.other),
    }


def stopping_claims(found: dict[str, pd.DataFrame], way: str, settings: Ours) -> list[dict]:
    """What is claimed, of the rule or of a way in its place."""
    own, lost = found[way], found["fixed"] - found[way]
    saved = net_saved(own["steps"].to_numpy(), settings)
    return [
        claim("steps_saved", "the rule saves a tenth of the computing or more, its own checks paid", "share saved", saved, SAVED),
        at_most("identity_dino", f"DINO loses less than {DINO} against the fixed steps", "dino", lost["dino"], DINO),
        at_most("identity_clip", f"CLIP image loses less than {CLIP}", "clip_image", lost["clip_image"], CLIP),
        at_most("identity_object", f"the object alone loses less than {OBJECT}", "dino_object", lost["dino_object"], OBJECT),
        at_most("text_clip", f"CLIP text loses less than {TEXT}", "clip_text", lost["clip_text"], TEXT),
        at_most("text_followed", f"less than {FOLLOWED} of what is asked is lost", "followed", lost["followed"], FOLLOWED),
        claim("over_mean", "each concept's own stop keeps more identity than one stop for all after the rule's mean",
              "dino", own["dino"] - found["mean"]["dino"], 0.0),
        claim("over_permuted", "and more than the rule's stops handed out to other concepts",
              "dino", own["dino"] - found["permuted"]["dino"], 0.0),
    ]  # fmt: skip


IDENTITY = ("identity_dino", "identity_object")
NEGATIVE_CONTROLS = {
    "it stops after a quarter of the steps": ("quarter", IDENTITY),
    "its threshold lets any movement pass": ("loose", IDENTITY),
    "it never stops": ("fixed", ("steps_saved",)),
}


def negative_controls(found: dict[str, pd.DataFrame], claims: list[dict], settings: Ours) -> dict[str, dict[str, str]]:
    """Which claims fall with which way in the rule's place."""
    whole = {c["claim"]: c for c in claims}
    verdicts = {}
    for what, (way, names) in NEGATIVE_CONTROLS.items():
        own = {c["claim"]: c for c in stopping_claims(found, way, settings)}
        verdicts[what] = {name: verdict(whole[name], own[name]) for name in names}
    return verdicts


def thresholds(
    losses: dict[str, list[float]], means: pd.DataFrame, settings: Ours, tried: tuple[float, ...]
) -> list[dict]:
    """For each threshold: the rule's mean steps, net share saved, and what the scores lose against the fixed steps, over the concepts
    of ``losses``."""
    rows, table = [], means.set_index(["concept", "steps"])[list(COLUMNS)]
    fixed = table.loc[[(name, settings.steps) for name in losses]].to_numpy()
    for below in tried:
        rule = settings.model_copy(update={"early_stop_below": below})
        stops = np.array([stop_step(seen, rule) for seen in losses.values()])
        lost = fixed - table.loc[list(zip(losses, stops.tolist(), strict=True))].to_numpy()
        rows.append({"below": below, "steps": float(stops.mean()), "saved": float(net_saved(stops, rule).mean()),
                     **dict(zip(COLUMNS, lost.mean(0).tolist(), strict=True))})  # fmt: skip
    return rows
