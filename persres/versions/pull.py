"""``persres pull dog7 --rev v3``: one learned file of a version, whole and as it was published."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from persres.errors import PersresError
from persres.versions.repository import Repository, StoredFile
from persres.versions.store import link, s3_remote

LEARNED, SUFFIX = "data/learned", ".safetensors"


def learned_files(repository: Repository, rev: str) -> dict[str, StoredFile]:
    """What was learned, by ``variant/concept``. Raises PersresError where the version or its list can't be had."""
    found = {file.path.removeprefix(f"{LEARNED}/"): file for file in repository.files(rev, LEARNED)}
    return {path.removesuffix(SUFFIX): file for path, file in sorted(found.items()) if path.endswith(SUFFIX)}


def pull(concept: str, rev: str | None, repository: Repository, out: Path) -> Path:
    """Fetch a concept (``dog7``, or ``variant/dog7`` where several variants learned it) into a folder; returns the file.

    ``rev`` None is the newest version. Raises PersresError where the concept is not in it, the remote can't be read, or what arrives is
    not what the version names.
    """
    rev = rev or repository.newest()
    file = _the_one(concept, learned_files(repository, rev), rev)
    target = out / PurePosixPath(file.path).name
    repository.copy(rev, file, target)
    return target


def _the_one(concept: str, files: dict[str, StoredFile], rev: str) -> StoredFile:
    if concept in files:
        return files[concept]
    named = [name for name in files if PurePosixPath(name).name == concept]
    if len(named) == 1:
        return files[named[0]]
    if named:
        raise PersresError(f"{concept} was learned by several variants at {rev}; say which: {', '.join(named)}")
    there = ", ".join(sorted({PurePosixPath(name).name for name in files}))
    raise PersresError(f"{rev} has no concept {concept}; it has: {there or 'none'}")


def make_link(concept: str, rev: str | None, seconds: int) -> str:
    """A presigned link to a concept of this checkout's default remote. Raises PersresError where that is not in S3."""
    remote, repository = s3_remote(), Repository()
    if remote is None:
        raise PersresError(
            "the default DVC remote is not in S3, and only S3 signs links; give them a copy (persres pull)"
        )
    rev = rev or repository.newest()
    return link(remote, _the_one(concept, learned_files(repository, rev), rev), seconds)
