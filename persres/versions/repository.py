"""A published repository, local or at a git URL: its versions, their files, and one file of one version.

Git and DVC's files are read as data; every remote of DVC works (S3, Ceph, MinIO, a folder, ssh). Downloads are checked against the
version's digest and cached by it: nothing is downloaded twice, and a pull that failed goes on with the missing files.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from persres.errors import PersresError
from persres.units.files import locked, written_whole
from persres.untrusted.documents import read_file
from persres.untrusted.names import argument, digest
from persres.untrusted.text import printable, redacted
from persres.versions.git_dvc import CommandError, all_settings, git, remote_errors
from persres.versions.git_url import comparable, git_url, remote_urls, top_level
from persres.versions.remote import Remote, checkout_remote, foreign_remote
from persres.versions.snapshot import Snapshot, fetched_snapshot, fetched_snapshots, local_snapshot
from persres.versions.tracked import DIRECTORY, StoredFile, tracked_files

log = logging.getLogger(__name__)
CACHE = "PERSRES_CACHE"  # environment variable: the folder of downloads
PARTIAL = ".pull-"  # the start of the names of downloads that have not ended
ANSWER_SECONDS = 60.0  # until a git server has listed its tags
MOST_FETCHED = 50  # versions whose tags are fetched at once
MOST_LISTING, MOST_FILE, MOST_CONFIG = 64 << 20, 64 << 30, 1 << 20  # bytes


def cache_folder() -> Path:
    """The folder of downloads: $PERSRES_CACHE, else ~/.cache/persres."""
    return Path(os.environ.get(CACHE) or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "persres")


@dataclass(frozen=True)
class Repository:
    """``where`` is a folder or a git URL; ``endpoint`` and ``remote`` override its DVC configuration."""

    where: str = "."
    remote: str | None = None
    endpoint: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine."""
        return Path(self.where).is_dir()

    @cached_property
    def _tags(self) -> list[str]:
        """Its versions at the first call: a command needs them several times, and each request goes over the network."""
        arguments = ("--tags", "--refs", "--sort=-version:refname", "--", self._url())
        lines = git(Path(), "ls-remote", *arguments, seconds=ANSWER_SECONDS).split("\n")
        names = [line.partition("\t")[2].removeprefix("refs/tags/") for line in lines]
        return [name for name in names if is_version(name)]  # others are DVC's, of single artifacts, or nobody's

    def versions(self) -> list[str]:
        """Its tags, newest version first. Raises PersresError if there is no repository."""
        return list(self._tags)

    def newest(self) -> str:
        """The newest version. Raises PersresError if nothing was published."""
        if not self._tags:
            raise PersresError(f"{self._shown} has no published version; persres publish v1 there makes one")
        return self._tags[0]

    def tag_facts(self) -> dict[str, tuple[str, str]]:
        """Date and first line of the message of its newest versions. Raises PersresError if they can't be fetched."""
        folder: Path | None = Path(self.where)
        if not self.is_local:
            folder, snapshots = fetched_snapshots(self._url(), self.versions()[:MOST_FETCHED])
            self._snapshots.update(snapshots)
        if folder is None:
            return {}
        form = "%(refname:strip=2)%09%(creatordate:iso-strict)%09%(contents:subject)"
        lines = git(folder, "for-each-ref", f"--format={form}", "refs/tags").splitlines()
        entries = (line.split("\t", 2) for line in lines if line.count("\t") >= 2)
        return {name: (date, message) for name, date, message in entries}

    def files(self, rev: str, folder: str) -> list[StoredFile]:
        """The files of a folder that DVC tracks at a version, sorted. Raises PersresError for an unknown version or folder."""
        return tracked_files(self._snapshot(rev), folder, lambda md5: self._listing(rev, md5, folder))

    def _listing(self, rev: str, md5: str, folder: str) -> bytes:
        if md5 not in self._listings:
            with tempfile.TemporaryDirectory(prefix="persres-pull-") as scratch:
                fresh = Path(scratch) / "listing"
                self._download(rev, f"{md5}{DIRECTORY}", f"the listing of {folder}", fresh)
                self._listings[md5] = read_file(fresh, MOST_LISTING)
        return self._listings[md5]

    @cached_property
    def _listings(self) -> dict[str, bytes]:
        return {}

    def text(self, rev: str, path: str) -> str:
        """The content of a text file that git tracks at a version. Raises PersresError."""
        return self._snapshot(rev).text(path)

    def _snapshot(self, rev: str) -> Snapshot:
        if rev not in self._snapshots:
            self._snapshots[rev] = self._read_snapshot(argument(rev, "version"))
        return self._snapshots[rev]

    @cached_property
    def _snapshots(self) -> dict[str, Snapshot]:
        return {}

    def _read_snapshot(self, rev: str) -> Snapshot:
        tagged = rev in self.versions()
        if not self.is_local and tagged:
            return fetched_snapshot(self._url(), rev)
        try:
            if self.is_local:
                return local_snapshot(Path(self.where), f"refs/tags/{rev}" if tagged else rev)
        except CommandError as error:
            log.debug("no commit %s: %s", rev, error)
        available = ", ".join(self.versions()[:8]) or "none yet"
        raise PersresError(f"{self._shown} has no version {printable(rev, 100)}; it has: {available}")

    def _url(self) -> str:
        return str(Path(self.where).resolve()) if self.is_local else git_url(self.where)

    @property
    def _shown(self) -> str:
        return printable(redacted(self.where), 200)

    @cached_property
    def checkout(self) -> Path | None:
        """The checkout in which the command runs, if this repository is it or one of its git remotes; else None."""
        here = top_level(Path())
        if here is None or (self.is_local and top_level(Path(self.where)) == here):
            return here
        return here if comparable(self._url()) in remote_urls(here) else None

    def _remote(self, rev: str) -> Remote:
        if self.checkout is not None and (self.checkout / ".dvc").is_dir():
            return checkout_remote(self.checkout, self.remote, self.endpoint)
        committed = Path(self.where) / ".dvc" / "config"
        if self.is_local and committed.exists():
            text = read_file(committed, MOST_CONFIG).decode(errors="replace")
            return foreign_remote(text, committed.parent.resolve(), self.remote, self.endpoint)
        return foreign_remote(self.text(rev, ".dvc/config"), None, self.remote, self.endpoint)

    def read(self, rev: str, file: StoredFile) -> Path:
        """The path of a file in the cache; downloads it if needed. Raises PersresError if the remote lacks it or has other content."""
        cached = cache_folder() / "files" / digest(file.md5, "md5")[:2] / file.md5
        if cached.is_file() and md5_of(cached) == file.md5:
            return cached
        cached.parent.mkdir(parents=True, exist_ok=True)
        with locked(cached.parent) as alone:
            for left in cached.parent.glob(f"{PARTIAL}*") if alone else ():  # by a pull that was killed
                shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=cached.parent, prefix=PARTIAL) as scratch:
                fresh = Path(scratch) / "file"
                self._download(rev, file.md5, file.path, fresh)
                os.replace(fresh, cached)
        return cached

    def _download(self, rev: str, name: str, what: str, target: Path) -> None:
        """Copy an object of DVC from the cache of a folder of this machine, else from the remote, and compare its digest."""
        md5, key = name.removesuffix(DIRECTORY), f"files/md5/{name[:2]}/{name[2:]}"
        local = self._cache() / key
        if self.is_local and local.is_file() and md5_of(local) == md5:
            shutil.copyfile(local, target)
            return
        self._remote(rev).download(key, target, MOST_FILE if name == md5 else MOST_LISTING)
        actual = md5_of(target)
        if actual != md5:
            raise PersresError(
                f"{what} at {rev}: the remote has digest {actual}, the version {md5}; it was damaged or replaced there,"
                " so push it again from a clone that has it"
            )

    def _cache(self) -> Path:
        """DVC's cache in a folder of this machine; the user's checkout may have it elsewhere."""
        root = self.checkout or Path(self.where)
        if self.checkout is None or not (root / ".dvc").is_dir():
            return root / ".dvc" / "cache"
        with remote_errors("config"):
            return Path(all_settings(root)["cache"].get("dir") or root / ".dvc" / "cache")

    def copy(self, rev: str, file: StoredFile, target: Path) -> None:
        """Write the file to ``target``, whole or not at all. Raises PersresError as :meth:`read` does."""
        source = self.read(rev, file)
        try:
            with written_whole(target) as partial:
                shutil.copyfile(source, partial)
        except OSError as error:
            raise PersresError(
                f"cannot write {target} ({error.strerror}); free some space, or name another folder"
            ) from error


def is_version(name: str) -> bool:
    """Whether a name can be a version: ASCII letters, digits, dots, dashes and underscores, the first a letter or digit."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}", name) is not None


def md5_of(path: Path) -> str:
    """DVC's digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
