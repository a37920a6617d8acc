"""The interface of a study, and how a study runs: measure, publish ``data/extensions/<study>/``, update its page.

Each folder of this package is a study; its ``measure`` module defines ``STUDY``. The page is ``docs/extensions/<study>.md``. Its
tables stand between ``<!-- STUDY:BLOCK -->`` markers and are generated from the study's ``summary.json``; a test compares both.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

from persres.config.schema import Profile
from persres.errors import PersresError
from persres.experiments.evidence import pages
from persres.experiments.evidence.provenance import provenance
from persres.methods.common.registry import load_profile
from persres.units.files import publishing
from persres.units.locks import stage_lock

log = logging.getLogger(__name__)
NAMES = ("masks", "lag_by_prompt", "masked_lora", "multi_concept", "zero_shot_class", "early_stopping")
DOCS = Path("docs/extensions")
SHARED_BLOCKS: pages.Blocks = {f.__name__: f for f in (pages.claims, pages.negative_controls, pages.measured)}


@dataclass(frozen=True)
class Study:
    """One study.

    ``measure(run, out)`` writes figures and CSV files below ``out`` and returns a JSON-compatible summary with a list ``claims``
    (:func:`persres.experiments.extensions.verdicts.claim`) and a mapping ``negative_controls``. ``blocks`` maps a name to a function
    that renders one Markdown table of the summary; ``tables.md`` holds all of them, a page quotes some. ``profile``: the settings.
    """

    name: str
    title: str
    measure: Callable[[Run, Path], dict]
    blocks: pages.Blocks
    profile: str = "mini"


@dataclass(frozen=True)
class Run:
    """Where a study runs: settings file, work folder, torch device (``auto``: a GPU if there is one). ``run_study`` sets ``profile``."""

    params: Path
    work: Path
    device: str = "auto"
    profile: Profile | None = None


def study_named(name: str) -> Study:
    """Return the study of that name. Raises PersresError if there is none."""
    if name not in NAMES:
        raise PersresError(f"no study {name!r}; choose from {', '.join(NAMES)}")
    return import_module(f"persres.experiments.extensions.{name}.measure").STUDY


def run_study(name: str, run: Run, out: Path) -> Path:
    """Measure one study, publish its folder atomically, update its page; return the folder. Raises PersresError on failure."""
    study, started = study_named(name), time.monotonic()
    run, folder = replace(run, profile=load_profile(run.params, study.profile)), out / "extensions" / name
    with stage_lock(run.work, f"extensions-{name}"), publishing(folder) as fresh:
        summary = study.measure(run, fresh)
        summary["provenance"] = provenance(run.profile)
        (fresh / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        (fresh / "tables.md").write_text(tables(study, summary))
    write_blocks(study, summary)
    log.info("%s: %.0f s", folder, time.monotonic() - started)
    return folder


def write_blocks(study: Study, summary: dict) -> None:
    """Update the study's page if it exists."""
    pages.update([DOCS / f"{study.name}.md"], summary, blocks_of(study), study.name)


def blocks_of(study: Study) -> pages.Blocks:
    """Return the study's blocks and those that every study has: claims, negative controls, commit and date."""
    return study.blocks | SHARED_BLOCKS


def tables(study: Study, summary: dict) -> str:
    """Return all tables of a study as one Markdown document; each block function's docstring is its heading."""
    parts = [f"## {block.__doc__.split('.')[0]}\n\n{block(summary)}" for block in blocks_of(study).values()]
    return "\n".join([f"# {study.title}\n", *parts])
