"""``persres list``: the versions of a repository with what each is, and the residuals of one."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from persres.errors import PersresError
from persres.untrusted.text import printable
from persres.versions.compare import main_table
from persres.versions.pull import learned_files
from persres.versions.repository import Repository

log = logging.getLogger(__name__)
CONFIG, SCORE = "ours", "dino"  # of the main score, where table 1 has them
SHOWN = 4  # names of concepts in a line
MOST_FAILURES = 3  # versions in all whose data can't be read; a server that does not answer takes a minute each
MOST_READ = 50  # versions whose data are read, newest first


@dataclass(frozen=True)
class Version:
    """A version. ``concepts`` and ``score`` come from the DVC remote, and are None where it does not give them. ``score``: config, score and
    mean of table 1."""

    version: str
    date: str
    message: str
    concepts: list[str] | None = None
    score: tuple[str, str, float] | None = None

    def line(self, width: int) -> str:
        """One line for people, which begins with the version."""
        names = self.concepts or []
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        concepts = f"{len(names)} concepts ({', '.join(names[:SHOWN])}{more})" if names else "concepts not known"
        score = f"{self.score[0]} {self.score[1]} {self.score[2]:.4f}" if self.score else "no score"
        return f"{self.version:<{width}}  {self.date[:10]}  {concepts}  {score}  {self.message}".rstrip()


def listed(repository: Repository, rev: str | None, as_json: bool, details: bool = False) -> str:
    """The versions, newest first, or the residuals of version ``rev``. As JSON, versions are names, with ``details`` objects.

    Raises PersresError if the repository can't be read."""
    if rev is None:
        if as_json and not details:
            return json.dumps(repository.versions())
        versions = list(versions_of(repository))
        if as_json:
            return json.dumps([asdict(version) for version in versions], indent=1)
        width = max((len(version.version) for version in versions), default=0)
        lines = [printable(version.line(width), 1000) for version in versions]
        return "\n".join(lines) or "nothing was published yet (persres publish v1)"
    files = learned_files(repository, rev)
    if as_json:
        return json.dumps({name: {"md5": file.md5} for name, file in files.items()}, indent=1)
    width = max((len(name) for name in files), default=0)
    return "\n".join(printable(f"{name:<{width}}  {file.md5}", 1000) for name, file in files.items())


def versions_of(repository: Repository) -> Iterator[Version]:
    """Every version, newest first. Data that can't be read leave a version without; after :data:`MOST_FAILURES` no more are asked for."""
    facts, failures = _facts(repository), 0
    for number, name in enumerate(repository.versions()):
        date, message = facts.get(name, ("", ""))
        concepts = score = None
        if failures < MOST_FAILURES and number < MOST_READ:
            try:
                concepts = _concepts(repository, name)
                score = _score(repository, name)
            except PersresError as error:
                failures += concepts is None  # else only this version has no table
                log.log(logging.WARNING if failures == 1 else logging.DEBUG, "list: %s: %s", name, error)
        yield Version(name, date, message, concepts, score)


def _facts(repository: Repository) -> dict[str, tuple[str, str]]:
    try:
        return repository.tag_facts()
    except PersresError as error:
        log.warning("list: no dates and messages: %s", error)
        return {}


def _concepts(repository: Repository, name: str) -> list[str]:
    return sorted({file.rpartition("/")[2] for file in learned_files(repository, name)})


def _score(repository: Repository, name: str) -> tuple[str, str, float] | None:
    table = main_table(repository, name)
    config = CONFIG if CONFIG in table else next(iter(table), None)
    scores = {score: value for score, value in table.get(config, {}).items() if value is not None}
    score = SCORE if SCORE in scores else next(iter(scores), None)
    return None if score is None else (config, score, scores[score])
