"""What one sees in Prefect's pages: progress and a table per stage, the sheets as images, this library's lines in a run's log."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect.artifacts import (
    create_image_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.logging.handlers import APILogHandler

from persres.fleet.parent import Progress
from persres.fleet.store import Store
from persres.runs.context import Context


class StageViews:
    """A report for :class:`persres.fleet.parent.Fleet`: one progress artifact a stage, and a table of all stages at the end."""

    def __init__(self) -> None:
        self.artifacts: dict[str, UUID] = {}
        self.last: dict[str, Progress] = {}

    def __call__(self, progress: Progress) -> None:
        """Called at every look at the runs; the server is told only what has changed."""
        known, self.last[progress.stage] = self.last.get(progress.stage), progress
        if known is not None and known.done == progress.done:
            return
        percent = 100.0 * progress.done / progress.total
        if progress.stage in self.artifacts:
            update_progress_artifact(self.artifacts[progress.stage], percent, description=describe(progress))
            return
        key = f"progress-{progress.stage.replace('_', '-')}"
        self.artifacts[progress.stage] = create_progress_artifact(percent, key=key, description=describe(progress))

    def table(self) -> None:
        """Every stage with its units, pace and seconds."""
        rows = [
            {"stage": p.stage, "units": p.total, "done": p.done, "done before": p.before, "units/hour": round(p.per_hour),
             "seconds": round(p.seconds)}
            for p in self.last.values()
        ]  # fmt: skip
        if rows:
            create_table_artifact(rows, key="stages", description="units by stage")


def describe(progress: Progress) -> str:
    """Units, pace and what is left, for people."""
    left = "" if progress.left is None else f", about {progress.left / 60:.0f} min left"
    return f"{progress.stage}: {progress.done} of {progress.total} units, {progress.per_hour:,.0f} an hour{left}"


def show_sheets(context: Context, store: Store) -> None:
    """Every sheet into the store, and an image artifact that links it (for seven days in S3)."""
    for sheet in sorted((context.data / "sheets").glob("*.png")):
        store.upload(sheet, f"sheets/{sheet.name}")
        key = f"sheet-{sheet.stem.lower().replace('_', '-')}"
        create_image_artifact(store.link(f"sheets/{sheet.name}"), key=key, description=f"{sheet.stem}: every method")


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
