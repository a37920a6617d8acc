"""When to stop: curves of identity and text alignment over the steps, and the rule that ends a training (persres/training/settling.py)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from persres.config import Profile
from persres.evidence.beyond import stopping_figures as figures
from persres.evidence.beyond.part import Part, Run
from persres.evidence.beyond.stopped import ALL, COLUMNS, CURVE, FEW, LONGEST, SETS, Bench, means, ruled, trace
from persres.evidence.beyond.stopping_claims import Ways, broken, by_way, claims_of, stop_of, thresholds
from persres.evidence.pages import COLUMNS as TITLES
from persres.evidence.provenance import code_of, weight_digests
from persres.miniworld.concepts import Concept
from persres.report.table_text import markdown
from persres.seeding import seed_from

log = logging.getLogger(__name__)
MODULES = ("persres.evidence.beyond.stopped", "persres.evidence.beyond.stopping_claims")
TRIED = (0.05, 0.075, 0.1, 0.125, 0.15, 0.2, 0.3)
WAYS = {
    "fixed": "150 steps, as the paper",
    "rule": "the rule",
    "mean": "the rule's mean for all",
    "permuted": "the rule's stops, handed out at random",
    "quarter": "a quarter of the steps",
    "other_draws": "the rule, other draws at every check",
}


def bench(run: Run, profile: Profile) -> Bench:
    """The mini profile's model and settings; what is made is kept by the code, weights and settings that it depends on."""
    settings = profile.train.variants["ours"].model_copy(update={"stop": "settled"})
    about = (code_of(MODULES), weight_digests(), profile.model_dump_json(exclude={"runtime"}))
    folder = run.work / "beyond" / "stopping" / f"{seed_from(*about):016x}"
    return Bench(profile.base, profile.encoders, profile.score.judge, settings, run.device, folder)


def measure(run: Run, out: Path) -> dict:
    """Both sets' curves, then the ways to stop on the ten concepts; writes ``curves.csv``, ``ways.csv``, ``*.md`` and the figures."""
    made = bench(run, run.profile)
    traces, curves = {}, {}
    for name, concepts in SETS.items():
        traces[name] = {concept.name: _told(trace(made, concept), name, concept) for concept in concepts}
        steps = CURVE if name == "test" else _grid(made)
        curves[name] = means(made, concepts, steps, FEW)
    ways, seconds = _stops(made, SETS["test"], traces["test"])
    found = by_way(ways, _full(made, ways))
    claims = claims_of(found, "rule", made.settings)
    summary = {
        "settings": made.settings.model_dump(mode="json"),
        "stops": dict(zip(traces["test"], ways.rule.tolist(), strict=True)),
        "ways": {name: table.mean().to_dict() for name, table in found.items()},
        "seconds": seconds,
        "thresholds": {
            name: thresholds({n: t["fixed"] for n, t in own.items()}, curves[name], made.settings, TRIED)
            for name, own in traces.items()
        },
        "curve": curves["test"].groupby("steps")[list(COLUMNS)].mean().reset_index().to_dict("records"),
        "claims": claims,
        "broken": broken(found, claims, made.settings),
    }
    _write(out, made, traces, curves, found, summary)
    return summary


def _told(found: dict, name: str, concept: Concept) -> dict:
    log.info("%s: %s trained %d steps", name, concept.name, LONGEST)
    return found


def _grid(made: Bench) -> range:
    """The steps at which the rule can stop."""
    return range(made.settings.settle_every, made.settings.steps + 1, made.settings.settle_every)


def _stops(made: Bench, concepts: Sequence[Concept], traces: dict[str, dict]) -> tuple[Ways, dict]:
    """Each concept trained by the rule, on the clock."""
    own = [ruled(made, concept) for concept in concepts]
    stops = {name: [stop_of(traces[c.name][name], made.settings) for c in concepts] for name in ("fixed", "other")}
    ways = Ways(np.array([one["steps"] for one in own]), np.array(stops["other"]), made.settings.steps)
    rule, fixed = sum(one["seconds"] for one in own), sum(traces[c.name]["seconds"] for c in concepts)
    agree = sum(one["steps"] == at for one, at in zip(own, stops["fixed"], strict=True))
    apart = max(one["apart"] for one in own if one["apart"] is not None)
    return ways, {"rule": rule, "fixed": fixed, "saved": 1 - rule / fixed, "apart": apart, "as_on_the_curve": agree}


def _full(made: Bench, ways: Ways) -> pd.DataFrame:
    """All prompts, wherever a way stops."""
    return pd.concat([means(made, [c], ways.needed(i), ALL) for i, c in enumerate(SETS["test"])], ignore_index=True)


def _write(out: Path, made: Bench, traces: dict, curves: dict, found: dict, summary: dict) -> None:
    every = pd.concat([table.assign(set=name) for name, table in curves.items()])
    every.to_csv(out / "curves.csv", index=False)
    names = list(summary["stops"])
    pd.concat([table.assign(way=way, concept=names) for way, table in found.items()]).to_csv(
        out / "ways.csv", index=False
    )
    (out / "ways.md").write_text(f"# Ways to stop\n\n{ways_block(summary)}\n{tuned_block(summary)}")
    figures.curves_figure(traces["test"], curves["test"], summary["stops"], made.settings, out / "curves.png")
    figures.concepts_figure(traces["test"], curves["test"], summary["stops"], made.settings, out / "concepts.png")


def ways_block(summary: dict) -> str:
    """Mean steps and scores of each way."""
    rows = [
        [WAYS[name], f"{found['steps']:.1f}", *(f"{found[column]:.3f}" for column in COLUMNS)]
        for name, found in summary["ways"].items()
    ]
    return markdown(["stop", "steps", *(TITLES[column] for column in COLUMNS)], rows)


def stops_block(summary: dict) -> str:
    """Where each concept stopped, and the seconds."""
    said = ", ".join(f"{name} {steps}" for name, steps in summary["stops"].items())
    took = summary["seconds"]
    return (
        f"Stops: {said}. The ten trainings took {took['rule']:.0f} s by the rule, checks included, and {took['fixed']:.0f} s with fixed steps:"
        f" {took['saved']:.0%} of the seconds saved. {took['as_on_the_curve']} of {len(summary['stops'])} stopped where the long training's own checks"
        f" say; the largest difference of a factor from the long training's at the same step is {took['apart']:.1g}.\n"
    )


def tuned_block(summary: dict) -> str:
    """What each threshold gives on the nameless looks and on the concepts."""
    rows = [
        [f"{one['below']:g}", *(cell for row in (one, other) for cell in _threshold_cells(row))]
        for one, other in zip(*(summary["thresholds"][name] for name in SETS), strict=True)
    ]
    cells = ("steps", "saved", "DINO lost", "object lost", "CLIP text lost")
    return markdown(
        ["`settle_below`", *(f"{cell}, nameless" for cell in cells), *(f"{cell}, concepts" for cell in cells)], rows
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


PART = Part(
    "stopping", measure, MODULES, {"ways": ways_block, "stops": stops_block, "tuned": tuned_block, "curve": curve_block}
)
