"""``persres pull dog7 --rev v3``: one learned file of a version, whole and as it was published, its model card and preview beside it."""

from __future__ import annotations

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from persres.errors import PersresError
from persres.versions.git_dvc import configuration
from persres.versions.repository import Repository, StoredFile
from persres.versions.store import link, s3_remote

LEARNED, CARDS, SUFFIX = "data/learned", "data/cards", ".safetensors"
log = logging.getLogger(__name__)


def learned_files(repository: Repository, rev: str) -> dict[str, StoredFile]:
    """What was learned, by ``variant/concept``. Raises PersresError where the version or its list can't be had."""
    files = sorted(repository.files(rev, LEARNED), key=lambda file: file.path)
    return {_name_of(file): file for file in files if file.path.endswith(SUFFIX)}


@dataclass(frozen=True)
class Pulled:
    """What a pull wrote: the learned file, and what came beside it (its model card, its preview) where that was to be had."""

    concept: str
    version: str
    md5: str
    file: str
    beside: list[str]

    def as_json(self) -> str:
        """For scripts."""
        return json.dumps(asdict(self), indent=1)


def pull(concept: str, rev: str | None, repository: Repository, out: Path) -> Path:
    """As :func:`pull_all`; returns the learned file."""
    return Path(pull_all(concept, rev, repository, out).file)


def pull_all(concept: str, rev: str | None, repository: Repository, out: Path) -> Pulled:
    """Fetch a concept (``dog7``, or ``variant/dog7`` where several variants learned it) into a folder. Beside it come ``dog7.md`` and
    ``dog7.png``; a version without them, or a remote that lost them, is only logged.

    ``rev`` None is the newest version. Raises PersresError where the concept is not in it, the remote can't be read, or what arrives is
    not what the version names.
    """
    rev = rev or repository.newest()
    file = _the_one(concept, learned_files(repository, rev), rev)
    target = out / PurePosixPath(file.path).name
    with ThreadPoolExecutor() as threads:  # each is a program of its own that waits for the network
        beside = threads.submit(_card, file, rev, repository)
        repository.copy(rev, file, target, shown=f"pull: {file.path} at {rev}")
        copies = [threads.submit(_copy_card, found, rev, repository, out) for found in beside.result()]
    came = [str(copy.result()) for copy in copies if copy.result()]
    return Pulled(_name_of(file), rev, file.md5, str(target), came)


def _name_of(file: StoredFile) -> str:
    return file.path.removeprefix(f"{LEARNED}/").removesuffix(SUFFIX)


def _card(file: StoredFile, rev: str, repository: Repository) -> list[StoredFile]:
    """The card and the preview of what was learned, where the version has them."""
    name = _name_of(file)
    try:
        found = [other for other in repository.files(rev, CARDS) if other.path.rpartition(".")[0] == f"{CARDS}/{name}"]
    except PersresError as error:
        log.debug("no cards at %s: %s", rev, error)
        found = []
    if not found:
        log.warning("pull: %s has no model card of %s", rev, name)
    return found


def _copy_card(file: StoredFile, rev: str, repository: Repository, out: Path) -> Path | None:
    target = out / PurePosixPath(file.path).name
    try:
        repository.copy(rev, file, target)
    except PersresError as error:
        log.warning("pull: without %s: %s", target.name, error)
        return None
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
    remote, repository = s3_remote(configuration(Path())), Repository()
    if remote is None:
        raise PersresError(
            "the default DVC remote is not in S3, and only S3 signs links; give them a copy (persres pull)"
        )
    rev = rev or repository.newest()
    return link(remote, _the_one(concept, learned_files(repository, rev), rev), seconds)
