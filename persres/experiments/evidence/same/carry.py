"""``persres same``: run older code and today's side by side, judge, and record that figures of the older stand for today's."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pandas as pd

from persres.errors import PersresError
from persres.experiments.evidence.provenance import code_of
from persres.experiments.evidence.same.differences import counts, differences
from persres.experiments.evidence.same.sides import HERE, Side, check_claims, digest_at, run_side
from persres.experiments.evidence.same.subjects import Subject, record_of, subject_named
from persres.experiments.evidence.same.tolerances import check, measured, tolerance, worst_rows

log = logging.getLogger(__name__)
CONTROL = {"narrow": True, "batch": 3}
SAID = "the older code against itself, by narrower vector instructions and drawing 3 pictures at a time for 10"


def run_same(older: Path, names: tuple[str, ...], work: Path, out: Path, exact: bool = False) -> dict[str, dict]:
    """By name, what was recorded beside the digest of the committed figures below ``out``: of profiles (``evidence``, ``tables``) and parts.
    Figures that share a run are compared by one. ``exact``: only the same bits will do. Figures that were carried within tolerances before
    can be carried on from the code that they were carried to, by the same bits alone: what was found then is found of today's code too.

    Raises PersresError naming the first thing that differs by more than its tolerance; what was recorded before then stands.
    """
    if not (older / "params.yaml").exists():
        raise PersresError(f"{older} is no checkout of persres; git worktree add {older} COMMIT makes one")
    subjects, runs, found = [subject_named(name) for name in dict.fromkeys(names)], Runs(older.resolve(), work), {}
    made = {}
    for subject in subjects:
        made[subject.name] = made_there(record_of(subject, out)[2], digest_at(runs.older, subject), subject)
        check_claims(runs.older.root, subject)
    for subject in subjects:
        fresh = entry(subject, runs, exact or not made[subject.name])
        path, said, provenance = record_of(subject, out)
        found[subject.name] = fresh if made[subject.name] else carried_on(provenance["same"], fresh)
        provenance["same"] = found[subject.name]
        path.write_text(json.dumps(said, indent=1) + "\n")
        log.info("%s: recorded in %s", subject.name, path)
    return found


def made_there(provenance: dict, older: str, subject: Subject) -> bool:
    """Whether the checkout with the digest ``older`` made the figures, or computes the same bits as what made them. False where they were
    carried to it within tolerances: small differences must not add up from one comparison to the next. Raises PersresError elsewhere."""
    same = provenance.get("same", {})
    if older in (provenance.get("code"), same.get("code")):
        return older == provenance.get("code") or "largest" not in same
    raise PersresError(
        f"{subject.name}: its figures were made by the code {provenance.get('code')}, and that checkout has {older}: name one that has it"
    )


def carried_on(before: dict, fresh: dict) -> dict:
    """What was recorded, of today's code: the same bits as the code it was recorded of, which ``through`` names."""
    return before | {"code": fresh["code"], "through": [*before.get("through", []), before["code"]]}


class Runs:
    """Comparisons of a call, each run once: today's code with the older one, and the older one with itself."""

    def __init__(self, older: Path, work: Path) -> None:
        self.older, self.work = Side("older", older), work
        self.others = {"today": Side("today", HERE), "control": Side("control", older, **CONTROL)}
        self.tables: dict[tuple, pd.DataFrame] = {}
        self.folders: dict[tuple, Path] = {}

    def table(self, subject: Subject, other: str) -> pd.DataFrame:
        """How the older code differs from ``today`` or from its ``control``."""
        key = (subject.profile, subject.script)
        if (*key, other) not in self.tables:
            if key not in self.folders:
                self.folders[key] = run_side(self.older, subject, self.work)
            folder = run_side(self.others[other], subject, self.work)
            self.tables[*key, other] = differences(self.folders[key], folder)
        return self.tables[*key, other]


def entry(subject: Subject, runs: Runs, exact: bool = False) -> dict:
    """What is recorded: today's ``code``, how many things were ``compared``, and where not all are the same to the bit also the
    ``largest`` differences with their ``tolerance``, those of single ``rows``, and the ``control``'s. Raises PersresError."""
    table = runs.table(subject, "today")
    said = {"code": code_of(subject.modules), "compared": counts(table)}
    if (table["value"] == 0).all():
        return said
    if exact:
        first = table[table["value"] != 0].iloc[0]
        raise PersresError(f"{subject.name}: {first['method']}/{first['what']} is not the same to the bit: see persres same, or measure again")  # fmt: skip
    found = measured(table)
    check(subject.name, found)
    control = runs.table(subject, "control")
    largest = {measure: value for measure, (value, _) in found.items()}
    return said | {
        "largest": largest,
        "tolerance": {measure: tolerance(measure) for measure in largest},
        "rows": worst_rows(table),
        "control": {"what": SAID, "largest": {m: value for m, (value, _) in measured(control).items()}, "rows": worst_rows(control)},
    }  # fmt: skip
