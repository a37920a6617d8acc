"""What a part is, and how it is run: measure, publish ``data/beyond/<part>/``, write its blocks into the pages.

A part is a module of this folder with a ``PART``. Its page is ``docs/beyond.md``, whose tables stand between
``<!-- PART:BLOCK -->`` markers and are written from the part's ``summary.json``, so that none can go stale unseen.
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
from persres.experiments.evidence.provenance import code_line, provenance
from persres.methods.common.registry import load_profile
from persres.units.files import publishing
from persres.units.locks import stage_lock

log = logging.getLogger(__name__)
NAMES = ("masks", "choosing", "stopping", "loras", "nouns", "several")
PAGES = (Path("README.md"), Path("docs/beyond.md"), Path("docs/results.md"))


@dataclass(frozen=True)
class Study:
    """``measure(run, out)`` writes tables and figures below ``out`` and returns the summary, JSON's own types, with a list
    ``claims`` (:func:`persres.experiments.extensions.verdicts.claim`) and a mapping ``broken``. ``modules``: the code behind the figures.
    ``blocks``: what the pages quote, each a function of the summary. ``profile``: whose settings the figures belong to."""

    name: str
    measure: Callable[[Run, Path], dict]
    modules: tuple[str, ...]
    blocks: pages.Blocks
    profile: str = "mini"


@dataclass(frozen=True)
class Run:
    """Where a part works: the settings' file, the scratch folder, torch's device (``auto``: a GPU where there is one), and the part's
    profile, which :func:`run_part` reads."""

    params: Path
    work: Path
    device: str = "auto"
    profile: Profile | None = None


def study_named(name: str) -> Study:
    """Raises PersresError where there is none."""
    if name not in NAMES:
        raise PersresError(f"no part {name!r}; one of {', '.join(NAMES)}")
    return import_module(f"persres.experiments.extensions.{name}").STUDY


def run_study(name: str, run: Run, out: Path) -> Path:
    """Measure one part and publish it whole; returns its folder. Raises PersresError; what was published before then stands."""
    part, started = study_named(name), time.monotonic()
    run = replace(run, profile=load_profile(run.params, part.profile))
    with stage_lock(run.work, f"beyond-{name}"), publishing(out / "beyond" / name) as fresh:
        summary = part.measure(run, fresh)
        summary["of"] = provenance(run.profile, part.modules)
        (fresh / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    write_blocks(part, summary)
    log.info("%s: %.0f s", out / "beyond" / name, time.monotonic() - started)
    return out / "beyond" / name


def write_blocks(part: Study, summary: dict) -> None:
    """Into every page that exists."""
    pages.update(PAGES, summary, blocks_of(part), part.name)


def blocks_of(part: Study) -> pages.Blocks:
    """Its own, and those that every part has: ``code``, ``claims``, ``broken``."""
    shared = {"code": lambda found: code_line(found["of"], part.modules, f"persres dev extensions {part.name}")}
    return shared | {"claims": pages.claims, "broken": pages.negative_controls} | part.blocks
