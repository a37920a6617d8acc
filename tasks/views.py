"""The fleet in Prefect's pages: progress and a table per stage, the sheets as images, and this library's log lines."""

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

from persres.errors import PersresError
from persres.fleet.scheduler import Progress
from persres.fleet.store import Store
from persres.logging import LONGEST
from persres.units.context import Context
from persres.untrusted.text import printable, redacted
from tasks.server import try_to_show

log = logging.getLogger("persres.fleet")
UPDATE_EVERY = 60.0  # seconds between two versions of a stage's table


class StageViews:
    """A report for :class:`persres.fleet.scheduler.Fleet`: a progress artifact and a table per stage, and a table of all stages.

    If the server fails, an artifact is skipped until the next change: units do not wait for it.
    """

    def __init__(self) -> None:
        self.artifacts: dict[str, UUID] = {}
        self.last: dict[str, Progress] = {}
        self.shown: dict[str, int] = {}  # done units in the last artifact
        self.tables: dict[str, float] = {}  # when a stage's table was last updated

    def __call__(self, progress: Progress) -> None:
        """Called at every poll of the runs; only changes are sent to the server."""
        stage, self.last[progress.stage] = progress.stage, progress
        if self.shown.get(stage) == progress.done:
            return
        if try_to_show(partial(self._bar, progress)):
            self.shown[stage] = progress.done
        now = time.monotonic()
        if progress.done == progress.total or now - self.tables.get(stage, -UPDATE_EVERY) >= UPDATE_EVERY:
            self.tables[stage] = now
            try_to_show(partial(_table, stage, [progress]))

    def _bar(self, progress: Progress) -> bool:
        percent, artifact = 100.0 * progress.done / progress.total, self.artifacts.get(progress.stage)
        if artifact is not None:
            update_progress_artifact(artifact, percent, description=describe(progress))
            return True
        key = f"progress-{_key(progress.stage)}"
        self.artifacts[progress.stage] = create_progress_artifact(percent, key=key, description=describe(progress))
        return True

    def table(self) -> None:
        """Show a table of all stages: units, rate and seconds."""
        if self.last:
            try_to_show(partial(_table, None, list(self.last.values())))


def _table(stage: str | None, stages: list[Progress]) -> None:
    """A table of one stage, or of all; an artifact of the same key is a new version of it."""
    rows = [
        {"stage": p.stage, "units": p.total, "done": p.done, "done before": p.before, "units/hour": round(p.per_hour),
         "seconds": round(p.seconds), "minutes left": None if p.left is None else round(p.left / 60, 1)}
        for p in stages
    ]  # fmt: skip
    key, what = ("stages", "units by stage") if stage is None else (f"stage-{_key(stage)}", f"{stage}: its units")
    create_table_artifact(rows, key=key, description=what)


def _key(name: str) -> str:
    """A valid key of an artifact."""
    return name.lower().replace("_", "-")


def describe(progress: Progress) -> str:
    """Units, rate and time left as text."""
    left = "" if progress.left is None else f", about {progress.left / 60:.0f} min left"
    return f"{progress.stage}: {progress.done} of {progress.total} units, {progress.per_hour:,.0f} an hour{left}"


def show_sheets(context: Context, store: Store) -> None:
    """Upload every sheet to the store and link it in an image artifact (for seven days in S3).

    A browser does not open files of a folder from Prefect's pages, so their paths go to the log instead.
    """
    for sheet in sorted((context.data / "sheets").glob("*.png")):
        store.upload(sheet, f"sheets/{sheet.name}")
        link = store.link(f"sheets/{sheet.name}")
        if link.startswith("file:"):
            log.info("fleet: sheet %s", unquote(link.removeprefix("file://")))
            continue
        labels = {"key": f"sheet-{_key(sheet.stem)}", "description": f"{sheet.stem}: every config"}
        try_to_show(partial(create_image_artifact, link, **labels))


class _Clean(logging.Formatter):
    """Log lines without terminal escapes and secrets, as on standard error."""

    def format(self, record: logging.LogRecord) -> str:
        return clean(super().format(record))


def clean(text: object) -> str:
    """Text for Prefect's pages, which more people see than a terminal: no escapes, passwords, tokens or signatures."""
    return printable(redacted(text), LONGEST, lines=True)


@contextmanager
def logs_in_the_run() -> Iterator[None]:
    """Send this library's log lines to the run's log, which Prefect's pages show, and clean the message of an error, which they show too."""
    logger, handler = logging.getLogger("persres"), APILogHandler()
    handler.setFormatter(_Clean())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    except PersresError as error:
        error.args = (clean(error),)
        raise
    finally:
        logger.removeHandler(handler)
