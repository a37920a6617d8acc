"""The files that DVC tracks at a commit, from its dvc.lock and .dvc files, read as data.

DVC itself would run more of a stranger's repository than these: templates and loops of dvc.yaml, imports from other addresses, settings.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from persres.errors import PersresError
from persres.untrusted.documents import parse_json, parse_yaml
from persres.untrusted.names import digest, relative_path
from persres.versions.snapshot import Snapshot

FIX = "name another version, or ask who published it"
MOST_DVC_FILES = 1000
DIRECTORY = ".dir"


@dataclass(frozen=True)
class StoredFile:
    """A file of a version; ``path`` is relative to the repository."""

    path: str
    md5: str


class Out(BaseModel):
    """An output in dvc.lock or a .dvc file; a folder's digest ends in ``.dir``."""

    path: str
    md5: str | None = None
    hash: str | None = None
    size: int = 0


class Stage(BaseModel):
    """A stage in dvc.lock, or a .dvc file."""

    outs: list[Out] | None = None


class Lock(BaseModel):
    """dvc.lock."""

    stages: dict[str, Stage] | None = None

    def outs(self) -> list[Out]:
        """The outputs of all stages."""
        return [out for stage in (self.stages or {}).values() for out in stage.outs or []]


class Pipeline(BaseModel):
    """The names in dvc.yaml."""

    stages: dict[str, Any] | None = None
    artifacts: dict[str, dict[str, Any] | None] | None = None


class Entry(BaseModel):
    """A file in the listing of a folder."""

    relpath: str
    md5: str


def tracked_files(snapshot: Snapshot, folder: str, listing: Callable[[str], bytes]) -> list[StoredFile]:
    """The files below a folder, sorted; ``listing`` returns the content of a ``.dir`` object by its md5.

    Raises PersresError if there are none, and for digests and names that are none.
    """
    files = {}
    for out in _outs(snapshot, folder):
        if out.md5 is None or out.hash != "md5":  # of DVC 2, or of a file outside of the cache
            continue
        files |= {file.path: file for file in _files(out, listing)}
    inside = [file for path, file in sorted(files.items()) if path == folder or path.startswith(f"{folder}/")]
    if not inside:
        raise PersresError(f"{folder} does not exist at this version: DVC tracks no file there; {FIX}")
    return inside


def _files(out: Out, listing: Callable[[str], bytes]) -> Iterator[StoredFile]:
    path = relative_path(out.path, "output path")
    md5 = digest(out.md5.removesuffix(DIRECTORY), "md5", f"digest of {path}")
    if not out.md5.endswith(DIRECTORY):
        yield StoredFile(path, md5)
        return
    for entry in parse_json(listing(md5), list[Entry], f"the listing of {path}", FIX):
        name = relative_path(f"{path}/{entry.relpath}", f"file name in {path}")
        yield StoredFile(name, digest(entry.md5, "md5", f"digest of {name}"))


def listed_digests(listing: bytes, name: str) -> set[str]:
    """The digests of the files in a folder's listing. Raises PersresError, which calls it ``name``, where it is none."""
    return {digest(entry.md5, "md5", name) for entry in parse_json(listing, list[Entry], name, "push it again")}


def _outs(snapshot: Snapshot, folder: str) -> Iterator[Out]:
    """The outputs that hold the folder or are in it, paths relative to the repository."""
    for file in _dvc_files(snapshot, folder):
        for out in _read(snapshot, file):
            path = posixpath.join(posixpath.dirname(file), out.path)
            if _related(path, folder):
                yield out.model_copy(update={"path": path})


def _dvc_files(snapshot: Snapshot, folder: str) -> list[str]:
    files = [
        path for path in snapshot.paths()
        if (posixpath.basename(path) == "dvc.lock" or path.endswith(".dvc")) and _related(posixpath.dirname(path), folder)
    ]  # fmt: skip
    if len(files) > MOST_DVC_FILES:
        raise PersresError(f"{len(files)} .dvc files around {folder} are more than {MOST_DVC_FILES}; {FIX}")
    return files


def _read(snapshot: Snapshot, file: str) -> list[Out]:
    if file.endswith(".dvc"):
        stage = parse_yaml(snapshot.text(file), Stage | None, file, FIX) or Stage()
        return stage.outs or []
    lock = parse_yaml(snapshot.text(file), Lock | None, file, FIX) or Lock()
    pipeline = posixpath.join(posixpath.dirname(file), "dvc.yaml")
    if pipeline in snapshot.paths():  # dvc.lock remembers stages that were removed
        known = parse_yaml(snapshot.text(pipeline), Pipeline | None, pipeline, FIX) or Pipeline()
        stages = (lock.stages or {}).items()
        lock.stages = {name: stage for name, stage in stages if name.partition("@")[0] in (known.stages or {})}
    return lock.outs()


def _related(path: str, folder: str) -> bool:
    """Whether one of the two holds the other."""
    inner, outer = f"{folder}/", f"{path}/" if path else ""
    return inner.startswith(outer) or outer.startswith(inner)
