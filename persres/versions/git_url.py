"""Addresses of git repositories from outside, checked before git gets them."""

from __future__ import annotations

import re
from pathlib import Path

from persres.errors import PersresError
from persres.untrusted.names import argument
from persres.untrusted.text import printable, redacted
from persres.versions.git_dvc import git

SCHEMES = ("https", "http", "ssh", "git", "file", "git+ssh", "ssh+git")


def git_url(text: object) -> str:
    """Return the address of a git repository: a URL of git's own transports, ``host:path`` or a path.

    Raises PersresError for options, transports that run commands (``ext::``) and hosts that begin with ``-``.
    """
    url = argument(text, "repository")
    scheme, separator, rest = url.partition("://")
    host = (rest if separator else url).partition("/")[0].rpartition("@")[2]
    helper = re.match(r"[\w+.-]+::", url)
    if helper or (separator and scheme.lower() not in SCHEMES) or host.startswith("-"):
        shown = printable(redacted(url), 100)
        raise PersresError(
            f"{shown!r} is no address of a git repository; name a folder, or a URL of {', '.join(SCHEMES[:3])}"
        )
    return url


def top_level(folder: Path) -> Path | None:
    """The root of the checkout that a folder is in, None without one."""
    try:
        return Path(git(folder, "rev-parse", "--show-toplevel").removesuffix("\n")).resolve()
    except PersresError:
        return None


def remote_urls(checkout: Path) -> set[str]:
    """The addresses of a checkout's git remotes, each by :func:`comparable`."""
    try:
        lines = git(checkout, "config", "--get-regexp", r"^remote\..*\.url$").splitlines()
    except PersresError:  # git fails where there are none
        return set()
    return {comparable(line.partition(" ")[2], checkout) for line in lines}


def comparable(url: str, folder: Path = Path()) -> str:
    """The address without a user, ``.git`` and a last slash; a path, from ``folder``, is absolute."""
    if "://" not in url and not re.match(r"[^/]+:", url):
        url = str((folder / url).resolve())
    return redacted(url).rstrip("/").removesuffix(".git").rstrip("/")
