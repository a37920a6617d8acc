"""What one sees in Prefect's pages: progress and a table per stage, the sheets as images, this library's lines in a run's log."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from urllib.parse import unquote
from uuid import UUID

from prefect.artifacts import (
    create_image_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.logging.handlers import APILogHandler

from persres.fleet.scheduler import Progress
from persres.fleet.store import Store
from persres.units.context import Context
from tasks.server import shown

log = logging.getLogger("persres.fleet")
RENEWED = 60.0  # seconds between two versions of a stage's table


class StageViews:
    """A report for :class:`persres.fleet.scheduler.Fleet`: a progress artifact and a table a stage, and a table of all stages at the end. What
    the server does not take is left out until there is news: units do not wait for a page."""

    def __init__(self) -> None:
        self.artifacts: dict[str, UUID] = {}
        self.last: dict[str, Progress] = {}
        self.shown: dict[str, int] = {}  # units that were done when the server took it
        self.tables: dict[str, float] = {}  # when a stage's table was last renewed

    def __call__(self, progress: Progress) -> None:
        """Called at every look at the runs; the server is told only what has changed."""
        stage, self.last[progress.stage] = progress.stage, progress
        if self.shown.get(stage) == progress.done:
            return
        if shown(partial(self._bar, progress)):
            self.shown[stage] = progress.done
        now = time.monotonic()
        if progress.done == progress.total or now - self.tables.get(stage, -RENEWED) >= RENEWED:
            self.tables[stage] = now
            shown(partial(_table, stage, [progress]))

    def _bar(self, progress: Progress) -> bool:
        percent, known = 100.0 * progress.done / progress.total, self.artifacts.get(progress.stage)
        if known is not None:
            update_progress_artifact(known, percent, description=describe(progress))
            return True
        key = f"progress-{_key(progress.stage)}"
        self.artifacts[progress.stage] = create_progress_artifact(percent, key=key, description=describe(progress))
        return True

    def table(self) -> None:
        """Every stage with its units, pace and seconds."""
        if self.last:
            shown(partial(_table, None, list(self.last.values())))


def _table(stage: str | None, some: list[Progress]) -> None:
    """Of one stage, or of all: an artifact of the same key is a newer version of the same table."""
    rows = [
        {"stage": p.stage, "units": p.total, "done": p.done, "done before": p.before, "units/hour": round(p.per_hour),
         "seconds": round(p.seconds), "minutes left": None if p.left is None else round(p.left / 60, 1)}
        for p in some
    ]  # fmt: skip
    key, what = ("stages", "units by stage") if stage is None else (f"stage-{_key(stage)}", f"{stage}: its units")
    create_table_artifact(rows, key=key, description=what)


def _key(name: str) -> str:
    """As Prefect wants an artifact's key."""
    return name.lower().replace("_", "-")


def describe(progress: Progress) -> str:
    """Units, pace and what is left, for people."""
    left = "" if progress.left is None else f", about {progress.left / 60:.0f} min left"
    return f"{progress.stage}: {progress.done} of {progress.total} units, {progress.per_hour:,.0f} an hour{left}"


def show_sheets(context: Context, store: Store) -> None:
    """Every sheet into the store, and an image artifact that links it (for seven days in S3). A folder's files have no address that a
    browser would open from Prefect's pages: the log says where they lie."""
    for sheet in sorted((context.data / "sheets").glob("*.png")):
        store.upload(sheet, f"sheets/{sheet.name}")
        link = store.link(f"sheets/{sheet.name}")
        if link.startswith("file:"):
            log.info("fleet: sheet %s", unquote(link.removeprefix("file://")))
            continue
        said = {"key": f"sheet-{_key(sheet.stem)}", "description": f"{sheet.stem}: every method"}
        shown(partial(create_image_artifact, link, **said))


@contextmanager
def logs_in_the_run() -> Iterator[None]:
    """This library's log lines go to the run's log too, where Prefect's pages show them."""
    logger, handler = logging.getLogger("persres"), APILogHandler()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
