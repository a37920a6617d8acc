"""Files written whole or not at all, and their digests."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from persres.errors import PersresError
from persres.units.exchange import exchange

_PARTIAL = re.compile(r"\..+\.[0-9a-f]{32}\.partial", re.DOTALL)
ABANDONED_S = 7 * 24 * 3600  # age of a left-over that counts as abandoned where the file system has no locks


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_files(paths: list[Path], root: Path) -> dict[str, str]:
    """Digests by path relative to ``root``, sorted."""
    return {str(path.relative_to(root)): digest_file(path) for path in sorted(paths)}


def digest_folder(root: Path) -> str:
    """One digest for all files below a folder, names included."""
    files = digest_files([p for p in root.rglob("*") if p.is_file()], root)
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary file next to ``path`` that takes its name at the end, so that a reader never sees half a file.

    Its name is random: containers that share a folder have processes of the same number.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        partial.touch()
        mode = partial.stat().st_mode  # by the umask; a writer that renames a temporary file leaves 0600
        yield partial
        partial.chmod(mode)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes) -> None:
    """Write bytes, whole or not at all."""
    with written_whole(path) as partial:
        partial.write_bytes(data)


def remove_partials(folder: Path, pattern: str = "**/.*.partial") -> None:
    """Remove the files that killed writers of :func:`written_whole` left below a folder; only while nothing else writes there."""
    for path in folder.glob(pattern):
        if _PARTIAL.fullmatch(path.name):
            path.unlink(missing_ok=True)


def link_file(source: Path, target: Path) -> None:
    """Publish a unit's file as a hard link, or as a copy where the file system has none. Neither may be edited in place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


@contextmanager
def publishing(target: Path) -> Iterator[Path]:
    """A new folder to fill; it replaces the target in one step on success, and on failure nothing changes.

    Of several writers the last one's folder stays, whole. What killed writers left is removed, and a target that one of them had moved
    aside is back before the new folder is filled. Raises PersresError where the parent cannot be written, or the target is a file.
    """
    with _writable(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh, owner = _begin(target)
    try:
        yield fresh
        with _writable(target.parent):
            _sync(fresh)
            _put(fresh, target)
    finally:
        _remove(fresh)
        os.close(owner)


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise PersresError(f"cannot write to {folder}: {reason}; make it writable or free some space") from error


def _begin(target: Path) -> tuple[Path, int]:
    """A fresh folder and a descriptor with its lock, which marks a live writer; after removing what killed writers left."""
    if target.is_file() and not target.is_symlink():
        raise PersresError(f"{target} is a file where a folder of results goes; move it away")
    with locked(target.parent):  # so that a fresh folder without its lock is not taken for a left-over
        for name in _leftovers(target):
            if name.suffix == ".old" and not os.path.lexists(target):
                with suppress(FileNotFoundError):
                    os.rename(name, target)
            elif _is_abandoned(name):
                _remove(name)
        fresh = target.with_name(f".{target.name}.{uuid.uuid4().hex}.publishing")
        fresh.mkdir()
        owner = os.open(fresh, os.O_RDONLY)
        _lock(owner)
    return fresh, owner


def _leftovers(target: Path) -> list[Path]:
    """Folders of other writers of a target, the newest first; version 0.1 gave them no random part."""
    pattern = re.compile(rf"\.{re.escape(target.name)}(\.[0-9a-f]{{32}})?\.(publishing|old)")
    names = [path for path in target.parent.iterdir() if pattern.fullmatch(path.name)]
    return sorted(names, key=_modified, reverse=True)


def _modified(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:  # its writer ends at this moment
        return time.time()


def _put(fresh: Path, target: Path) -> None:
    """Put the fresh folder in the target's place; a kill at any point leaves one of the two there, or the old one to be restored."""
    with locked(target.parent):
        if not os.path.lexists(target):
            os.rename(fresh, target)
        elif not exchange(fresh, target):  # else the old content has the fresh name now, which the caller removes
            old = target.with_name(f".{target.name}.{uuid.uuid4().hex}.old")
            os.rename(target, old)
            os.rename(fresh, target)
            _remove(old)
        _sync_one(target.parent)


def _remove(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Bring files and folders below a folder to the disk, so that a power cut after the rename finds them whole."""
    for root, _, names in os.walk(folder, topdown=False):
        paths = [Path(root, name) for name in names]
        for path in [path for path in paths if not path.is_symlink()]:
            _sync_one(path)
        _sync_one(Path(root))


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would block
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # folders of some network file systems
            raise
    finally:
        os.close(descriptor)


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Lock a folder among its writers; yields whether the file system has locks. Renames keep folders whole where it has none."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield _lock(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Wait for a lock that ends with the descriptor. Network file systems may have none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def _is_abandoned(path: Path) -> bool:
    """Whether no live writer fills a folder."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return True  # a link that was published over, or gone
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError:  # no locks here
        return time.time() - _modified(path) > ABANDONED_S
    finally:
        os.close(descriptor)
