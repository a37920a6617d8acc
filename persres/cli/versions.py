"""The commands of versions: list, pull, link, publish, diff, housekeep."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from persres.cli.options import Endpoint, Json, Remote, Repo


def add_to(app: typer.Typer) -> None:
    """Give these commands to the command line."""
    app.command(name="list")(list_versions)
    for command in (pull, link, publish, diff, housekeep):
        app.command()(command)


def _repository(where: str, remote: str | None, endpoint: str | None):
    from persres.versions.repository import Repository

    return Repository(where, remote, endpoint)


def list_versions(
    rev: Annotated[str | None, typer.Option(help="what was learned in this version; if left out, all versions")] = None,
    repo: Repo = ".",
    remote: Remote = None,
    endpoint: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Versions that were published, or what one of them holds."""
    from persres.versions.listing import listed

    print(listed(_repository(repo, remote, endpoint), rev, as_json))


def pull(
    concept: Annotated[str, typer.Argument(help="its name, or variant/name where several variants learned it")],
    rev: Annotated[str | None, typer.Option(help="a version, e.g. v3; if left out, the newest")] = None,
    repo: Repo = ".",
    out: Annotated[Path, typer.Option(help="the folder to write into")] = Path(),
    remote: Remote = None,
    endpoint: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Fetch one residual of a version, checked against its digest; what was fetched once is kept."""
    from persres.versions.pull import pull_all

    pulled = pull_all(concept, rev, _repository(repo, remote, endpoint), out)
    print(pulled.as_json() if as_json else pulled.file)


def link(
    concept: Annotated[str, typer.Argument(help="its name, or variant/name")],
    rev: Annotated[str | None, typer.Option(help="a version; if left out, the newest")] = None,
    hours: Annotated[float, typer.Option(min=0.01, max=168, help="how long it lives")] = 24,
) -> None:
    """A link to a residual in S3, for someone who has no key."""
    from persres.versions.pull import make_link

    print(make_link(concept, rev, int(hours * 3600)))


def publish(
    version: Annotated[str, typer.Argument(help="the tag, e.g. v3; it never changes afterwards")],
    message: Annotated[str | None, typer.Option("--message", "-m", help="of the commit and the tag")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be published, and stop")] = False,
    as_json: Json = False,
) -> None:
    """Push data to DVC's remote, then commit and tag in one push; refuses what is unfinished or not a run's own."""
    from persres.versions.publish import plan_publication
    from persres.versions.publish import publish as push

    plan = plan_publication(version)
    print(plan.as_json() if as_json else plan.text())
    if not dry_run:
        push(plan, message)
        print(f"published {version}", file=sys.stderr if as_json else sys.stdout)


def diff(
    before: str,
    after: str,
    repo: Repo = ".",
    remote: Remote = None,
    endpoint: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Settings and scores of two versions, side by side."""
    from persres.versions import compare as versions

    found = versions.differences(before, after, _repository(repo, remote, endpoint))
    print(versions.as_json(found) if as_json else versions.as_text(found))


def housekeep(
    delete: Annotated[bool, typer.Option("--delete", help="do it; if left out, only say what would go")] = False,
    old_commits: Annotated[
        bool, typer.Option("--old-commits", help="also what only commits need that no tag or branch ends at")
    ] = False,
) -> None:
    """Free DVC's remote of what no version needs; refuses where this clone lacks somebody's tag or branch."""
    from persres.versions.gc import collect_garbage as clean

    print(clean(delete, old_commits), end="")
