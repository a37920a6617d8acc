"""``persres publish v2``: pushes the data to DVC's remote, then a commit and a tag to git's remote in one atomic push.

The data go first, so no tag names data that can't be pulled. If the data push fails, there is no commit and no tag, and the next try
continues it; data of an unpublished version are harmless, since DVC names files by digest. Of two publishers at the same time, git
accepts one; the other's commit and tag are undone, with an error. If git's answer is lost, the remote's refs decide before anything is
undone. A publication that was killed goes on with the next try: tags that only this clone has, of this commit, are its own.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from persres.errors import PersresError
from persres.untrusted.documents import read_file, read_yaml
from persres.untrusted.names import identifier
from persres.untrusted.text import printable, redacted
from persres.versions.git_dvc import NoRemote, commit_hash, configuration, dvc, git
from persres.versions.remote import read_config
from persres.versions.repository import is_version
from persres.versions.tracked import Lock, Pipeline
from persres.versions.version_tags import is_published, local_tags

log = logging.getLogger(__name__)
RUN_FILES = ("dvc.lock", "params.yaml")  # what a run changes outside of data/
MAX_LISTED = 5  # commits and files in messages
LONGEST_TEXT = 1_000_000  # characters of a plan
NO_REMOTE = "this clone only: it has no git remote"
SECRETS = ("access_key_id", "secret_access_key", "session_token", "password")


@dataclass(frozen=True)
class Plan:
    """What a publication does. ``changed``: files to commit; ``remote``: DVC's; ``git``: git's remote or None; ``commits``: unpushed
    commits of ``branch``, which are pushed too, newest first; ``done``: nothing, the version is published from this commit already."""

    version: str
    remote: str
    git: str | None
    branch: str
    commits: list[str]
    changed: list[str]
    tags: list[str]
    residuals: int
    bytes: int
    done: bool = False

    def text(self) -> str:
        """Lines for people."""
        return printable("\n".join(self._lines()), LONGEST_TEXT, lines=True)

    def _lines(self) -> list[str]:
        more = f"\n{'':11}and {len(self.commits) - MAX_LISTED} more" if self.commits[MAX_LISTED:] else ""
        older = f"\n{'':11}".join(self.commits[:MAX_LISTED]) + more
        return [
            f"version    {self.version}",
            f"data       {self.residuals} residuals; {self.bytes / 2**20:,.1f} MiB in all outputs -> {self.remote}",
            f"commit     {', '.join(self.changed) or 'no changes since the last commit'}",
            *([f"unpushed   {older}"] if self.commits else []),
            f"tags       {', '.join(self.tags)} -> {f'{self.git}, branch {self.branch}' if self.git else NO_REMOTE}",
        ]  # fmt: skip

    def as_json(self) -> str:
        """The same for scripts."""
        return json.dumps(asdict(self), indent=1)


def plan_publication(version: str, folder: Path = Path()) -> Plan:
    """Check everything before the first change. Raises PersresError for an invalid or existing version, a detached HEAD, no remote,
    secrets in DVC's committed configuration, missing or stale outputs, changes outside of a run, and a branch with newer remote commits."""
    _check_name(version)
    branch = _branch(folder)
    _check_no_merge(folder)
    remote = default_remote(configuration(folder))
    _check_secrets(folder)
    lock = _lock(folder)
    changed = _changes(folder, lock)
    remotes = git(folder, "remote").split()
    upstream = ("origin" if "origin" in remotes else remotes[0]) if remotes else None
    tags = [version, *artifact_tags(version, folder)]
    heads, tag = f"refs/heads/{branch}", f"refs/tags/{version}"
    refs = remote_refs(folder, upstream, heads, tag) if upstream else {}
    done = is_published(folder, tags, upstream, refs.get(tag), clean=not changed)
    commits = _unpushed(folder, upstream, branch, refs.get(heads)) if upstream else []
    _check_up_to_date(folder)  # last, since it reads all outputs
    return Plan(version, remote, upstream, branch, commits, changed, tags, *_outputs(folder, lock), done)


