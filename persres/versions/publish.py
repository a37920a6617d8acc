"""``persres publish v2``: the data to DVC's remote, then one commit and one tag, to git's remote in one push.

The data go first, so that no tag ever names what can't be pulled: a push of data that breaks leaves no commit and no tag, and run again
it goes on. What was pushed for a version that was not published harms nothing, since DVC names it by its digest. Of two publishers at
once git takes one whole (commit and tag in one atomic push); the other's commit and tag are taken back here, and it is told. Where git's
answer was lost on its way, the remote is asked what it has before anything is taken back.
"""

from __future__ import annotations

import configparser
import json
import logging
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from persres.errors import PersresError
from persres.versions.git_dvc import NoRemote, configuration, dvc, git

log = logging.getLogger(__name__)
OWN = ("dvc.lock", "params.yaml")  # what a run changes beside data/; anything else is somebody's unfinished work
SHOWN = 5  # commits that are named one by one
ALONE = "this clone alone: it has no git remote"
SECRETS = ("access_key_id", "secret_access_key", "session_token", "password")


@dataclass(frozen=True)
class Plan:
    """What a publication would do. ``changed``: files to commit; ``remote``: where the data go; ``git``: git's remote or None;
    ``commits``: those of ``branch`` that were not pushed yet and go too, the newest first."""

    version: str
    remote: str
    git: str | None
    branch: str
    commits: list[str]
    changed: list[str]
    tags: list[str]
    residuals: int
    bytes: int

    def text(self) -> str:
        """Lines for people."""
        more = f"\n{'':11}and {len(self.commits) - SHOWN} more" if self.commits[SHOWN:] else ""
        older = f"\n{'':11}".join(self.commits[:SHOWN]) + more
        return "\n".join([
            f"version    {self.version}",
            f"data       {self.residuals} learned files; {self.bytes / 2**20:,.1f} MiB in all outputs -> {self.remote}",
            f"commit     {', '.join(self.changed) or 'nothing has changed since the last commit'}",
            *([f"goes too   {older}"] if self.commits else []),
            f"tags       {', '.join(self.tags)} -> {f'{self.git}, branch {self.branch}' if self.git else ALONE}",
        ])  # fmt: skip

    def as_json(self) -> str:
        """The same for scripts."""
        return json.dumps(asdict(self), indent=1)


def plan_publication(version: str, folder: Path = Path()) -> Plan:
    """Look before anything is done. Raises PersresError for a version that is no tag's name or is there already, no branch, no remote,
    secrets in DVC's committed configuration, outputs that are missing or stale, changes that are nobody's but yours, and a branch that
    somebody else pushed to."""
    _check_name(version, folder)
    branch = _branch(folder)
    _check_settled(folder)
    remote = default_remote(configuration(folder))
    _check_secrets(folder)
    lock = _lock(folder)
    changed = _changes(folder, lock)
    upstream = git(folder, "remote").split()
    place = ("origin" if "origin" in upstream else upstream[0]) if upstream else None
    commits = _not_pushed(folder, place, branch, version) if place else []
    _check_whole(folder)  # last, since it reads all outputs
    tags = [version, *artifact_tags(version, folder)]
    return Plan(version, remote, place, branch, commits, changed, tags, *_outputs(folder, lock))


def publish(plan: Plan, message: str | None = None, folder: Path = Path()) -> None:
    """Push the data, commit, tag, push both. Raises PersresError; then there is neither commit nor tag, here or there, or, where git's
    remote no longer answers, it says that nobody knows and how to finish."""
    dvc(folder, "push", shown=f"publish: data to {plan.remote}")
    before = git(folder, "rev-parse", "HEAD").strip()
    text = message or f"{plan.version}: {plan.residuals} learned files"
    try:
        if plan.changed:
            git(folder, "update-index", "--add", "--remove", "--", *plan.changed)  # add refuses what is staged as gone
            git(folder, "commit", "-q", "-m", text, "--", *plan.changed)
        for tag in plan.tags:
            git(folder, "tag", "-a", tag, "-m", text)
        if plan.git:
            _push(plan, folder)
    except _Unknown as unknown:
        raise PersresError(str(unknown)) from unknown
    except BaseException as error:
        _take_back(folder, plan.tags, before)
        if isinstance(error, PersresError):
            raise PersresError(
                f"{plan.version} was not published: {error}\nThe commit and the tag were taken back, the data stay in the remote. If"
                f" somebody else published meanwhile: git pull, look, then persres publish again"
            ) from error
        raise


