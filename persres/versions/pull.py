"""``persres pull dog7 --rev v3``: downloads one residual of a version, with its model card and preview."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from persres.errors import PersresError
from persres.versions.git_dvc import configuration
from persres.versions.repository import Repository, StoredFile
from persres.versions.store import link, s3_remote

LEARNED, CARDS, SUFFIX = "data/learned", "data/cards", ".safetensors"
log = logging.getLogger(__name__)


def learned_files(repository: Repository, rev: str) -> dict[str, StoredFile]:
    """The residuals of a version by ``variant/concept``. Raises PersresError if the version can't be read."""
    return {_name_of(file): file for file in repository.files(rev, LEARNED) if file.path.endswith(SUFFIX)}


@dataclass(frozen=True)
class Pulled:
    """What a pull wrote: the residual, and its model card and preview if the version has them."""

    concept: str
    version: str
    md5: str
    file: str
    extras: list[str]

    def as_json(self) -> str:
        """For scripts."""
        return json.dumps(asdict(self), indent=1)


def pull(concept: str, rev: str | None, repository: Repository, out: Path) -> Path:
    """As :func:`pull_all`; returns the residual's path."""
    return Path(pull_all(concept, rev, repository, out).file)


def pull_all(concept: str, rev: str | None, repository: Repository, out: Path) -> Pulled:
    """Download a concept into a folder: ``dog7``, or ``variant/dog7`` if several variants trained it.

    ``dog7.md`` and ``dog7.png`` come with it; a version without them, or a remote that lost them, is only logged. ``rev`` None is the
    newest version. Raises PersresError if the version has no such concept, the remote can't be read, or a file's digest differs.
    """
    rev = rev or repository.newest()
    file = _select(concept, learned_files(repository, rev), rev)
    target = out / PurePosixPath(file.path).name
    log.info("pull: %s at %s", file.path, rev)
    repository.copy(rev, file, target)
    extras = [_copy_card(card, rev, repository, out) for card in _cards(file, rev, repository)]
    return Pulled(_name_of(file), rev, file.md5, str(target), [str(path) for path in extras if path])


def pull_every(rev: str | None, repository: Repository, out: Path) -> Iterator[Pulled]:
    """Download every residual of a version as :func:`pull_all` does, into a folder for each variant where there are several; yields what is
    done. A file that can't be had costs the others nothing: after the last, raises PersresError naming those that are missing."""
    rev = rev or repository.newest()
    names = list(learned_files(repository, rev))
    variants, failed = {PurePosixPath(name).parent for name in names}, {}
    for name in names:
        try:
            yield pull_all(name, rev, repository, out / PurePosixPath(name).parent if len(variants) > 1 else out)
        except PersresError as error:
            failed[name] = error
            log.warning("pull: %s: %s", name, error)
    if failed:
        raise PersresError(
            f"{len(failed)} of {len(names)} residuals of {rev} are missing: {', '.join(failed)} ({next(iter(failed.values()))}); the others are in"
            f" {out}; run again"
        )


def _name_of(file: StoredFile) -> str:
    return file.path.removeprefix(f"{LEARNED}/").removesuffix(SUFFIX)


def _cards(file: StoredFile, rev: str, repository: Repository) -> list[StoredFile]:
    """The model card and the preview of a residual, if the version has them."""
    name = _name_of(file)
    try:
        cards = [
            card for card in repository.files(rev, CARDS) if card.path in (f"{CARDS}/{name}.md", f"{CARDS}/{name}.png")
        ]
    except PersresError as error:
        log.debug("no cards at %s: %s", rev, error)
        cards = []
    if not cards:
        log.warning("pull: %s has no model card of %s", rev, name)
    return cards


def _copy_card(file: StoredFile, rev: str, repository: Repository, out: Path) -> Path | None:
    target = out / PurePosixPath(file.path).name
    try:
        repository.copy(rev, file, target)
    except PersresError as error:
        log.warning("pull: without %s: %s", target.name, error)
        return None
    return target


def _select(concept: str, files: dict[str, StoredFile], rev: str) -> StoredFile:
    if concept in files:
        return files[concept]
    names = [name for name in files if PurePosixPath(name).name == concept]
    if len(names) == 1:
        return files[names[0]]
    if names:
        raise PersresError(f"several variants trained {concept} at {rev}; use one of: {', '.join(names)}")
    available = ", ".join(sorted({PurePosixPath(name).name for name in files}))
    raise PersresError(f"{rev} has no concept {concept}; it has: {available or 'none'}")


def make_link(concept: str, rev: str | None, seconds: float) -> str:
    """A presigned link to a concept of this checkout's default remote. Raises PersresError if the remote is not in S3."""
    remote, repository = s3_remote(configuration(Path())), Repository()
    if remote is None:
        raise PersresError("the default DVC remote is not in S3, and only S3 signs links; use persres pull instead")
    rev = rev or repository.newest()
    return link(remote, _select(concept, learned_files(repository, rev), rev), seconds)
