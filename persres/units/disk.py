"""Enough disk before a stage begins, instead of half of it and an error at night."""

from __future__ import annotations

import shutil
from pathlib import Path

from persres.errors import PersresError

LEAST = 100 << 20  # bytes that every stage wants free, logs and manifests among them


def used(folder: Path) -> int:
    """Bytes of the files below a folder; 0 where there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0


def check_disk(stage: str, work: Path, data: Path, needs: int | None, published: str) -> None:
    """``needs``: bytes that the whole stage takes in ``work`` and in ``data`` together, None where that is not known. What is there already
    counts. Raises PersresError naming the folder, what is free and what is wanted."""
    wanted = LEAST if needs is None else max(LEAST, needs - used(work / stage) - used(data / published))
    folder = next(place for place in (work, *work.absolute().parents) if place.exists())
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise PersresError(
            f"{stage}: {_gb(free)} free at {folder.absolute()}, up to {_gb(wanted)} wanted (persres estimate says for what); free some space, or"
            " give a work folder on a larger disk"
        )


def _gb(size: int) -> str:
    return f"{size / 1e9:,.2f} GB"