class _Unknown(Exception):
    """Whether a push arrived can't be found out."""


def _push(plan: Plan, folder: Path) -> None:
    """Commit and tags in one. Raises PersresError where the remote did not take them, _Unknown where it no longer answers."""
    places = [f"HEAD:refs/heads/{plan.branch}", *(f"refs/tags/{tag}" for tag in plan.tags)]
    try:
        git(folder, "push", "--atomic", plan.git, *places)
    except (PersresError, KeyboardInterrupt) as error:
        try:
            there = remote_refs(folder, plan.git, f"refs/tags/{plan.version}")
        except PersresError as silence:
            again = f"git push --atomic {plan.git} {' '.join(places)}"
            raise _Unknown(
                f"nobody knows whether {plan.version} was published: {error or 'stopped'}, and then {silence}\nThe commit and the tag stay here. When"
                f" {plan.git} answers again: {again}   # harmless where they had arrived"
            ) from error
        # an annotated tag's own name holds its time and its author: nobody else's is the same
        if there.get(f"refs/tags/{plan.version}") != git(folder, "rev-parse", f"refs/tags/{plan.version}").strip():
            raise
        log.warning("publish: %s has %s, though its answer was lost (%s)", plan.git, plan.version, error or "Ctrl-C")


def remote_refs(folder: Path, place: str, *names: str) -> dict[str, str]:
    """What a git remote has of these references: name -> object."""
    lines = git(folder, "ls-remote", place, *names).splitlines()
    return {name: found for found, name in (line.split("\t") for line in lines)}


def _branch(folder: Path) -> str:
    try:
        return git(folder, "symbolic-ref", "--short", "HEAD").strip()
    except PersresError as error:
        raise PersresError(
            "HEAD is detached (a commit or a tag is checked out), and a version belongs to a branch: git switch main, or git switch -c"
            " NAME for a new one, then publish"
        ) from error


def _check_settled(folder: Path) -> None:
    """No merge half done: git commits no single files then, and to take that back would lose it."""
    try:
        git(folder, "rev-parse", "--verify", "--quiet", "MERGE_HEAD")
    except PersresError:
        return
    raise PersresError("not published: a merge is not finished; git commit (or git merge --abort), then publish")


def _not_pushed(folder: Path, place: str, branch: str, version: str) -> list[str]:
    """Commits of the branch that the remote lacks. Raises PersresError where it has the version, or commits that are not here."""
    there = remote_refs(folder, place, f"refs/heads/{branch}", f"refs/tags/{version}")
    if f"refs/tags/{version}" in there:
        raise PersresError(
            f"{place} has {version} already, and a version never changes; git fetch --tags, then take another name"
        )
    tip = there.get(f"refs/heads/{branch}")
    if tip is None:
        return git(folder, "log", "--format=%h %s", "HEAD", "--not", f"--remotes={place}").splitlines()
    try:
        git(folder, "merge-base", "--is-ancestor", tip, "HEAD")
    except PersresError as error:
        raise PersresError(
            f"not published: {place} has commits of {branch} that are not here; git pull, then publish"
        ) from error
    return git(folder, "log", "--format=%h %s", f"{tip}..HEAD").splitlines()


def artifact_tags(version: str, folder: Path) -> list[str]:
    """Tags by which ``dvc artifacts get`` finds the models that dvc.yaml names: ``residuals@v3.0.0`` for v3. It knows numbers alone, so
    another name has none."""
    number = re.fullmatch(r"v?(\d+)(?:\.(\d+))?(?:\.(\d+))?", version)
    if number is None:
        return []
    import yaml

    artifacts = (yaml.safe_load((folder / "dvc.yaml").read_text()) or {}).get("artifacts") or {}
    full = ".".join(part or "0" for part in number.groups())
    return [f"{name}@v{full}" for name, entry in artifacts.items() if entry.get("type") == "model"]


