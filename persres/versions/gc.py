"""``persres gc``: what nothing needs leaves DVC's remote and this clone's cache; what a version needs stays.

``dvc gc`` keeps what the tags, branches and commits *of this clone* name, and knows of no other: from a clone that has not fetched
somebody's tag it deletes their objects. So git's remotes are asked first, and anything of theirs that is not here refuses the work.
"""

from __future__ import annotations

from pathlib import Path

from persres.errors import PersresError
from persres.versions.git_dvc import dvc, git
from persres.versions.publish import remote_refs


def collect_garbage(delete: bool = False, old_commits: bool = False, folder: Path = Path()) -> str:
    """Delete, or without ``delete`` only name, what no tag, branch or commit needs; with ``old_commits`` also what only commits need that
    are neither tagged nor the end of a branch. Returns what DVC says of it. Raises PersresError where git's remotes know more than this
    clone."""
    for place in git(folder, "remote").split():
        _check_fetched(folder, place, old_commits)
    keeps = ["--workspace", "--all-tags", "--all-branches", *([] if old_commits else ["--all-commits"])]
    what = "housekeep: " + ("deletes" if delete else "looks for") + " what nothing needs"
    said = dvc(folder, "gc", *keeps, "--cloud", "--force" if delete else "--dry", shown=what)
    return said if delete else f"{said}Nothing was deleted yet: --delete does it, at a time when nobody publishes.\n"


def _check_fetched(folder: Path, place: str, old_commits: bool) -> None:
    """All tags of a git remote are here, and so are its branches: their commits, or, where old commits go, their ends."""
    there = {
        name: found for name, found in remote_refs(folder, place, "refs/tags/*", "refs/heads/*").items()
        if not name.endswith("^{}")
    }  # fmt: skip
    lines = git(folder, "for-each-ref", "--format=%(refname) %(objectname) %(*objectname)").splitlines()
    here = {name: set(found) for name, *found in (line.split() for line in lines)}
    tags = [name for name, found in there.items() if name.startswith("refs/tags/") and found not in here.get(name, ())]
    ends = set().union(*(found for name, found in here.items() if name.startswith(("refs/heads/", "refs/tags/"))))
    branches = [
        name for name, found in there.items()
        if name.startswith("refs/heads/") and found not in ends and (old_commits or not _is_here(folder, found))
    ]  # fmt: skip
    if tags or branches:
        named = ", ".join(name.split("/", 2)[2] for name in [*tags, *branches][:8])
        mend = f"git fetch --tags {place}" + (", and check each branch out once" if branches and old_commits else "")
        raise PersresError(
            f"nothing was deleted: {place} has what this clone lacks ({named}), and its data would go; {mend}, then again"
        )


def _is_here(folder: Path, commit: str) -> bool:
    """Whether a branch or a tag of this clone, or what it remembers of a remote, reaches a commit."""
    try:
        return not git(folder, "rev-list", "-n1", commit, "--not", "--branches", "--tags", "--remotes")
    except PersresError:
        return False
