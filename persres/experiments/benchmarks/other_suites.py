"""Benchmarks without a model: ``nouns`` (short texts) and ``chain`` (the pipeline's overhead)."""

from __future__ import annotations

import json
from pathlib import Path

from persres.experiments.benchmarks.chain import chain_overhead
from persres.experiments.benchmarks.nouns import NounSettings, noun_times
from persres.units.files import write_atomic
from persres.units.provenance import versions

OTHERS = ("nouns", "chain")


def run_other(name: str, out: Path, params: Path, work: Path, rounds: int = 3) -> str:
    """Run one of :data:`OTHERS`, write ``<out>/<name>.json`` and return its text. Raises PersresError if a run fails.

    ``chain`` runs the mini profile's pipeline in empty folders below ``work``.
    """
    record = noun_times(NounSettings(rounds=rounds)) if name == "nouns" else chain_overhead(params, None, work)
    text = json.dumps(record | {"versions": versions()}, indent=1) + "\n"
    write_atomic(out / f"{name}.json", text.encode())
    return text
