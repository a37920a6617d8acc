"""``persres gc``: deletes from DVC's remote and this clone's cache what no version needs.

``dvc gc`` keeps what the tags, branches and commits *of this clone* name. From a clone that has not fetched someone's tag it would delete
that tag's data. So git's remotes are checked first; if they have a tag or branch that this clone lacks, nothing is deleted.
"""

from __future__ import annotations

from pathlib import Path

from persres.errors import PersresError
from persres.untrusted.text import printable, redacted
from persres.versions.git_dvc import dvc, git
from persres.versions.publish import remote_refs

LONGEST = 10_000_000  # characters of DVC's output


def collect_garbage(delete: bool = False, old_commits: bool = False, folder: Path = Path()) -> str:
    """Delete, or without ``delete`` only list, what no tag, branch or commit needs; returns DVC's output.

    With ``old_commits``, data go too that only untagged commits before the end of a branch need. Raises PersresError if git's remotes
    have more than this clone.
    """
    for remote in git(folder, "remote").split():
        _check_fetched(folder, remote, old_commits)
    scope = ["--workspace", "--all-tags", "--all-branches", *([] if old_commits else ["--all-commits"])]
    label = f"gc: {'deletes' if delete else 'lists'} unused data"
    raw = dvc(folder, "gc", *scope, "--cloud", "--force" if delete else "--dry", label=label)
    output = printable(redacted(raw), LONGEST, lines=True)
    return output if delete else f"{output}Nothing was deleted: run again with --delete, while nobody publishes.\n"


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
