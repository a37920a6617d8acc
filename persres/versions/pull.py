"""``persres pull dog7 --rev v3``: one learned file of a version, whole and as it was published, its model card and preview beside it."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from persres.errors import PersresError
from persres.versions.repository import Repository, StoredFile
from persres.versions.store import link, s3_remote

LEARNED, CARDS, SUFFIX = "data/learned", "data/cards", ".safetensors"
log = logging.getLogger(__name__)


def learned_files(repository: Repository, rev: str) -> dict[str, StoredFile]:
    """What was learned, by ``variant/concept``. Raises PersresError where the version or its list can't be had."""
    found = {file.path.removeprefix(f"{LEARNED}/"): file for file in repository.files(rev, LEARNED)}
    return {path.removesuffix(SUFFIX): file for path, file in sorted(found.items()) if path.endswith(SUFFIX)}


def pull(concept: str, rev: str | None, repository: Repository, out: Path) -> Path:
    """Fetch a concept (``dog7``, or ``variant/dog7`` where several variants learned it) into a folder; returns the file. Beside it come
    ``dog7.md`` and ``dog7.png``; a version without them, or a remote that lost them, is only logged.

    ``rev`` None is the newest version. Raises PersresError where the concept is not in it, the remote can't be read, or what arrives is
    not what the version names.
    """
    rev = rev or repository.newest()
    file = _the_one(concept, learned_files(repository, rev), rev)
    target = out / PurePosixPath(file.path).name
    with ThreadPoolExecutor() as threads:  # each is a program of its own that waits for the network
        beside = threads.submit(_card, file, rev, repository)
        repository.copy(rev, file, target)
        for found in beside.result():
            threads.submit(_copy_card, found, rev, repository, out)
    return target


def _card(file: StoredFile, rev: str, repository: Repository) -> list[StoredFile]:
    """The card and the preview of what was learned, where the version has them."""
    name = file.path.removeprefix(LEARNED).removesuffix(SUFFIX)
    try:
        found = [other for other in repository.files(rev, CARDS) if other.path.rpartition(".")[0] == f"{CARDS}{name}"]
    except PersresError as error:
        log.debug("no cards at %s: %s", rev, error)
        found = []
    if not found:
        log.warning("pull: %s has no model card of %s", rev, name.strip("/"))
    return found


def _copy_card(file: StoredFile, rev: str, repository: Repository, out: Path) -> None:
    try:
        repository.copy(rev, file, out / PurePosixPath(file.path).name)
    except PersresError as error:
        log.warning("pull: without %s: %s", PurePosixPath(file.path).name, error)


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
