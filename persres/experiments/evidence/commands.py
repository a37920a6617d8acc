"""The measuring commands: run a profile's pipeline, measure, publish below ``data/``, update the pages.

A pipeline runs in ``<work>/<profile>`` with the units of ``<work>``, so finished work is reused.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from persres.errors import PersresError
from persres.experiments import rivals
from persres.experiments.evidence import pages, report, speed
from persres.experiments.evidence.figures import claims_figure, frontier_figure
from persres.experiments.evidence.provenance import WEIGHTS, provenance
from persres.experiments.evidence.timing import lag_time
from persres.experiments.extensions import headlines, study
from persres.experiments.extensions.redrawn import redraw
from persres.experiments.run_profile import run_profile
from persres.experiments.sweep import sweep_table
from persres.units.files import publishing
from persres.units.locks import stage_lock

log = logging.getLogger(__name__)
PAGES = (Path("README.md"), Path("docs/results.md"), WEIGHTS / "MODEL_CARD.md")


@dataclass(frozen=True)
class Amount:
    """How much the evidence measures: prompts for the base model, nameable scenes, and scenes per concept."""

    prompts: int = 240
    scenes: int = 300
    views: int = 27


def run_evidence(params: Path, work: Path, out: Path, amount: Amount | None = None) -> str:
    """Measure the profile ``evidence`` -> ``<out>/evidence`` and the pages; return the claims as text.

    Raises PersresError on failure; earlier results then remain published.
    """
    amount = amount or Amount()
    context = run_profile("evidence", params, work)
    started = time.monotonic()
    with stage_lock(context.work, "evidence"), publishing(out / "evidence") as fresh:
        summary = report.quality(context, amount.prompts)
        summary["localisation"] = report.localisation(context, fresh, amount.scenes, amount.views)
        summary |= report.effects(context, fresh)
        summary |= {"time": lag_time(context), "provenance": provenance(context.profile)}
        report.write(fresh, summary)
    pages.update(PAGES, summary)
    log.info("%s: %.0f s after the pipeline", out / "evidence", time.monotonic() - started)
    return (out / "evidence" / "claims.md").read_text()


def run_tables(params: Path, work: Path, out: Path) -> None:
    """Measure the profile ``tables`` -> ``<out>/tables``, ``sheets``, ``rivals`` and the pages.

    Raises PersresError at the end if a unit failed: the other rows are published, the pages stay unchanged.
    """
    rivals.run(params, work, out)
    pages.update(PAGES, rivals.summary_of(out / "rivals"), rivals.BLOCKS, "rivals")


def run_sweep(params: Path, work: Path, out: Path) -> None:
    """Measure the profile ``sweep`` -> ``<out>/sweep``."""
    context = run_profile("sweep", params, work)
    with publishing(out / "sweep") as fresh:
        sweep_table(context, fresh)


def run_extensions(names: Iterable[str], run: study.Run, out: Path) -> Iterator[Path]:
    """Run the studies -> ``<out>/extensions/<study>`` and the pages; yield their folders. Raises PersresError on failure."""
    for name in names:
        folder = study.run_study(name, run, out)
        _write_headlines(out)
        yield folder


def write_pages(out: Path, figures: bool = False) -> None:
    """Update the generated blocks of all pages from the files below ``out``; with ``figures`` also redraw figures from summaries.

    Raises PersresError if there are none.
    """
    summary = out / "evidence" / "summary.json"
    if not summary.exists():
        raise PersresError(f"no {summary}; run make evidence first")
    evidence = json.loads(summary.read_text())
    pages.update(PAGES, evidence)
    (out / "evidence" / "claims.md").write_text(report.claims_text(evidence))
    if figures:
        frontier_figure(evidence["configs"], out / "evidence" / "frontier.png")
        claims_figure(evidence["claims"], out / "evidence" / "claims.png")
    if (out / "rivals" / "settings.json").exists():
        rivals.write_comparison(out / "rivals")
        pages.update(PAGES, rivals.summary_of(out / "rivals"), rivals.BLOCKS, "rivals")
    for name, result in _summaries(out).items():
        _write_study(name, result, out / "extensions" / name, figures)
    _write_headlines(out)
    if (out / "bench" / "chain.json").exists():
        pages.update((speed.PAGE,), speed.records(out / "bench"), speed.BLOCKS, "bench")


def _write_study(name: str, summary: dict, folder: Path, figures: bool) -> None:
    study.write_blocks(study.study_named(name), summary)
    (folder / "tables.md").write_text(study.tables(study.study_named(name), summary))
    if figures:
        redraw(name, summary, folder)


def _summaries(out: Path) -> dict[str, dict]:
    """The summaries below ``out``, by study."""
    files = {name: out / "extensions" / name / "summary.json" for name in study.NAMES}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}


def _write_headlines(out: Path) -> None:
    """Write the headline table when all studies are there; before, it would lose rows."""
    summaries = _summaries(out)
    if set(summaries) == set(study.NAMES):
        pages.update(PAGES, summaries, headlines.BLOCKS, "extensions")