def publish(plan: Plan, message: str | None = None, folder: Path = Path()) -> None:
    """Push the data, commit, tag, push both. After a PersresError there is no commit and no tag, local or remote; if git's remote no
    longer answers, the outcome is unknown and the message says how to finish."""
    if plan.done:
        return
    dvc(folder, "push", label=f"publish: data to {plan.remote}")
    before = git(folder, "rev-parse", "HEAD").strip()
    text = message or f"{plan.version}: {plan.residuals} residuals"
    try:
        if plan.changed:
            git(folder, "update-index", "--add", "--remove", "--", *plan.changed)  # git add refuses staged deletions
            git(folder, "commit", "-q", f"--message={text}", "--", *plan.changed)
        existing = local_tags(folder, plan.tags)  # of a publication that was killed
        for tag in plan.tags:
            if tag in existing:
                continue
            git(folder, "tag", "-a", f"--message={text}", "--", tag)
        if plan.git:
            _push(plan, folder)
    except _UnknownOutcome as unknown:
        raise PersresError(str(unknown)) from unknown
    except BaseException as error:
        _undo(folder, plan.tags, before)
        if isinstance(error, PersresError):
            raise PersresError(
                f"{plan.version} was not published: {error}\nThe commit and the tag were undone, the data stay in the remote. If"
                f" someone else published meanwhile: git pull, check, then persres publish again"
            ) from error
        raise


class _UnknownOutcome(Exception):
    """Whether a push arrived is unknown."""


def _push(plan: Plan, folder: Path) -> None:
    """Push commit and tags in one. Raises PersresError if the remote refused them, _UnknownOutcome if it no longer answers."""
    refs = [f"HEAD:refs/heads/{plan.branch}", *(f"refs/tags/{tag}" for tag in plan.tags)]
    try:
        git(folder, "push", "--atomic", "--", plan.git, *refs)
    except (PersresError, KeyboardInterrupt) as error:
        try:
            existing = remote_refs(folder, plan.git, f"refs/tags/{plan.version}")
        except PersresError as no_answer:
            again = f"git push --atomic -- {plan.git} {' '.join(refs)}"
            raise _UnknownOutcome(
                f"it is unknown whether {plan.version} was published: {error or 'stopped'}, and then {no_answer}\nThe commit and the tag"
                f" stay in this clone. When {plan.git} answers again: {again}   # harmless if they had arrived"
            ) from error
        # the hash of an annotated tag includes its time and author: nobody else's is the same
        if existing.get(f"refs/tags/{plan.version}") != git(folder, "rev-parse", f"refs/tags/{plan.version}").strip():
            raise
        log.warning("publish: %s has %s, though its answer was lost (%s)", plan.git, plan.version, error or "Ctrl-C")


def remote_refs(folder: Path, remote: str, *names: str) -> dict[str, str]:
    """Those of the references that a git remote has: name -> object. Raises PersresError if it answers otherwise."""
    lines = git(folder, "ls-remote", "--", remote, *names).split("\n")  # names may have other line ends
    entries = (line.partition("\t") for line in lines if line)
    return {name: commit_hash(commit) for commit, _, name in entries}


def _branch(folder: Path) -> str:
    try:
        return git(folder, "symbolic-ref", "--short", "HEAD").strip()
    except PersresError as error:
        raise PersresError(
            "HEAD is detached (a commit or a tag is checked out), and a version belongs to a branch: git switch main, or git switch -c"
            " NAME for a new one, then publish"
        ) from error


def _check_no_merge(folder: Path) -> None:
    """Raises PersresError during a merge: git commits no single files then, and undoing the commit would lose the merge."""
    try:
        git(folder, "rev-parse", "--verify", "--quiet", "MERGE_HEAD")
    except PersresError:
        return
    raise PersresError("not published: a merge is not finished; git commit (or git merge --abort), then publish")


def _unpushed(folder: Path, remote: str, branch: str, tip: str | None) -> list[str]:
    """Commits of the branch that the remote, where it ends at ``tip``, lacks. Raises PersresError if it has commits that this clone
    lacks."""
    if tip is None:
        return git(folder, "log", "--format=%h %s", "HEAD", "--not", f"--remotes={remote}").splitlines()
    try:
        git(folder, "merge-base", "--is-ancestor", tip, "HEAD")
    except PersresError as error:
        raise PersresError(
            f"not published: {remote} has commits of {branch} that this clone lacks; git pull, then publish"
        ) from error
    return git(folder, "log", "--format=%h %s", f"{tip}..HEAD").splitlines()


