"""``persres gc``: deletes from DVC's remote and this clone's cache what no version needs.

What is needed, git says: every digest in a ``dvc.lock`` or ``.dvc`` file of a tag, branch or commit of this clone, or of the working folder.
These files are read as data. ``dvc gc`` would run each commit's ``dvc.yaml`` for them, and fail where one needs a file or a variable that is
gone. From a clone that has not fetched someone's tag, that tag's data would be deleted. So git's remotes are checked first; if they have a
tag or branch that this clone lacks, or if it is shallow, nothing is deleted.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

from persres.errors import PersresError
from persres.untrusted.text import printable, redacted
from persres.versions.git_dvc import OBJECT, ObjectStore, git, object_stores
from persres.versions.publish import remote_refs
from persres.versions.tracked import DIRECTORY, listed_digests

log = logging.getLogger(__name__)
LONGEST = 10_000_000  # characters of the text
MOST_LISTING = 64 << 20  # bytes of a folder's listing
_DIGEST = re.compile(rf"(?<![0-9a-f]){OBJECT.pattern}(?![0-9a-f])")
_TIPS = ("--no-walk", "--branches", "--tags", "--remotes")


@dataclass(frozen=True)
class Garbage:
    """What no version needs: the number of objects and their bytes, in all and by store; ``paths`` of all. ``deleted``: they are gone."""

    objects: int
    bytes: int
    stores: dict[str, tuple[int, int]]
    paths: list[str] = field(repr=False)
    deleted: bool = False

    def text(self, verbose: bool = False) -> str:
        """Lines for people; ``verbose`` names every object."""
        lines = [f"Removing {path}" for path in self.paths] if verbose else []
        parts = "; ".join(f"{count} in {name}" for name, (count, _) in self.stores.items() if count)
        does = "removed" if self.deleted else "would remove"
        lines.append(f"{does} {self.objects} objects, {self.bytes / 2**20:,.1f} MiB{f' ({parts})' if parts else ''}")
        if self.objects and not self.deleted:
            lines.append("Nothing was deleted: run again with --delete, while nobody publishes.")
        return printable(redacted("\n".join(lines)), LONGEST, lines=True)

    def as_json(self) -> str:
        """The same for scripts."""
        return json.dumps(asdict(self), indent=1)


def collect_garbage(delete: bool = False, old_commits: bool = False, folder: Path = Path()) -> Garbage:
    """Delete, or without ``delete`` only list, what no tag, branch or commit needs, and return it.

    With ``old_commits``, data go too that only untagged commits before the end of a branch need. Raises PersresError if git's remotes
    have more than this clone, or it is shallow.
    """
    for remote in git(folder, "remote").split():
        _check_fetched(folder, remote, old_commits)
    if git(folder, "rev-parse", "--is-shallow-repository").strip() == "true":
        raise PersresError(
            "nothing was deleted: this clone is shallow, and the data of older commits would go; git fetch --unshallow --tags, then again"
        )
    used = named_digests(folder, old_commits)
    with object_stores(folder) as stores:
        log.info("gc: lists the objects of %s", " and ".join(printable(redacted(store.name)) for store in stores))
        objects = [store.objects() for store in stores]
        used |= _in_folders(used, stores, objects)
        unused = [{name: entry for name, entry in present.items() if name not in used} for present in objects]
        garbage = _garbage(stores, unused, delete)
        for store, entries in zip(stores, unused, strict=True):
            # listings first: DVC takes a folder whose listing is in a remote for complete, and would not push its files again
            for listings in (True, False) if delete else ():
                store.remove([path for name, (path, _) in entries.items() if name.endswith(DIRECTORY) == listings])
    return garbage


def _garbage(stores: list[ObjectStore], unused: list[dict[str, tuple[str, int]]], deleted: bool) -> Garbage:
    by_store = {
        store.name: (len(entries), sum(size for _, size in entries.values()))
        for store, entries in zip(stores, unused, strict=True)
    }
    sizes = {name: size for entries in unused for name, (_, size) in entries.items()}
    paths = sorted(path for entries in unused for path, _ in entries.values())
    return Garbage(len(sizes), sum(sizes.values()), by_store, paths, deleted)


def named_digests(folder: Path, old_commits: bool) -> set[str]:
    """The digests that DVC's files name: of the working folder, and of all commits, or with ``old_commits`` of tags and ends of branches.

    A digest that no stage of today's dvc.yaml has is among them: what a file names is never deleted.
    """
    scope = _TIPS if old_commits else ("--all",)
    try:
        head = ["HEAD"] if git(folder, "rev-parse", "--verify", "--quiet", "HEAD") else []
    except PersresError:  # no commit yet
        head = []
    lines = git(folder, "rev-list", "--objects", *scope, *head).split("\n")
    blobs = {blob for blob, _, path in (line.partition(" ") for line in lines) if _is_dvc_file(path)}
    texts = [git(folder, "cat-file", "-p", blob) for blob in sorted(blobs)]
    top = Path(git(folder, "rev-parse", "--show-toplevel").rstrip("\n"))
    names = git(top, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    files = [top / name for name in names if _is_dvc_file(name) and (top / name).is_file()]
    texts += [path.read_text(encoding="utf-8", errors="replace") for path in files]
    return {digest for text in texts for digest in _DIGEST.findall(text)}


def _is_dvc_file(path: str) -> bool:
    name = path.rpartition("/")[2]
    return name == "dvc.lock" or (name.endswith(".dvc") and name != ".dvc")


def _in_folders(used: set[str], stores: list[ObjectStore], objects: list[dict[str, tuple[str, int]]]) -> set[str]:
    """The digests in the listings of used folders. A listing that no store has names no file that anybody could pull."""
    digests: set[str] = set()
    for name in sorted(digest for digest in used if digest.endswith(DIRECTORY)):
        for store, present in zip(stores, objects, strict=True):
            if name in present:
                digests |= listed_digests(
                    store.read(present[name][0], MOST_LISTING), f"the listing {name} in {store.name}"
                )
                break
    return digests


def _check_fetched(folder: Path, remote: str, old_commits: bool) -> None:
    """Raises PersresError unless this clone has all tags and branches of a git remote: their commits, or with ``old_commits`` their ends."""
    refs = remote_refs(folder, remote, "refs/tags/*", "refs/heads/*")
    remotes = {name: commit for name, commit in refs.items() if not name.endswith("^{}")}
    lines = git(folder, "for-each-ref", "--format=%(refname) %(objectname) %(*objectname)").splitlines()
    local = {name: set(commits) for name, *commits in (line.split() for line in lines)}
    tags = [name for name, c in remotes.items() if name.startswith("refs/tags/") and c not in local.get(name, ())]
    ends = set().union(*(commits for name, commits in local.items() if name.startswith(("refs/heads/", "refs/tags/"))))
    branches = [
        name for name, commit in remotes.items()
        if name.startswith("refs/heads/") and commit not in ends and (old_commits or not _is_reachable(folder, commit))
    ]  # fmt: skip
    if tags or branches:
        names = ", ".join(name.split("/", 2)[2] for name in [*tags, *branches][:8])
        fix = f"git fetch --tags {remote}" + (", and check each branch out once" if branches and old_commits else "")
        raise PersresError(
            f"nothing was deleted: {remote} has what this clone lacks ({names}), and its data would go; {fix}, then again"
        )


def _is_reachable(folder: Path, commit: str) -> bool:
    """Whether a branch or tag of this clone, or a remote branch that it has fetched, reaches a commit."""
    try:
        return not git(folder, "rev-list", "-n1", commit, "--not", "--branches", "--tags", "--remotes")
    except PersresError:
        return False
