"""A worker's cache: inputs by digest, and finished units that the store has too, of limited size, least recently used first out.

An entry is a folder. Its users hold a lock on it (flock), which the system releases when their process ends. On a file system
without such locks nothing is removed.
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
from persres.fleet.content_store import IN_STORE
from persres.units.disk import check_disk

log = logging.getLogger(__name__)
INPUTS = "inputs"  # in the work folder: fetched files, by digest
CACHE_GB = 50.0  # some hundred image archives of the paper's size, with photos and residuals


@contextmanager
def in_use(entry: Path) -> Iterator[None]:
    """Create a folder if needed and protect it from removal; it becomes the most recently used."""
    lock = _locked(entry)
    try:
        yield
    finally:
        os.close(lock)


def _locked(entry: Path) -> int:
    """A shared lock on the folder of this name; another process may have removed an earlier one while we waited."""
    while True:
        entry.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            lock = os.open(entry, os.O_RDONLY)
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_SH)
            if _is_same(lock, entry):
                os.utime(entry, ns=(time.time_ns(),) * 2)  # the system's stamps are coarse by some milliseconds
                return lock
            os.close(lock)


def _is_same(lock: int, entry: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), entry.stat())
    except FileNotFoundError:
        return False


def make_room(stage: str, work: Path, most: int) -> None:
    """Trim the cache to ``most`` bytes, to 0 if the disk is nearly full. Raises PersresError if that is not enough."""
    trim(work, most)
    try:
        check_disk(stage, work)
    except PersresError:
        trim(work, 0)
        try:
            check_disk(stage, work)
        except PersresError as error:
            raise PersresError(f"on {socket.gethostname()}: {error}") from error


def trim(work: Path, most: int) -> int:
    """Remove the least recently used entries that are not in use until ``most`` bytes are left. Returns the bytes that are left."""
    for removed in (path for depth in (f"{INPUTS}/*", "*") for path in work.glob(f"{depth}/.*.gone")):
        shutil.rmtree(removed, ignore_errors=True)  # a process was killed while it removed this
    entries = sorted(_entries(work), key=lambda entry: (entry[0], entry[2]))
    total = sum(size for _, size, _ in entries)
    for _, size, path in entries:
        if total <= most:
            break
        if _remove(path):
            total -= size
            log.info("cache: removed %s (%.1f MB), the least recently used", path, size / 1e6)
    return total


def _entries(work: Path) -> Iterator[tuple[float, int, Path]]:
    """(last used, bytes, folder) of every input and of every unit that the store has."""
    marks = work.glob(f"*/*/{IN_STORE}")
    for path in [*work.glob(f"{INPUTS}/*/*"), *(mark.parent for mark in marks)]:
        with suppress(FileNotFoundError):  # another process removed it
            if path.is_dir() and not path.name.startswith("."):
                yield path.stat().st_mtime, _bytes(path), path


def _bytes(folder: Path) -> int:
    size = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                size += os.lstat(os.path.join(parent, name)).st_size
    return size


def _remove(entry: Path) -> bool:
    """Remove an entry that is not in use; returns whether it was removed. A rename first hides it from other processes."""
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
