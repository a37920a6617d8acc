"""A published repository, here or at a git URL: its versions, what lies in them, and one file of one of them.

DVC's own ``list`` and ``get`` read it, so whatever remote DVC can read (S3, Ceph, MinIO, a folder, ssh) serves. What arrives is
compared with the digest that the version names, and kept by that digest: nothing is fetched twice, and a pull that broke goes on
with the files that are missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from persres.errors import PersresError
from persres.units.files import written_whole
from persres.versions.git_dvc import dvc, git

CACHE = "PERSRES_CACHE"  # names the folder of pulled files


def cache_folder() -> Path:
    """Where pulled files are kept: $PERSRES_CACHE, else ~/.cache/persres."""
    return Path(os.environ.get(CACHE) or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "persres")


@dataclass(frozen=True)
class StoredFile:
    """A file of a version. ``path`` within the repository. (DVC's lists of a folder hold no sizes.)"""

    path: str
    md5: str


@dataclass(frozen=True)
class Repository:
    """``where`` is a folder or a git URL; ``endpoint`` and ``remote`` override what its DVC configuration says."""

    where: str = "."
    remote: str | None = None
    endpoint: str | None = None

    @property
    def is_here(self) -> bool:
        """Whether it is a folder of this machine."""
        return Path(self.where).is_dir()

    @cached_property
    def _tags(self) -> list[str]:
        """Its versions as they were when first asked for: a command asks several times, and each is a way over the network."""
        lines = git(Path(), "ls-remote", "--tags", "--refs", "--sort=-version:refname", self._url()).splitlines()
        tags = [line.split("refs/tags/")[1] for line in lines]
        return [tag for tag in tags if "@" not in tag]  # those are DVC's, of single artifacts

    def versions(self) -> list[str]:
        """Its tags, the newest version first. Raises PersresError where there is no repository."""
        return list(self._tags)

    def newest(self) -> str:
        """The newest version. Raises PersresError where nothing was published."""
        found = self.versions()
        if not found:
            raise PersresError(f"{self.where} has no published version; persres publish v1 there makes one")
        return found[0]

    def files(self, rev: str, folder: str) -> list[StoredFile]:
        """What DVC keeps of a folder at a version. Raises PersresError where there is no such version or folder."""
        self._known(rev)
        command = ["list", "--json", "-R", "--show-hash", "--rev", rev, *self._choice(), self._url(), folder]
        found = json.loads(dvc(Path(), *command))
        return [
            StoredFile(f"{folder}/{entry['path']}", entry["md5"])
            for entry in found
            if entry.get("md5") and not entry.get("isdir")
        ]

    def text(self, rev: str, path: str) -> str:
        """A file that git keeps, as it stood at a version. Raises PersresError."""
        self._known(rev)
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "file"
            dvc(Path(), "get", self._url(), path, "--rev", rev, "-o", str(target), *self._choice())
            return target.read_text()

    def _known(self, rev: str) -> None:
        versions = self.versions()
        if rev not in versions and not self._is_commit(rev):
            there = ", ".join(versions[:8]) or "none yet"
            raise PersresError(f"{self.where} has no version {rev}; it has: {there}")

    def _is_commit(self, rev: str) -> bool:
        """Branches and commits serve too; only a local repository can be asked for them."""
        if not self.is_here:
            return False
        try:
            git(Path(self.where), "rev-parse", "--verify", "--quiet", f"{rev}^{{commit}}")
        except PersresError:
            return False
        return True

    def _url(self) -> str:
        return str(Path(self.where).resolve()) if self.is_here else self.where

    def _choice(self) -> list[str]:
        chosen = ["--remote", self.remote] if self.remote else []
        return [*chosen, "--remote-config", f"endpointurl={self.endpoint}"] if self.endpoint else chosen

    def read(self, rev: str, file: StoredFile, shown: str = "") -> Path:
        """The file's place in the cache, fetched where it was not there; ``shown`` names that as long work. Raises PersresError where it is missing from the remote,
        or what the remote has is not what the version names."""
        kept = cache_folder() / "files" / file.md5[:2] / file.md5
        if kept.exists() and md5_of(kept) == file.md5:
            return kept
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".pull-") as folder:
            fresh = Path(folder) / "file"
            command = ["get", self._url(), file.path, "--rev", rev, "-o", str(fresh), *self._choice()]
            dvc(Path(), *command, shown=shown)
            found = md5_of(fresh)
            if found != file.md5:
                raise PersresError(
                    f"{file.path} at {rev}: what the remote holds has digest {found}, the version says {file.md5}; it was damaged or"
                    f" replaced there. Push it again from a clone that has it"
                )
            os.replace(fresh, kept)
        return kept

    def copy(self, rev: str, file: StoredFile, target: Path, shown: str = "") -> None:
        """Write the file to ``target``, whole or not at all. Raises PersresError as :meth:`read` does."""
        source = self.read(rev, file, shown)
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
