"""``persres publish v2``: the data to DVC's remote, then one commit and one tag, to git's remote in one push.

The data go first, so that no tag ever names what can't be pulled: a push of data that breaks leaves no commit and no tag, and run again
it goes on. What was pushed for a version that was not published harms nothing, since DVC names it by its digest. Of two publishers at
once git takes one whole (commit and tag in one atomic push); the other's commit and tag are taken back here, and it is told.
"""

from __future__ import annotations

import configparser
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from persres.errors import PersresError
from persres.versions.tools import configuration, dvc, git

OWN = ("dvc.lock", "params.yaml", "data/")  # what a run changes; anything else is somebody's unfinished work
SECRETS = ("access_key_id", "secret_access_key", "session_token", "password")


@dataclass(frozen=True)
class Plan:
    """What a publication would do. ``changed``: files to commit; ``remote``: where the data go; ``git``: git's remote or None."""

    version: str
    remote: str
    git: str | None
    changed: list[str]
    tags: list[str]
    residuals: int
    bytes: int

    def text(self) -> str:
        """Lines for people."""
        return "\n".join([
            f"version    {self.version}",
            f"data       {self.residuals} learned files; {self.bytes / 2**20:,.1f} MiB in all outputs -> {self.remote}",
            f"commit     {', '.join(self.changed) or 'nothing has changed since the last commit'}",
            f"tags       {', '.join(self.tags)} -> {self.git or 'this clone alone: it has no git remote'}",
        ])  # fmt: skip

    def as_json(self) -> str:
        """The same for scripts."""
        return json.dumps(asdict(self), indent=1)


def plan_publication(version: str, folder: Path = Path()) -> Plan:
    """Look before anything is done. Raises PersresError for a version that is no tag's name or is there already, no remote, secrets in
    DVC's committed configuration, outputs that are missing or stale, and changes that are nobody's but yours."""
    _check_name(version, folder)
    remote = default_remote(folder)
    _check_secrets(folder)
    _check_whole(folder)
    changed = _changes(folder)
    files, size = _outputs(folder)
    upstream = git(folder, "remote").split()
    place = ("origin" if "origin" in upstream else upstream[0]) if upstream else None
    tags = [version, *artifact_tags(version, folder)]
    return Plan(version, remote, place, changed, tags, files, size)


def publish(plan: Plan, message: str | None = None, folder: Path = Path()) -> None:
    """Push the data, commit, tag, push both. Raises PersresError; then there is neither commit nor tag, here or there."""
    dvc(folder, "push")
    before = git(folder, "rev-parse", "HEAD").strip()
    text = message or f"{plan.version}: {plan.residuals} learned files"
    try:
        if plan.changed:
            git(folder, "add", "--", *plan.changed)
            git(folder, "commit", "-q", "-m", text, "--", *plan.changed)
        for tag in plan.tags:
            git(folder, "tag", "-a", tag, "-m", text)
        if plan.git:
            branch = git(folder, "rev-parse", "--abbrev-ref", "HEAD").strip()
            places = [f"HEAD:refs/heads/{branch}", *(f"refs/tags/{tag}" for tag in plan.tags)]
            git(folder, "push", "--atomic", plan.git, *places)
    except BaseException as error:
        _take_back(folder, plan.tags, before)
        if isinstance(error, PersresError):
            raise PersresError(
                f"{plan.version} was not published: {error}\nThe commit and the tag were taken back, the data stay in the remote. If"
                f" somebody else published meanwhile: git pull, look, then persres publish again"
            ) from error
        raise


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


def default_remote(folder: Path) -> str:
    """Name and url of DVC's default remote. Raises PersresError where there is none."""
    settings = configuration(folder)
    name = settings.get("core.remote")
    if name is None or f"remote.{name}.url" not in settings:
        raise PersresError(
            "there is no DVC remote to publish to: dvc remote add -d store s3://BUCKET/PREFIX, for your own server also dvc remote modify"
            " store endpointurl https://…; commit .dvc/config (docs/versions.md)"
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


def _changes(folder: Path) -> list[str]:
    entries = [
        entry for entry in git(folder, "status", "--porcelain", "-z", "--untracked-files=all").split("\0") if entry
    ]
    changed = [entry[3:] for entry in entries]
    others = [path for path in changed if not path.startswith(OWN)]
    if others:
        raise PersresError(
            f"not published: {', '.join(others[:5])}{' …' if others[5:] else ''} changed and belong to no run; commit or stash them first"
        )
    return changed


def _outputs(folder: Path) -> tuple[int, int]:
    """Learned files, and the bytes of all outputs, from what DVC recorded."""
    import yaml

    lock = yaml.safe_load((folder / "dvc.lock").read_text())
    outs = [out for stage in lock["stages"].values() for out in stage.get("outs", [])]
    learned = list((folder / "data" / "learned").rglob("*.safetensors"))
    return len(learned), sum(out.get("size", 0) for out in outs)
