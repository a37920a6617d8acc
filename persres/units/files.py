"""Files written whole or not at all, and their digests."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from persres.errors import PersresError


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


def link_file(source: Path, target: Path) -> None:
    """Publish a unit's file as a hard link, or as a copy where the file system has none. Neither may be edited in place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


@contextmanager
def publishing(target: Path) -> Iterator[Path]:
    """A new folder to fill; it replaces the target on success, and on failure nothing changes."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_name(f".{target.name}.publishing")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
    except OSError as error:
        raise PersresError(
            f"cannot write to {target.parent}: {error.strerror}; make it writable or free some space"
        ) from error
    try:
        yield fresh
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        fresh.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
