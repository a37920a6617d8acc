"""What ``persres dev evidence``, ``tables``, ``sweep`` and ``pages`` do: run a profile's chain whole, measure, publish, write the pages.

A chain works in ``<work>/<profile>`` with the units of ``<work>``, so what any run has finished is not done again.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from persres.errors import PersresError
from persres.experiments import rivals
from persres.experiments.evidence import pages, report, speed
from persres.experiments.evidence.figures import frontier_figure
from persres.experiments.evidence.provenance import EVIDENCE_CODE, WEIGHTS, provenance
from persres.experiments.evidence.timing import lag_time
from persres.experiments.extensions import headlines
from persres.experiments.extensions import study as beyond
from persres.experiments.extensions.redrawn import redraw
from persres.experiments.run_profile import run_profile
from persres.experiments.sweep import sweep_table
from persres.units.files import publishing
from persres.units.locks import stage_lock

log = logging.getLogger(__name__)
PAGES = (Path("README.md"), Path("docs/results.md"), WEIGHTS / "MODEL_CARD.md")


def run_evidence(params: Path, work: Path, out: Path, prompts: int = 240, scenes: int = 300, views: int = 27) -> str:
    """The profile ``evidence``, localisation and the base model -> ``<out>/evidence`` and the pages; returns the claims as text.

    ``prompts`` for the base model, ``scenes`` nameable ones and ``views`` of each concept. Raises PersresError; what was
    published before then stands.
    """
    context = run_profile("evidence", params, work)
    started = time.monotonic()
    with stage_lock(context.work, "evidence"), publishing(out / "evidence") as fresh:
        summary = report.quality(context, prompts)
        summary["localisation"] = report.localisation(context, fresh, scenes, views)
        summary |= report.effects(context, fresh)
        summary |= {"time": lag_time(context), "of": provenance(context.profile, EVIDENCE_CODE)}
        report.write(fresh, summary)
    pages.update(PAGES, summary)
    log.info("%s: %.0f s after the chain", out / "evidence", time.monotonic() - started)
    return (out / "evidence" / "claims.md").read_text()


def run_tables(params: Path, work: Path, out: Path) -> None:
    """The profile ``tables`` -> ``<out>/tables``, ``sheets``, ``rivals`` and the pages. Raises PersresError at the end, naming what
    failed: the other rows are published, the pages are not written."""
    rivals.run(params, work, out)
    pages.update(PAGES, rivals.summary_of(out / "rivals"), rivals.BLOCKS, "rivals")


def run_sweep(params: Path, work: Path, out: Path) -> None:
    """The profile ``sweep`` -> ``<out>/sweep``."""
    context = run_profile("sweep", params, work)
    with publishing(out / "sweep") as fresh:
        sweep_table(context, fresh)


def write_pages(out: Path, figures: bool = False) -> None:
    """The pages' marked blocks from what ``out`` holds; ``figures``: the pictures too that summaries suffice for. Raises PersresError
    where it holds nothing."""
    summary = out / "evidence" / "summary.json"
    if not summary.exists():
        raise PersresError(f"no {summary}; run make evidence first")
    found = json.loads(summary.read_text())
    pages.update(PAGES, found)
    if figures:
        frontier_figure(found["methods"], out / "evidence" / "frontier.png")
    if (out / "rivals" / "settings.json").exists():
        pages.update(PAGES, rivals.summary_of(out / "rivals"), rivals.BLOCKS, "rivals")
    for name, found in _parts(out).items():
        beyond.write_blocks(beyond.study_named(name), found)
        if figures:
            redraw(name, found, out / "beyond" / name)
    _write_headlines(out)
    if (out / "bench" / "chain.json").exists():
        pages.update((speed.PAGE,), speed.records(out / "bench"), speed.BLOCKS, "bench")


def run_extensions(names: Iterable[str], run: beyond.Run, out: Path) -> Iterator[Path]:
    """What goes past the paper, part by part -> ``<out>/beyond/<part>`` and the pages; their folders. Raises PersresError as
    :func:`persres.experiments.extensions.study.run_study`."""
    for name in names:
        folder = beyond.run_study(name, run, out)
        redraw(name, _parts(out)[name], folder)
        _write_headlines(out)
        yield folder


def _parts(out: Path) -> dict[str, dict]:
    """The summaries that ``out`` holds, by part."""
    files = {name: out / "beyond" / name / "summary.json" for name in beyond.NAMES}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}


def _write_headlines(out: Path) -> None:
    """Once every part is there; before, a page would lose the rows of those that are not."""
    found = _parts(out)
    if set(found) == set(beyond.NAMES):
        pages.update(PAGES, found, headlines.BLOCKS, "beyond")
