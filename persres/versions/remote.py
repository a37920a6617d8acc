"""A repository's DVC remote: which one, with which settings, and whether the user's credentials may go there.

A repository's own configuration names the server. Credentials go to it only if the user chose it: in their checkout, whose ``dvc pull``
would send them too, or by ``--remote`` or ``--endpoint``. From any other repository, files come without credentials or not at all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persres.errors import PersresError
from persres.untrusted.names import argument
from persres.untrusted.text import printable, redacted
from persres.versions.download import download_anonymously, download_from_folder, download_with_dvc
from persres.versions.git_dvc import NoRemote, all_settings, check_installed, remote_errors

CREDENTIAL_SOURCES = ("profile", "credentialpath", "configpath")
ANONYMOUS = ("s3", "http", "https")


@dataclass(frozen=True)
class Remote:
    """``settings``: of ``remotes[name]``; ``trusted``: whether it may have the user's credentials; ``base``: of a relative folder."""

    name: str
    remotes: dict[str, dict[str, Any]]
    trusted: bool
    base: Path | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of this remote: ``url``, ``endpointurl`` and the like."""
        return self.remotes[self.name]

    def download(self, key: str, target: Path, most: int) -> None:
        """Download the object ``key`` of at most ``most`` bytes. Raises PersresError."""
        url = str(self.settings["url"])
        scheme = _scheme(url)
        if scheme == "file":
            download_from_folder(self._folder(url), key, target)
        elif self.trusted:
            download_with_dvc(self.remotes, self.name, key, target)
        elif scheme in ANONYMOUS:
            with _explained(self):
                download_anonymously(self.settings, key, target, most)
        else:
            raise PersresError(_refusal(self, "needs credentials"))

    def _folder(self, url: str) -> Path:
        folder = Path(url.removeprefix("file://")).expanduser()
        if not folder.is_absolute() and self.base is None:
            raise PersresError(f"DVC remote {self.name} is a folder of another machine; name another with --remote")
        return (self.base or Path()) / folder


class _explained:
    """Adds to a refusal that no credentials were sent, why, and the option that sends them."""

    def __init__(self, remote: Remote) -> None:
        self.remote = remote

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if getattr(error, "code", None) in (401, 403):
            raise PersresError(_refusal(self.remote, f"answers {error.code}")) from error
        if isinstance(error, Exception) and not isinstance(error, PersresError):
            with remote_errors("get"):
                raise error


def _refusal(remote: Remote, problem: str) -> str:
    where = printable(redacted(remote.settings.get("endpointurl") or remote.settings["url"]), 200)
    return (
        f"DVC remote {printable(remote.name, 100)} ({where}) {problem}, and no credentials were sent, since this repository is neither"
        f" your checkout nor a git remote of it; if you trust that server, add --remote {printable(remote.name, 100)}"
    )


def checkout_remote(checkout: Path, name: str | None, endpoint: str | None) -> Remote:
    """A remote of the user's checkout, from all levels of DVC's configuration. Raises PersresError if there is none."""
    with remote_errors("config"):
        config = all_settings(checkout)
    return _selected(dict(config["remote"]), name or config["core"].get("remote"), endpoint, trusted=True)


def foreign_remote(text: str, base: Path | None, name: str | None, endpoint: str | None) -> Remote:
    """A remote of another's repository, from the text of its .dvc/config. Raises PersresError if it names none.

    Which of the user's profiles and files have the credentials, it does not decide.
    """
    sections = read_config(text)
    remotes = {
        match[1].lower(): {key: value for key, value in settings.items() if key not in CREDENTIAL_SOURCES}
        for section, settings in sections.items()
        if (match := re.fullmatch(r'remote\s+"(.*)"', section)) and "url" in settings
    }
    default = sections.get("core", {}).get("remote")
    return _selected(remotes, name or default, endpoint, bool(name or endpoint), base)


def _selected(
    remotes: dict[str, dict[str, Any]], name: str | None, endpoint: str | None, trusted: bool, base: Path | None = None
) -> Remote:
    if not name:
        raise NoRemote("the repository has no default DVC remote", "name one with --remote")
    name = argument(name, "DVC remote").lower()
    if name not in remotes:
        available = ", ".join(printable(known, 100) for known in list(remotes)[:8])
        raise NoRemote(
            f"the repository has no DVC remote {name}", f"name another with --remote; it has: {available or 'none'}"
        )
    if endpoint:
        remotes = remotes | {name: remotes[name] | {"endpointurl": argument(endpoint, "endpoint")}}
    return Remote(name, remotes, trusted, base)


def read_config(text: str) -> dict[str, dict[str, str]]:
    """The sections of a DVC configuration file, without quotes around their names. Raises PersresError for a broken file."""
    check_installed()
    from configobj import ConfigObj

    try:
        parsed = ConfigObj(text.splitlines(), interpolation=False).dict()
    except Exception as error:  # its own errors, and what a parser of 2009 raises besides
        raise PersresError(
            f".dvc/config is not valid ({printable(error, 200)}); fix it, or ask who published it"
        ) from error
    return {
        section.strip("'").strip(): {key.lower(): value for key, value in entries.items() if isinstance(value, str)}
        for section, entries in parsed.items()
        if isinstance(entries, dict)
    }


def _scheme(url: str) -> str:
    """The scheme of a URL; of a path ``file``."""
    match = re.match(r"([A-Za-z][\w+.-]*)://", url)
    return match[1].lower() if match else "file"