def _take_back(folder: Path, tags: list[str], before: str) -> None:
    for tag in set(tags) & set(git(folder, "tag").split()):
        git(folder, "tag", "-d", tag)
    git(folder, "reset", "-q", before)


def _check_name(version: str, folder: Path) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", version):
        raise PersresError(
            f"{version!r} is no name for a version; letters, digits, dots and dashes, e.g. v3 or dogs-2026-11"
        )
    if git(folder, "tag", "--list", version).strip():
        raise PersresError(f"{version} is there already, and a version never changes; take another name (persres list)")


def default_remote(settings: dict[str, str]) -> str:
    """Name and url of DVC's default remote, of its :func:`configuration`. Raises PersresError where there is none."""
    name = settings.get("core.remote")
    if name is None or f"remote.{name}.url" not in settings:
        raise NoRemote(
            "there is no DVC remote to publish to",
            "dvc remote add -d store s3://BUCKET/PREFIX, for your own server also dvc remote modify store endpointurl https://…; commit"
            " .dvc/config (docs/versions.md)",
        )
    return f"{name} ({settings[f'remote.{name}.url']})"


def _check_secrets(folder: Path) -> None:
    """Of the configuration that is committed; a .dvc/config.local stays here."""
    config = configparser.ConfigParser()
    config.read(folder / ".dvc" / "config")
    found = [f"{section} {key}" for section in config.sections() for key in config[section] if key in SECRETS]
    if found:
        raise PersresError(
            f".dvc/config holds a secret ({', '.join(found)}) and would be committed; remove it, change the key, and set it in the"
            " environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
        )


def _check_whole(folder: Path) -> None:
    stale = json.loads(dvc(folder, "status", "--json"))
    if stale:
        raise PersresError(
            f"not published: {', '.join(sorted(stale))} must run again or never ran; dvc repro, then publish"
        )


def _changes(folder: Path, lock: dict[str, Any]) -> list[str]:
    """Paths that a run changed. Raises PersresError where others changed too."""
    # without renames an entry is two letters, a space and one path
    status = git(folder, "status", "--porcelain", "-z", "--untracked-files=all", "--no-renames")
    entries = [entry for entry in status.split("\0") if entry]
    outs = {out["path"] for stage in lock["stages"].values() for out in stage.get("outs", [])}
    others = [entry[3:] for entry in entries if not _is_own(entry[:2], entry[3:], outs)]
    if others:
        raise PersresError(
            f"not published: {', '.join(others[:5])}{' …' if others[5:] else ''} changed and belong to no run; commit or stash them first"
        )
    return [entry[3:] for entry in entries]


def _is_own(state: str, path: str, outs: set[str]) -> bool:
    """Whether a run changes that: its settings, its lock, what git keeps below data/; of new files there an output's alone."""
    if path in OWN:
        return True
    if not path.startswith("data/"):
        return False
    return state != "??" or path.endswith("/.gitignore") or any(f"{path}/".startswith(f"{out}/") for out in outs)


def _lock(folder: Path) -> dict[str, Any]:
    import yaml

    try:
        return yaml.safe_load((folder / "dvc.lock").read_text())
    except FileNotFoundError as error:
        raise PersresError(
            f"not published: {folder / 'dvc.lock'} is missing, so nothing has run; dvc repro, then publish"
        ) from error


def _outputs(folder: Path, lock: dict[str, Any]) -> tuple[int, int]:
    """Learned files, and the bytes of all outputs, from what DVC recorded."""
    outs = [out for stage in lock["stages"].values() for out in stage.get("outs", [])]
    learned = list((folder / "data" / "learned").rglob("*.safetensors"))
    return len(learned), sum(out.get("size", 0) for out in outs)
