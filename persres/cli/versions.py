"""Commands of published versions: list, pull, link, publish, diff, gc."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from persres.cli.command import Command
from persres.cli.options import Endpoint, Json, Remote, Repo, finite, path


def _repository(where: str, remote: str | None, endpoint: str | None):
    from persres.versions.repository import Repository

    return Repository(where, remote, endpoint)


def list_versions(
    rev: Annotated[str | None, typer.Option(help="list the residuals of this version; default: all versions")] = None,
    repo: Repo = ".",
    remote: Remote = None,
    endpoint: Endpoint = None,
    as_json: Json = False,
    details: Annotated[bool, typer.Option("--details", help="with --json: objects in place of names")] = False,
) -> None:
    """List published versions with date, concepts, main score and message, or the residuals of one."""
    from persres.versions.listing import listed

    print(listed(_repository(repo, remote, endpoint), rev, as_json, details))


def pull(
    concept: Annotated[
        str | None, typer.Argument(help="its name, or variant/name if several variants trained it")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="every residual of the version")] = False,
    rev: Annotated[str | None, typer.Option(help="a version, e.g. v3; default: the newest")] = None,
    repo: Repo = ".",
    out: Annotated[Path, typer.Option(parser=path, help="output folder")] = Path(),
    remote: Remote = None,
    endpoint: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Download one residual of a version, or all, and check their digests. Downloads are cached."""
    if (concept is None) != every:
        raise typer.BadParameter("name one concept, or give --all for every residual of the version")
    from persres.versions.pull import pull_all, pull_every

    repository = _repository(repo, remote, endpoint)
    if concept is not None:
        pulled = pull_all(concept, rev, repository, out)
        print(pulled.as_json() if as_json else pulled.file)
        return
    done = []
    try:
        for pulled in pull_every(rev, repository, out):
            done.append(asdict(pulled))
            if not as_json:
                print(pulled.file, flush=True)
    finally:
        if as_json:
            print(json.dumps(done, indent=1))


def link(
    concept: Annotated[str, typer.Argument(help="its name, or variant/name")],
    rev: Annotated[str | None, typer.Option(help="a version; default: the newest")] = None,
    hours: Annotated[float, typer.Option(min=0.01, max=168, callback=finite, help="lifetime of the link")] = 24,
) -> None:
    """Print a presigned S3 link to a residual, for users without an S3 key."""
    from persres.versions.pull import make_link

    print(make_link(concept, rev, hours * 3600))


def publish(
    version: Annotated[str, typer.Argument(help="the tag, e.g. v3; a tag never changes")],
    message: Annotated[str | None, typer.Option("--message", "-m", help="of the commit and the tag")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print what would be published")] = False,
    as_json: Json = False,
) -> None:
    """Push data to DVC's remote, then commit and tag. Refuses results that are unfinished or do not belong to the run."""
    from persres.versions.publish import plan_publication
    from persres.versions.publish import publish as push

    plan = plan_publication(version)
    print(plan.as_json() if as_json else plan.text())
    if not dry_run:
        push(plan, message)
        done = f"{version} is published already, from this commit" if plan.done else f"published {version}"
        print(done, file=sys.stderr if as_json else sys.stdout)


def diff(
    before: str,
    after: str,
    repo: Repo = ".",
    remote: Remote = None,
    endpoint: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Print the settings and scores that differ between two versions."""
    from persres.versions import compare

    changes = compare.differences(before, after, _repository(repo, remote, endpoint))
    print(compare.as_json(changes) if as_json else compare.as_text(changes))


def gc(
    delete: Annotated[bool, typer.Option("--delete", help="delete; default: only say what would be deleted")] = False,
    old_commits: Annotated[
        bool, typer.Option("--old-commits", help="delete also what only commits without a tag or branch need")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="name every object")] = False,
    as_json: Json = False,
) -> None:
    """Delete data from DVC's remote that no version needs. Refuses if this clone lacks a tag or branch of the remote."""
    from persres.versions.gc import collect_garbage

    garbage = collect_garbage(delete, old_commits)
    print(garbage.as_json() if as_json else garbage.text(verbose))


COMMANDS = {
    "list": Command(
        list_versions,
        (
            "persres list --repo https://github.com/you/your-persres   (versions, newest first)",
            "persres list --json --details | jq '.[] | [.version, .score[2]]'",
            "persres list --rev v2 --json   (residuals of one version)",
        ),
    ),
    "pull": Command(
        pull,
        (
            "persres pull dog7 --rev v2 --repo https://github.com/you/your-persres --out residuals",
            "persres pull ours/dog7   (the newest, of one variant)",
            "persres pull --all --rev v2 --out residuals   (every residual)",
            "file=$(persres pull dog7 --rev v2) && persres generate $file --prompt 'a {} at sea'",
        ),
    ),
    "link": Command(link, ("persres link dog7 --rev v2 --hours 48",)),
    "publish": Command(
        publish,
        (
            "dvc repro && persres publish v2 --dry-run   (what would be published)",
            "persres publish v2 -m 'twice the steps'",
        ),
    ),
    "diff": Command(diff, ("persres diff v1 v2 --repo https://github.com/you/your-persres",)),
    "gc": Command(
        gc,
        (
            "git fetch --tags && persres gc   (how much would be deleted)",
            "persres gc --delete",
        ),
    ),
}
