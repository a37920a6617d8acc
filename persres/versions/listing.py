"""``persres list``: the versions of a repository, and the residuals of one."""

from __future__ import annotations

import json

from persres.untrusted.text import printable
from persres.versions.pull import learned_files
from persres.versions.repository import Repository


def listed(repository: Repository, rev: str | None, as_json: bool) -> str:
    """The versions, newest first, or the residuals of version ``rev``. Raises PersresError if the repository can't be read."""
    if rev is None:
        versions = repository.versions()
        if as_json:
            return json.dumps(versions)
        return "\n".join(versions) or "nothing was published yet (persres publish v1)"
    files = learned_files(repository, rev)
    if as_json:
        return json.dumps({name: {"md5": file.md5} for name, file in files.items()}, indent=1)
    width = max((len(name) for name in files), default=0)
    return "\n".join(printable(f"{name:<{width}}  {file.md5}", 1000) for name, file in files.items())
