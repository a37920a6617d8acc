"""When to stop: curves of identity and text alignment over the steps, and the rule that ends a training (persres/training/early_stopping.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from persres.experiments.evidence.pages import COLUMNS as TITLES
from persres.experiments.evidence.provenance import code_of
from persres.experiments.extensions.early_stopping import figures as figures
from persres.experiments.extensions.early_stopping.claims import (
    StopSteps,
    negative_controls,
    scores_by_rule,
    stop_step,
    stopping_claims,
    thresholds,
)
from persres.experiments.extensions.early_stopping.traces import COLUMNS, CURVE, SETS, TraceRunner
from persres.experiments.extensions.study import Run, Study
from persres.methods.ours import Ours
from persres.report.table_text import markdown

MODULES = (
    "persres.experiments.extensions.early_stopping.traces",
    "persres.experiments.extensions.early_stopping.claims",
)
TRIED = (0.05, 0.075, 0.1, 0.125, 0.15, 0.2, 0.3)
RULES = {
    "fixed": "150 steps, as the paper",
    "rule": "the rule",
    "mean": "the rule's mean for all",
    "permuted": "the rule's stops, handed out at random",
    "quarter": "a quarter of the steps",
    "loose": "the rule at a threshold of .99",
    "other_draws": "the rule, other draws at every check",
}


def measure(run: Run, out: Path) -> dict:
    """Both sets' curves, then the ways to stop on the ten concepts; writes ``curves.csv``, ``ways.csv``, ``ways.md`` and the figures."""
    settings = run.profile.train.variants["ours"].model_copy(update={"stop": "early"})
    made = TraceRunner(run.profile, settings, run.work, run.device, code_of(MODULES))
    names = {kind: [concept.name for concept in concepts] for kind, concepts in SETS.items()}
    every = made.traces(name for subjects in names.values() for name in subjects)
    traces = {kind: {name: every[name] for name in subjects} for kind, subjects in names.items()}
    # the tuning set is looked at wherever the rule could stop, the concepts on their whole curve
    ends = {"tuning": range(settings.early_stop_every, settings.steps + 1, settings.early_stop_every), "test": CURVE}
    curves = {
        kind: made.means([(n, s) for n in subjects for s in ends[kind]], every=False)
        for kind, subjects in names.items()
    }
    ways, seconds = _stops(traces["test"], settings)
    pairs = [(name, steps) for place, name in enumerate(names["test"]) for steps in ways.needed(place)]
    found = scores_by_rule(ways, made.means(pairs, every=True))
    claims = stopping_claims(found, "rule", settings)
    summary = {
        "settings": settings.model_dump(mode="json"),
        "stops": dict(zip(names["test"], ways.rule.tolist(), strict=True)),
        "ways": {name: table.mean().to_dict() for name, table in found.items()},
        "seconds": seconds,
        "thresholds": {
            kind: thresholds({n: t["fixed"] for n, t in own.items()}, curves[kind], settings, TRIED)
            for kind, own in traces.items()
        },
        "curve": curves["test"].groupby("steps")[list(COLUMNS)].mean().reset_index().to_dict("records"),
        "claims": claims,
        "broken": negative_controls(found, claims, settings),
    }
    _write(out, settings, traces["test"], curves, found, summary)
    return summary


def _stops(traces: dict[str, dict], settings: Ours) -> tuple[StopSteps, dict]:
    """Where each concept's training by the rule ended, and the seconds of these trainings and of those of fixed steps."""
    own = [trace["ruled"] for trace in traces.values()]
    loose = settings.model_copy(update={"early_stop_below": 0.99})
    fixed_draws, other, passing = (
        np.array([stop_step(trace[name], rule) for trace in traces.values()])
        for name, rule in (("fixed", settings), ("other", settings), ("fixed", loose))
    )
    ways = StopSteps(np.array([one["steps"] for one in own]), other, passing, settings.steps)
    rule, fixed = sum(one["seconds"] for one in own), sum(trace["seconds"] for trace in traces.values())
    agree = sum(one["steps"] == at for one, at in zip(own, fixed_draws.tolist(), strict=True))
    apart = max((one["apart"] for one in own if one["apart"] is not None), default=None)
    return ways, {"rule": rule, "fixed": fixed, "saved": 1 - rule / fixed, "apart": apart, "as_on_the_curve": agree}


def _write(out: Path, settings: Ours, traces: dict, curves: dict, found: dict, summary: dict) -> None:
    pd.concat([table.assign(set=kind) for kind, table in curves.items()]).to_csv(out / "curves.csv", index=False)
    names, stops = list(summary["stops"]), summary["stops"]
    pd.concat([table.assign(way=way, concept=names) for way, table in found.items()]).to_csv(
        out / "ways.csv", index=False
    )
    (out / "ways.md").write_text(f"# Ways to stop\n\n{rules_block(summary)}\n{tuned_block(summary)}")
    figures.curves_figure(traces, curves["test"], stops, settings, out / "curves.png")
    figures.concepts_figure(traces, curves["test"], stops, settings, out / "concepts.png")


def rules_block(summary: dict) -> str:
    """Mean steps and scores of each way."""
    rows = [
        [RULES[name], f"{found['steps']:.1f}", *(f"{found[column]:.3f}" for column in COLUMNS)]
        for name, found in summary["ways"].items()
    ]
    return markdown(["stop", "steps", *(TITLES[column] for column in COLUMNS)], rows)


def stops_block(summary: dict) -> str:
    """Where each concept stopped. Seconds stay in the summary: they vary with what else the machine does."""
    said = ", ".join(f"{name} {steps}" for name, steps in summary["stops"].items())
    found = summary["seconds"]
    return (
        f"Stops: {said}. {found['as_on_the_curve']} of {len(summary['stops'])} stopped where the long training's own checks say; the largest"
        f" difference of a factor from the long training's at the same step is {found['apart']:.1g}.\n"
    )


def tuned_block(summary: dict) -> str:
    """What each threshold gives on the nameless looks and on the concepts."""
    rows = [
        [f"{one['below']:g}", *(cell for row in (one, other) for cell in _threshold_cells(row))]
        for one, other in zip(*(summary["thresholds"][name] for name in SETS), strict=True)
    ]
    cells = ("steps", "saved", "DINO lost", "object lost", "CLIP text lost")
    return markdown(
        ["`early_stop_below`", *(f"{cell}, nameless" for cell in cells), *(f"{cell}, concepts" for cell in cells)], rows
    )


def _threshold_cells(row: dict) -> list[str]:
    return [
        f"{row['steps']:.0f}",
        f"{row['saved']:.0%}",
        *(f"{row[c]:+.3f}" for c in ("dino", "dino_object", "clip_text")),
    ]


def curve_block(summary: dict) -> str:
    """The mean curves as a table."""
    rows = [[f"{row['steps']:.0f}", *(f"{row[c]:.3f}" for c in COLUMNS)] for row in summary["curve"]]
    return markdown(["steps", *(TITLES[column] for column in COLUMNS)], rows)


STUDY = Study(
    "stopping",
    measure,
    MODULES,
    {"ways": rules_block, "stops": stops_block, "tuned": tuned_block, "curve": curve_block},
)
