"""Checks the free disk space before a stage begins, so that it does not fail half-way."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from persres.errors import PersresError

LEAST = 100 << 20  # bytes that every stage needs, for logs and manifests


def folder_bytes(folder: Path) -> int:
    """The size of the files in a folder; 0 if it does not exist."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def check_disk(stage: str, work: Path, needed: int | None = None, published: Path | None = None) -> None:
    """Raises PersresError if the disk of ``work`` has too little space for a stage.

    ``needed`` is the estimate of all bytes in the work folder and in ``published``, None if not known. What exists already counts.
    """
    least = LEAST
    if needed is not None:
        existing = folder_bytes(work / stage) + (folder_bytes(published) if published else 0)
        least = max(LEAST, needed - existing)
    folder = next(path for path in (work, *work.absolute().parents) if os.path.exists(path))
    free = shutil.disk_usage(folder).free
    if free < least:
        raise PersresError(
            f"{stage}: {_gb(free)} free at {folder.absolute()}, up to {_gb(least)} needed (persres estimate has the details); free some"
            " space, or pass a work folder on a larger disk"
        )


def _gb(size: int) -> str:
    return f"{size / 1e9:,.2f} GB"
