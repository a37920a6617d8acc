"""Early stopping: identity and text alignment over the steps, and the rule that ends a training (persres/training/early_stopping.py)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from persres.experiments.evidence.pages import COLUMNS as TITLES
from persres.experiments.evidence.provenance import code_of
from persres.experiments.extensions.early_stopping import figures
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

CODE = ("persres.experiments.extensions.early_stopping.traces",)
THRESHOLDS = (0.05, 0.075, 0.1, 0.125, 0.15, 0.2, 0.3)
LOOSE = 0.99  # negative control: the threshold that accepts any movement
RULES = {
    "fixed": "150 steps (paper)",
    "rule": "the rule",
    "mean": "the rule's mean for all",
    "permuted": "the rule's stops, assigned to other concepts",
    "quarter": "a quarter of the steps",
    "loose": f"the rule with threshold {LOOSE:g}",
    "other_draws": "the rule, other draws at every check",
}


@dataclass(frozen=True)
class _Curves:
    """Traces and mean scores over the steps, both by set (``tuning``, ``test``)."""

    traces: dict[str, dict[str, dict]]
    means: dict[str, pd.DataFrame]


def measure(run: Run, out: Path) -> dict:
    """Trace both sets, apply the rules to the concepts; write ``curves.csv``, ``rules.csv`` and figures; return the summary."""
    settings = run.profile.train.variants["ours"].model_copy(update={"stop": "early"})
    runner = TraceRunner(run.profile, settings, run.work, run.device, code_of(CODE))
    curves, names = _curves(runner, settings), [concept.name for concept in SETS["test"]]
    stops, seconds = _stops(curves.traces["test"], settings)
    pairs = [(name, steps) for number, name in enumerate(names) for steps in stops.needed(number)]
    scores = scores_by_rule(stops, runner.means(pairs, every=True))
    claims = stopping_claims(scores, "rule", settings)
    summary = {
        "settings": settings.model_dump(mode="json"),
        "stops": dict(zip(names, stops.rule.tolist(), strict=True)),
        "rules": {name: table.mean().to_dict() for name, table in scores.items()},
        "seconds": seconds,
        "thresholds": _thresholds(curves, settings),
        "curve": curves.means["test"].groupby("steps")[list(COLUMNS)].mean().reset_index().to_dict("records"),
        "claims": claims,
        "negative_controls": negative_controls(scores, claims, settings),
    }
    _write(out, curves, scores, summary)
    _draw(out, curves, summary, settings)
    return summary


def _curves(runner: TraceRunner, settings: Ours) -> _Curves:
    """Tuning subjects are scored wherever the rule could stop, the concepts along the whole curve."""
    steps = {"tuning": range(settings.early_stop_every, settings.steps + 1, settings.early_stop_every), "test": CURVE}
    names = {kind: [concept.name for concept in concepts] for kind, concepts in SETS.items()}
    every = runner.traces(name for subjects in names.values() for name in subjects)
    traces = {kind: {name: every[name] for name in subjects} for kind, subjects in names.items()}
    means = {
        kind: runner.means([(name, s) for name in subjects for s in steps[kind]], every=False)
        for kind, subjects in names.items()
    }
    return _Curves(traces, means)


def _stops(traces: dict[str, dict], settings: Ours) -> tuple[StopSteps, dict]:
    """Where each concept's training stopped by each rule, and the seconds of the trainings by the rule and by fixed steps."""
    ruled = [trace["ruled"] for trace in traces.values()]
    any_movement = settings.model_copy(update={"early_stop_below": LOOSE})
    fixed_draws, other, loose = (
        np.array([stop_step(trace[name], rule) for trace in traces.values()])
        for name, rule in (("fixed", settings), ("other", settings), ("fixed", any_movement))
    )
    stops = StopSteps(np.array([one["steps"] for one in ruled]), other, loose, settings.steps)
    rule, fixed = sum(one["seconds"] for one in ruled), sum(trace["seconds"] for trace in traces.values())
    agree = sum(one["steps"] == step for one, step in zip(ruled, fixed_draws.tolist(), strict=True))
    difference = max((one["difference"] for one in ruled if one["difference"] is not None), default=None)
    facts = {
        "rule": rule,
        "fixed": fixed,
        "saved": 1 - rule / fixed,
        "difference": difference,
        "as_on_the_curve": agree,
    }
    return stops, facts


def _thresholds(curves: _Curves, settings: Ours) -> dict[str, list[dict]]:
    return {
        kind: thresholds(
            {name: trace["fixed"] for name, trace in traces.items()}, curves.means[kind], settings, THRESHOLDS
        )
        for kind, traces in curves.traces.items()
    }


def _write(out: Path, curves: _Curves, scores: dict[str, pd.DataFrame], summary: dict) -> None:
    every = [table.assign(set=kind) for kind, table in curves.means.items()]
    pd.concat(every).to_csv(out / "curves.csv", index=False)
    by_rule = [table.assign(rule=rule, concept=list(summary["stops"])) for rule, table in scores.items()]
    pd.concat(by_rule).to_csv(out / "rules.csv", index=False)


def _draw(out: Path, curves: _Curves, summary: dict, settings: Ours) -> None:
    data = figures.CurveData(curves.traces["test"], curves.means["test"], summary["stops"], settings)
    figures.curves_figure(data, out / "curves.png")
    figures.concepts_figure(data, out / "concepts.png")


def rules(summary: dict) -> str:
    """Mean steps and scores of each rule."""
    rows = [
        [RULES[name], f"{scores['steps']:.1f}", *(f"{scores[column]:.3f}" for column in COLUMNS)]
        for name, scores in summary["rules"].items()
    ]
    return markdown(["stop", "steps", *(TITLES[column] for column in COLUMNS)], rows)


def stops(summary: dict) -> str:
    """Where each concept stopped."""
    by_concept = ", ".join(f"{name} {steps}" for name, steps in summary["stops"].items())
    seconds = summary["seconds"]
    return (
        f"Stops: {by_concept}. {seconds['as_on_the_curve']} of {len(summary['stops'])} equal the stops computed from the 300-step trace; at"
        f" these steps the factors of both trainings differ by at most {seconds['difference']:.1g}.\n"
    )


def thresholds_table(summary: dict) -> str:
    """Steps, savings and losses by threshold, on the tuning subjects and on the concepts."""
    rows = [
        [f"{one['below']:g}", *(cell for row in (one, other) for cell in _threshold_cells(row))]
        for one, other in zip(*(summary["thresholds"][name] for name in SETS), strict=True)
    ]
    cells = ("steps", "saved", "DINO lost", "object lost", "CLIP text lost")
    heads = [f"{cell}, {kind}" for kind in ("tuning", "concepts") for cell in cells]
    return markdown(["`early_stop_below`", *heads], rows)


def _threshold_cells(row: dict) -> list[str]:
    losses = (f"{row[c]:+.3f}" for c in ("dino", "dino_object", "clip_text"))
    return [f"{row['steps']:.0f}", f"{row['saved']:.0%}", *losses]


def curve(summary: dict) -> str:
    """Mean scores of the concepts over the steps."""
    rows = [[f"{row['steps']:.0f}", *(f"{row[c]:.3f}" for c in COLUMNS)] for row in summary["curve"]]
    return markdown(["steps", *(TITLES[column] for column in COLUMNS)], rows)


BLOCKS = {"rules": rules, "stops": stops, "thresholds": thresholds_table, "curve": curve}
STUDY = Study("early_stopping", "Early stopping", measure, BLOCKS)
