"""What an agent keeps: inputs by digest, and finished units that the store has too. As many bytes as it may; what was used longest ago
goes first, never what is in use.

An entry is a folder, and who uses it holds a lock on that folder (flock): the system lets go of it when the process ends, however it
ends, so nothing is left behind that would have to be cleared up. Where a file system has no such locks, nothing is removed.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from persres.errors import PersresError
from persres.fleet.content_store import STORED_STAGES
from persres.units.disk import check_disk

log = logging.getLogger(__name__)
INPUTS = "inputs"  # of the work folder: what was fetched, by digest
CACHE_GB = 50.0  # some hundred packs of pictures at the size of the paper, beside photos and residuals


@contextmanager
def in_use(entry: Path) -> Iterator[None]:
    """The folder, made where it isn't there, is not removed meanwhile; and it is the one that was used last."""
    lock = _locked(entry)
    try:
        yield
    finally:
        os.close(lock)


def _locked(entry: Path) -> int:
    """A shared lock on the folder that has this name now: another process may have taken the one before away while we waited."""
    while True:
        entry.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            lock = os.open(entry, os.O_RDONLY)
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_SH)
            if _is_still(lock, entry):
                os.utime(entry, ns=(time.time_ns(),) * 2)  # the system's own stamps are some milliseconds coarse
                return lock
            os.close(lock)


def _is_still(lock: int, entry: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), entry.stat())
    except FileNotFoundError:
        return False


def make_room(stage: str, work: Path, most: int) -> None:
    """Before a shard: at most ``most`` bytes kept, fewer where the disk is all but full. Raises PersresError naming machine and folder
    where even that is too little."""
    trim(work, most)
    try:
        check_disk(stage, work, work, None, stage)
    except PersresError:
        trim(work, 0)
        try:
            check_disk(stage, work, work, None, stage)
        except PersresError as error:
            raise PersresError(f"on {socket.gethostname()}: {error}") from error


def trim(work: Path, most: int) -> int:
    """Remove what was used longest ago and is not in use, until at most ``most`` bytes are kept. Returns the bytes that are."""
    for half_gone in (path for depth in (f"{INPUTS}/*", "*") for path in work.glob(f"{depth}/.*.gone")):
        shutil.rmtree(half_gone, ignore_errors=True)  # whoever removed it was killed at it
    entries = sorted(_entries(work), key=lambda entry: (entry[0], entry[2]))
    total = sum(size for _, size, _ in entries)
    for _, size, path in entries:
        if total <= most:
            break
        if _remove(path):
            total -= size
            log.info("cache: %s removed (%.1f MB), not used for longest", path, size / 1e6)
    return total


def _entries(work: Path) -> Iterator[tuple[float, int, Path]]:
    """(last used, bytes, folder) of every input and of every unit that the store has."""
    for path in [*work.glob(f"{INPUTS}/*/*"), *(mark.parent for mark in work.glob(f"*/*/{STORED_STAGES}"))]:
        with suppress(FileNotFoundError):  # taken away by another process
            if path.is_dir() and not path.name.startswith("."):
                yield path.stat().st_mtime, _bytes(path), path


def _bytes(folder: Path) -> int:
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                size += os.lstat(os.path.join(place, name)).st_size
    return size


def _remove(entry: Path) -> bool:
    """Whether it was not in use. First renamed, so that whoever comes meanwhile finds none and fetches it again."""
    gone = entry.with_name(f".{entry.name}.{uuid.uuid4().hex}.gone")
    try:
        lock = os.open(entry, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            entry.rename(gone)
        finally:
            os.close(lock)
    except OSError:  # in use, or gone, or no locks here
        return False
    shutil.rmtree(gone, ignore_errors=True)
    return True
