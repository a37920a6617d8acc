"""One run of a stage at a time."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from persres.errors import PersresError
from persres.units.files import remove_partials
from persres.units.main_module import refuse_repeated_script

log = logging.getLogger(__name__)


@contextmanager
def stage_lock(work: Path, stage: str) -> Iterator[None]:
    """Lock a stage in this work folder; a second run waits. A killed ``dvc`` leaves its child running.

    Raises PersresError if the work folder cannot be written.
    """
    refuse_repeated_script()  # it would wait for its parent, which waits for it
    lock, holder = FileLock(work / f"{stage}.lock"), work / f"{stage}.pid"
    try:
        work.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            process = holder.read_text(errors="replace").strip() if holder.exists() else "unknown"
            log.info("%s: process %s is running this stage; waiting for it to end", stage, process)
            lock.acquire()
        holder.write_text(str(os.getpid()))
        remove_partials(work / stage)
    except (OSError, ValueError, NotImplementedError) as error:  # a NUL in the path; a file system without locks
        lock.release()
        reason = getattr(error, "strerror", None) or error
        raise PersresError(
            f"cannot write to the work folder {work}: {reason}; make it writable or free some space"
        ) from error
    try:
        yield
    finally:
        lock.release()