def artifact_tags(version: str, folder: Path) -> list[str]:
    """Tags for ``dvc artifacts get``: ``residuals@v3.0.0`` for v3 and every model of dvc.yaml. Versions that are not numbers have none."""
    number = re.fullmatch(r"v?(\d+)(?:\.(\d+))?(?:\.(\d+))?", version)
    if number is None:
        return []
    artifacts = _pipeline(folder).artifacts or {}
    full = ".".join(part or "0" for part in number.groups())
    return [
        f"{identifier(name, 'artifact')}@v{full}"
        for name, entry in artifacts.items()
        if (entry or {}).get("type") == "model"
    ]


def _pipeline(folder: Path) -> Pipeline:
    return read_yaml(folder / "dvc.yaml", Pipeline | None, "fix it") or Pipeline()


def _undo(folder: Path, tags: list[str], before: str) -> None:
    for tag in local_tags(folder, tags):
        git(folder, "tag", "-d", "--", tag)
    git(folder, "reset", "-q", before)


def _check_name(version: str) -> None:
    if not is_version(version):
        raise PersresError(
            f"{version!r} is not a valid version; use letters, digits, dots and dashes, e.g. v3 or dogs-2026-11"
        )


def default_remote(settings: dict[str, str]) -> str:
    """Name and url of the default remote in DVC's :func:`configuration`. Raises NoRemote if there is none."""
    name = settings.get("core.remote")
    if name is None or f"remote.{name}.url" not in settings:
        raise NoRemote(
            "there is no DVC remote to publish to",
            "dvc remote add -d store s3://BUCKET/PREFIX, with another server than AWS also dvc remote modify store endpointurl https://…;"
            " commit .dvc/config (docs/versions.md)",
        )
    return printable(redacted(f"{name} ({settings[f'remote.{name}.url']})"))


def _check_secrets(folder: Path) -> None:
    """Raises PersresError if the committed configuration holds a secret; .dvc/config.local is not committed."""
    path = folder / ".dvc" / "config"
    sections = read_config(read_file(path, fix="fix it").decode(errors="replace")) if path.exists() else {}
    secrets = [
        f"{section} {key}"
        for section, settings in sections.items()
        for key, value in settings.items()
        if key in SECRETS or redacted(value) != value  # user:password@ in an address
    ]
    if secrets:
        raise PersresError(
            f".dvc/config holds a secret ({', '.join(secrets)}) and would be committed; remove it, change the key, and set it in the"
            " environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
        )


def _check_up_to_date(folder: Path) -> None:
    stale = json.loads(dvc(folder, "status", "--json"))
    if stale:
        raise PersresError(
            f"not published: {', '.join(sorted(stale))} must run again or never ran; dvc repro, then publish"
        )


def _changes(folder: Path, lock: Lock) -> list[str]:
    """Paths that a run changed. Raises PersresError if other files changed too."""
    # without renames an entry is two letters, a space and one path
    status = git(folder, "status", "--porcelain", "-z", "--untracked-files=all", "--no-renames")
    entries = [entry for entry in status.split("\0") if entry]
    outs = {out.path for out in lock.outs()}
    others = [entry[3:] for entry in entries if not _is_from_run(entry[:2], entry[3:], outs)]
    if others:
        raise PersresError(
            f"not published: {', '.join(others[:MAX_LISTED])}{' …' if others[MAX_LISTED:] else ''} changed and belong to no run; commit or"
            " stash them first"
        )
    return [entry[3:] for entry in entries]


def _is_from_run(state: str, path: str, outs: set[str]) -> bool:
    """Whether a run changes the path: its settings, its lock, tracked files in data/, new files of its outputs."""
    if path in RUN_FILES:
        return True
    if not path.startswith("data/"):
        return False
    return state != "??" or path.endswith("/.gitignore") or any(f"{path}/".startswith(f"{out}/") for out in outs)


def _lock(folder: Path) -> Lock:
    path = folder / "dvc.lock"
    if not path.exists():
        raise PersresError(f"not published: {path} is missing, so nothing has run; dvc repro, then publish")
    return read_yaml(path, Lock | None, "dvc repro writes it again") or Lock()


def _outputs(folder: Path, lock: Lock) -> tuple[int, int]:
    """The number of residuals, and the bytes of all outputs from dvc.lock."""
    learned = list((folder / "data" / "learned").rglob("*.safetensors"))
    return len(learned), sum(out.size for out in lock.outs())
