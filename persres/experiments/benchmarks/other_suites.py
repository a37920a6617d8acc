"""``persres dev bench nouns`` and ``persres dev bench chain``: what has no model beside it to be measured against."""

from __future__ import annotations

import json
from pathlib import Path

from persres.experiments.benchmarks.chain import chain_overhead
from persres.experiments.benchmarks.nouns import noun_times
from persres.units.files import write_atomic
from persres.units.provenance import versions

OTHERS = ("nouns", "chain")


def run_other(name: str, out: Path, params: Path, work: Path, rounds: int = 3) -> str:
    """Measure WordNet's nouns, or what running the mini profile's chain costs beside its work, each stage order in its own empty folder
    below ``work``; write ``<out>/<name>.json`` and return it. Raises PersresError where a run fails."""
    found = noun_times(rounds=rounds) if name == "nouns" else chain_overhead(params, None, work)
    text = json.dumps(found | {"versions": versions()}, indent=1) + "\n"
    write_atomic(out / f"{name}.json", text.encode())
    return text
