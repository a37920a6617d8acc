"""Failures of publish and pull: nothing is lost or half-done, and every error names the object."""

# ruff: noqa: F401, F811 - pytest takes fixtures by their names

from __future__ import annotations

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from persres.cli.main import main
from persres.errors import PersresError
from persres.versions import publish as publishing
from persres.versions.git_dvc import git
from persres.versions.publish import plan_publication, publish
from persres.versions.pull import pull
from persres.versions.repository import Repository, cache_folder, md5_of
from tests.support.s3_server import BUCKET
from tests.support.versions_stand import (  # fixtures
    DOG,
    LEARNED,
    MUG,
    contents,
    environment,
    key_of,
    name_remote,
    published,
    ran,
    released,
    retrained,
    server,
    surroundings,
    tags,
    unpublished,
)


def test_a_damaged_or_lost_object_is_named_and_nothing_is_written(published, server, tmp_path, caplog):
    key = key_of(md5_of(published.copy(tmp_path, server) / LEARNED))
    origin, client = Repository(str(tmp_path / "origin.git"), "store"), server.client()
    client.put_object(Bucket=BUCKET, Key=key, Body=b"dog sevem" * 1000)
    with pytest.raises(PersresError, match=rf"{LEARNED}.*digest"):
        pull("dog7", "v1", origin, tmp_path / "out")
    client.delete_object(Bucket=BUCKET, Key=key)
    with pytest.raises(PersresError, match="the remote lacks a file") as caught:
        pull("dog7", "v1", origin, tmp_path / "out")
    assert "Traceback" not in str(caught.value) and not (tmp_path / "out").exists()
    assert not [path for path in cache_folder().rglob("*") if path.is_file()]
    client.put_object(Bucket=BUCKET, Key=key, Body=DOG)
    client.delete_object(Bucket=BUCKET, Key=key_of(md5_of(tmp_path / "work" / "data/cards/ours/dog7.png")))
    pull("dog7", "v1", origin, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["dog7.md", "dog7.safetensors"]
    assert "without dog7.png" in caplog.text, "a lost preview does not fail the pull"
    with pytest.raises(PersresError, match="has no concept cat; it has: dog7, mug"):
        pull("cat", "v1", origin, tmp_path / "out")
    with pytest.raises(PersresError, match="has no version v7; it has: v1"):
        pull("dog7", "v7", origin, tmp_path / "out")


def test_a_refused_upload_publishes_nothing_and_can_continue(ran, server, tmp_path):
    work, put = ran.copy(tmp_path, server), []
    before = git(work, "rev-parse", "HEAD")

    def refuse(method: str, path: str) -> str | None:
        if method == "PUT":
            put.append(path)
        return "deny" if method == "PUT" and len(put) > 2 else None

    server.refuse = refuse
    with pytest.raises(PersresError, match="dvc push failed"):
        released(work, "v1")
    assert unpublished(work, tmp_path, before) and len(contents(server)) == 2
    server.refuse = lambda method, path: None
    released(work, "v1")
    assert tags(tmp_path) == ["residuals@v1.0.0", "v1"]
    assert pull("mug", "v1", Repository(str(tmp_path / "origin.git"), "store"), tmp_path).read_bytes() == MUG


def test_dropped_and_slow_connections_are_retried(ran, server, tmp_path):
    """Slow: the first answer to a download comes after the client's timeout, so it must retry."""
    work, seen = ran.copy(tmp_path, server), []
    name_remote(work, server.endpoint, read_timeout=1)
    git(work, "commit", "-qam", "short patience")
    dog, mug = (key_of(md5_of(work / "data/learned/ours" / f"{name}.safetensors")) for name in ("dog7", "mug"))

    def refuse(method: str, path: str) -> str | float | None:
        first = (method, path) not in seen
        seen.append((method, path))
        if not first or method not in ("PUT", "GET") or not path.endswith((dog, mug)):
            return None
        return 2.5 if method == "GET" and path.endswith(mug) else "drop"

    def count(method: str, key: str) -> int:
        return len([path for verb, path in seen if verb == method and path.endswith(key)])

    server.refuse = refuse
    released(work, "v1")
    assert min(count("PUT", dog), count("PUT", mug)) > 1, "each was dropped once"
    origin = Repository(str(tmp_path / "origin.git"), "store")
    assert pull("mug", "v1", origin, tmp_path).read_bytes() == MUG and count("GET", mug) > 1
    assert pull("dog7", "v1", origin, tmp_path).read_bytes() == DOG and count("GET", dog) > 1


def test_no_bucket_no_server_and_a_wrong_secret_are_one_error_each(published, server, tmp_path, monkeypatch, capsys):
    """For publish, pull and doctor."""
    work = published.copy(tmp_path, server)
    before = git(work, "rev-parse", "HEAD")

    def fails(says: str) -> None:
        with pytest.raises(PersresError, match=says):
            released(work, "v2")
        with pytest.raises(PersresError, match=says):
            pull("dog7", "main", Repository(str(tmp_path / "origin.git"), "store"), tmp_path / "out")
        assert git(work, "tag").split() == tags(tmp_path) == ["residuals@v1.0.0", "v1"]

    for change, says in (
        ({"url": "s3://nowhere/team"}, "create the bucket"),
        ({"endpointurl": "http://127.0.0.1:9"}, "does not answer"),
    ):
        name_remote(work, server.endpoint, **change)
        git(work, "commit", "-qam", "another remote")
        git(work, "push", "-q", "origin", "main")
        fails(says)
    git(work, "reset", "-q", "--hard", before.strip())
    git(work, "push", "-q", "--force", "origin", "main")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    fails("AWS_SECRET_ACCESS_KEY|no permission")
    monkeypatch.chdir(work)
    assert main(["doctor", "--json"]) == 1
    checks = {entry["what"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert "AWS_SECRET_ACCESS_KEY" in checks["remote"]["fix"] and not (tmp_path / "out").exists()


def test_of_two_publishers_one_gets_an_error(retrained, server, tmp_path, monkeypatch):
    """Each in a thread and a clone; their pushes to git start at the same time."""
    work, other = retrained.copy(tmp_path, server), tmp_path / "other"
    shutil.copytree(work, other, symlinks=True)
    before, barrier = git(work, "rev-parse", "HEAD").strip(), threading.Barrier(2)

    def both_at_once(folder: Path, *arguments: str) -> str:
        if arguments[0] == "push":
            barrier.wait(60)
        return git(folder, *arguments)

    def race(folder: Path) -> str | None:
        try:
            publish(plan_publication("v2", folder), f"by {folder.name}", folder)
        except PersresError as error:
            return str(error)
        return None

    monkeypatch.setattr(publishing, "git", both_at_once)
    with ThreadPoolExecutor() as threads:
        outcome = dict(zip((work, other), threads.map(race, (work, other)), strict=True))
    (winner,), (loser,) = (
        [folder for folder, message in outcome.items() if bool(message) is lost] for lost in (False, True)
    )
    assert "v2 was not published" in outcome[loser] and "git pull" in outcome[loser]
    origin = tmp_path / "origin.git"
    assert (
        git(origin, "rev-parse", "v2^{commit}") == git(winner, "rev-parse", "HEAD") == git(origin, "rev-parse", "main")
    )
    assert git(origin, "log", "-1", "--format=%s", "main").strip() == f"by {winner.name}"
    assert "v2" not in git(loser, "tag").split() and git(loser, "rev-parse", "HEAD").strip() == before
    assert "params.yaml" in git(loser, "status", "--porcelain"), "the loser's changes stay"
    for name in ("v2", "v3"):  # another name does not help: the branch has moved
        with pytest.raises(PersresError, match=r"has v2 already|git pull"):
            plan_publication(name, loser)


def test_what_is_unfinished_or_unsafe_is_refused(ran, server, tmp_path):
    work = ran.copy(tmp_path, server)
    (work / "source" / "dog7.safetensors").write_bytes(b"other photos")
    git(work, "commit", "-qam", "other photos")
    with pytest.raises(PersresError, match="train must run again"):
        plan_publication("v1", work)
    git(work, "reset", "-q", "--hard", "HEAD^")
    shutil.rmtree(work / "data" / "learned")
    with pytest.raises(PersresError, match="train must run again"):
        plan_publication("v1", work)
    name_remote(work, server.endpoint, secret_access_key="s3cret")
    with pytest.raises(PersresError, match=r"secret_access_key.*environment"):
        plan_publication("v1", work)
    (work / ".dvc" / "config").write_text("")
    with pytest.raises(PersresError, match="no DVC remote to publish to"):
        plan_publication("v1", work)
