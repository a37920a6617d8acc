"""A published repository, local or at a git URL: its versions, their files, and one file of one version.

DVC's file system reads it, so every remote of DVC works (S3, Ceph, MinIO, a folder, ssh). Downloads are checked against the version's
digest and cached by it: nothing is downloaded twice, and a pull that failed goes on with the missing files.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from persres.errors import PersresError
from persres.units.files import written_whole
from persres.versions.git_dvc import dvc_files, git

CACHE = "PERSRES_CACHE"  # environment variable: the folder of downloads


def cache_folder() -> Path:
    """The folder of downloads: $PERSRES_CACHE, else ~/.cache/persres."""
    return Path(os.environ.get(CACHE) or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "persres")


@dataclass(frozen=True)
class StoredFile:
    """A file of a version; ``path`` is relative to the repository."""

    path: str
    md5: str


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
        lines = git(Path(), "ls-remote", "--tags", "--refs", "--sort=-version:refname", self._url()).splitlines()
        tags = [line.split("refs/tags/")[1] for line in lines]
        return [tag for tag in tags if "@" not in tag]  # with @ they are DVC's, of single artifacts

    def versions(self) -> list[str]:
        """Its tags, newest version first. Raises PersresError if there is no repository."""
        return list(self._tags)

    def newest(self) -> str:
        """The newest version. Raises PersresError if nothing was published."""
        if not self._tags:
            raise PersresError(f"{self.where} has no published version; persres publish v1 there makes one")
        return self._tags[0]

    def files(self, rev: str, folder: str) -> list[StoredFile]:
        """The files of a folder that DVC tracks at a version, sorted. Raises PersresError for an unknown version or folder."""
        with self._files("list", rev) as files:
            entries = {path: info["dvc_info"] for path, info in files.find(folder, detail=True).items()}
            if not entries:
                raise FileNotFoundError(f"{folder} does not exist at {rev}")
        return [StoredFile(path.lstrip("/"), entry["md5"]) for path, entry in sorted(entries.items()) if "md5" in entry]

    def text(self, rev: str, path: str) -> str:
        """The content of a text file at a version. Raises PersresError."""
        with self._files("get", rev) as files:
            return files.read_text(path)

    def _files(self, what: str, rev: str) -> AbstractContextManager[Any]:
        if rev not in self.versions() and not self._is_commit(rev):
            available = ", ".join(self.versions()[:8]) or "none yet"
            raise PersresError(f"{self.where} has no version {rev}; it has: {available}")
        config = {"endpointurl": self.endpoint} if self.endpoint else None
        return dvc_files(what, self._url(), rev=rev, remote=self.remote, remote_config=config)

    def _is_commit(self, rev: str) -> bool:
        """Whether a local repository has a branch or commit of that name."""
        if not self.is_local:
            return False
        try:
            git(Path(self.where), "rev-parse", "--verify", "--quiet", f"{rev}^{{commit}}")
        except PersresError:
            return False
        return True

    def _url(self) -> str:
        return str(Path(self.where).resolve()) if self.is_local else self.where

    def read(self, rev: str, file: StoredFile) -> Path:
        """The path of a file in the cache; downloads it if needed. Raises PersresError if the remote lacks it or has other content."""
        cached = cache_folder() / "files" / file.md5[:2] / file.md5
        if cached.exists() and md5_of(cached) == file.md5:
            return cached
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cached.parent, prefix=".pull-") as folder:
            fresh = Path(folder) / "file"
            with self._files("get", rev) as files:
                files.get_file(file.path, str(fresh))
            digest = md5_of(fresh)
            if digest != file.md5:
                raise PersresError(
                    f"{file.path} at {rev}: the remote has digest {digest}, the version {file.md5}; it was damaged or replaced there,"
                    " so push it again from a clone that has it"
                )
            os.replace(fresh, cached)
        return cached

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


def md5_of(path: Path) -> str:
    """DVC's digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
