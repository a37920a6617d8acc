"""``dog7@v3``: a residual by name and version, as ``persres pull`` fetches it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from persres.versions.pull import SUFFIX, pull
from persres.versions.repository import Repository, cache_folder


def file_of(path_or_ref: str | Path, repo: str | Path | Repository | None = None) -> Path:
    """The file that is meant. A ref is a concept (``dog7``, or ``variant/dog7``), with ``@`` and a version or, where ``repo`` is said,
    without: then it is the newest one. ``repo`` is a folder or a git URL, this folder if it is not said.

    What was fetched is kept in the cache, under its own name. Raises PersresError as :func:`persres.versions.pull.pull` does.
    """
    text = str(path_or_ref)
    if repo is None and (isinstance(path_or_ref, Path) or "@" not in text or text.endswith(SUFFIX)):
        return Path(path_or_ref)
    repository = repo if isinstance(repo, Repository) else Repository(str(repo or "."))
    concept, _, rev = text.partition("@")
    rev = rev or repository.newest()
    whose = hashlib.sha256("\n".join((repository.where, rev, concept)).encode()).hexdigest()[:16]
    return pull(concept, rev, repository, cache_folder() / "refs" / whose)
