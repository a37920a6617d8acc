"""The files of one commit, read as data: nothing of a repository is checked out or run."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from persres.errors import PersresError
from persres.versions.git_dvc import commit_hash, git

log = logging.getLogger(__name__)
MOST_BYTES = 4 << 20  # of one text file
FETCH_SECONDS = 1800.0


@dataclass(frozen=True)
class Snapshot:
    """The files that git tracks at ``commit``; ``folder`` has its objects. ``owner`` deletes a temporary folder with the last reference."""

    folder: Path
    commit: str
    owner: object = field(default=None, repr=False)

    @cached_property
    def _blobs(self) -> dict[str, tuple[str, int]]:
        """Path -> hash and size of each regular file."""
        listing = git(self.folder, "ls-tree", "-r", "-l", "-z", "--full-tree", self.commit, offline=True)
        blobs = {}
        for entry in filter(None, listing.split("\0")):
            facts, _, path = entry.partition("\t")
            mode, _, blob, size = facts.split()
            if mode.startswith("100"):
                blobs[path] = blob, int(size)
        return blobs

    def paths(self) -> list[str]:
        """The paths of all regular files."""
        return list(self._blobs)

    def text(self, path: str) -> str:
        """The content of a file. Raises PersresError if the commit has none of that path, or a file too large to be text."""
        if path not in self._blobs:
            raise PersresError(f"{path} does not exist at this version; name another version")
        blob, size = self._blobs[path]
        if size > MOST_BYTES:
            raise PersresError(f"{path} is larger than {MOST_BYTES >> 20} MiB; name another version")
        return git(self.folder, "cat-file", "blob", blob, offline=True)


def local_snapshot(folder: Path, rev: str) -> Snapshot:
    """A commit, branch or tag of a repository on this machine. Raises PersresError if it has none of that name."""
    line = git(folder, "rev-parse", "--verify", "--quiet", f"{rev}^{{commit}}", offline=True)
    return Snapshot(folder, commit_hash(line.strip()))


def fetched_snapshot(url: str, tag: str) -> Snapshot:
    """A tag of a repository at a URL, fetched without history to a temporary folder. Raises PersresError."""
    owner = fetched_tags(url, [tag])
    return _tagged(owner, tag)


def fetched_snapshots(url: str, tags: list[str]) -> tuple[Path | None, dict[str, Snapshot]]:
    """Tags of a repository at a URL, fetched at once as :func:`fetched_snapshot` does: the folder that has them, and the commits of those that
    name one. Raises PersresError."""
    if not tags:
        return None, {}
    owner, snapshots = fetched_tags(url, tags), {}
    for tag in tags:
        try:
            snapshots[tag] = _tagged(owner, tag)
        except PersresError as error:
            log.debug("%s is no commit: %s", tag, error)
    return Path(owner.name), snapshots


def _tagged(owner: tempfile.TemporaryDirectory, tag: str) -> Snapshot:
    folder = Path(owner.name)
    line = git(folder, "rev-parse", "--verify", f"refs/tags/{tag}^{{commit}}")
    return Snapshot(folder, commit_hash(line.strip()), owner)


def fetched_tags(url: str, tags: list[str]) -> tempfile.TemporaryDirectory:
    """A temporary folder with these tags of a repository at a URL, without history. Raises PersresError."""
    owner = tempfile.TemporaryDirectory(prefix="persres-git-")
    folder = Path(owner.name)
    git(folder, "init", "-q", "--bare", "--template=")
    fetch = ["fetch", "-q", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance"]
    refs = [url, *(f"+refs/tags/{tag}:refs/tags/{tag}" for tag in tags)]
    try:
        git(folder, *fetch, "--depth=1", "--", *refs, seconds=FETCH_SECONDS)
    except PersresError as error:
        if "shallow" not in str(error):  # plain web servers have whole histories only
            raise
        git(folder, *fetch, "--", *refs, seconds=FETCH_SECONDS)
    return owner
