"""``dog7@v3``: a residual by name and version, downloaded as ``persres pull`` does."""

from __future__ import annotations

import hashlib
from pathlib import Path

from persres.versions.pull import SUFFIX, pull
from persres.versions.repository import Repository, cache_folder


def file_of(path_or_address: str | Path, repo: str | Path | Repository | None = None) -> Path:
    """The local file of a path or an address; an address is downloaded to the cache.

    An address is a concept (``dog7`` or ``variant/dog7``), ``@`` and a version. With ``repo`` the version can be omitted: the newest
    one. ``repo`` is a folder or a git URL, by default this folder. Raises PersresError as :func:`persres.versions.pull.pull` does.
    """
    text = str(path_or_address)
    if repo is None and (isinstance(path_or_address, Path) or "@" not in text or text.endswith(SUFFIX)):
        return Path(path_or_address)
    repository = repo if isinstance(repo, Repository) else Repository(str(repo or "."))
    concept, _, rev = text.partition("@")
    rev = rev or repository.newest()
    key = hashlib.sha256("\n".join((repository.where, rev, concept)).encode()).hexdigest()[:16]
    return pull(concept, rev, repository, cache_folder() / "refs" / key)
