"""Versions in S3: publish, list, pull, compare, garbage collection. Failures: test_versions_trouble.py; git: test_publish.py."""

# ruff: noqa: F401, F811 - pytest takes fixtures by their names

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

from persres.cli.main import main
from persres.errors import PersresError
from persres.versions import store
from persres.versions.compare import differences
from persres.versions.git_dvc import dvc, git
from persres.versions.pull import _cards, pull
from persres.versions.repository import Repository, StoredFile, cache_folder, md5_of
from persres.versions.residual_address import file_of
from tests.support.s3_server import BUCKET
from tests.support.versions_stand import (  # fixtures
    BETTER,
    DOG,
    LEARNED,
    MUG,
    contents,
    environment,
    key_of,
    published,
    ran,
    released,
    retrained,
    server,
    surroundings,
    tags,
    train,
)


def test_two_versions_are_published_listed_pulled_and_compared(retrained, server, tmp_path, monkeypatch, capsys):
    work = retrained.copy(tmp_path, server)
    monkeypatch.chdir(work)
    assert main(["publish", "v2", "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert "v2" in output and "dvc.lock, params.yaml" in output and f"s3://{BUCKET}/team" in output
    assert "unpushed" in output and "photos" in output and tags(tmp_path) == ["residuals@v1.0.0", "v1"]
    assert main(["publish", "v2", "-m", "twice the rate"]) == 0
    assert tags(tmp_path) == ["residuals@v1.0.0", "residuals@v2.0.0", "v1", "v2"]
    assert git(work, "status", "--porcelain") == ""
    assert git(tmp_path / "origin.git", "log", "-1", "--format=%s", "main").strip() == "twice the rate"
    origin, elsewhere = str(tmp_path / "origin.git"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert Repository(origin).versions() == ["v2", "v1"]
    capsys.readouterr()
    assert main(["pull", "dog7", "--rev", "v1", "--repo", origin, "--remote", "store", "--out", "a"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "a/dog7.safetensors\n", "what a script reads is the path alone"
    assert "pull: data/learned/ours/dog7.safetensors at v1" in captured.err
    assert (elsewhere / "a" / "dog7.safetensors").read_bytes() == DOG
    assert (elsewhere / "a" / "dog7.md").read_bytes() == (work / "data/cards/ours/dog7.md").read_bytes()
    assert (elsewhere / "a" / "dog7.png").read_bytes() == b"a picture"
    assert main(["list", "--rev", "v2", "--repo", origin, "--remote", "store", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert set(listed) == {"ours/dog7", "ours/mug"} and listed["ours/dog7"]["md5"] == md5_of(work / LEARNED)
    assert main(["pull", "ours/dog7", "--repo", origin, "--remote", "store", "--json"]) == 0, "the newest"
    pulled = json.loads(capsys.readouterr().out)
    assert pulled == {
        "concept": "ours/dog7", "version": "v2", "md5": listed["ours/dog7"]["md5"], "file": "dog7.safetensors",
        "extras": ["dog7.md", "dog7.png"],
    }  # fmt: skip
    assert (elsewhere / "dog7.safetensors").read_bytes() == BETTER
    changes = differences("v1", "v2", Repository(origin, "store"))
    assert changes["settings"] == {"train.lr": [0.001, 0.002]}
    assert changes["scores"]["ours"]["dino"] == [0.5, 0.6]
    dvc(elsewhere, "artifacts", "get", origin, "residuals", "--rev", "v1.0.0", "-o", "all")
    assert (elsewhere / "all" / "ours" / "dog7.safetensors").read_bytes() == DOG


def test_a_link_needs_no_key_and_a_lost_object_gets_none(published, server, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(published.copy(tmp_path, server))
    assert main(["link", "dog7"]) == 0
    with urllib.request.urlopen(capsys.readouterr().out.strip()) as answer:
        assert answer.read() == DOG
        assert 'filename="dog7.safetensors"' in answer.headers["Content-Disposition"]
    server.client().delete_object(Bucket=BUCKET, Key=key_of(md5_of(Path(LEARNED))))
    assert main(["link", "dog7"]) == 1
    assert f"no link to {LEARNED}" in capsys.readouterr().err


def test_a_file_is_downloaded_once(published, server, tmp_path):
    work = published.copy(tmp_path, server)
    repository, key = Repository(str(tmp_path / "origin.git"), "store"), key_of(md5_of(work / LEARNED))
    pull("dog7", "v1", repository, tmp_path / "one")
    server.requests.clear()
    by_ref = file_of("dog7@v1", repository)  # as load_residual asks for it
    assert by_ref.name == "dog7.safetensors" and by_ref.read_bytes() == DOG
    assert not any(method == "GET" and path.endswith(key) for method, path in server.requests)
    cached = next(path for path in (cache_folder() / "files").rglob("*") if path.is_file())
    cached.write_bytes(b"damaged here")
    pull("dog7", "v1", repository, tmp_path / "three")
    assert (tmp_path / "three" / "dog7.safetensors").read_bytes() == DOG, "a damaged cached file is downloaded again"


def test_a_plain_folder_serves_as_a_remote(ran, server, tmp_path):
    work = ran.copy(tmp_path, server)
    (work / ".dvc" / "config").write_text(
        f"[core]\n    remote = store\n['remote \"store\"']\n    url = {tmp_path}/store\n"
    )
    git(work, "commit", "-qam", "a folder")
    released(work, "v1")
    assert pull("mug", None, Repository(str(tmp_path / "origin.git")), tmp_path).read_bytes() == MUG


def test_doctor_tries_the_remote_and_prints_the_fix(ran, server, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ran.copy(tmp_path, server))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert main(["doctor", "--json"]) == 0
    checks = {entry["what"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert checks["remote"]["state"] == "ok" and "written, read and deleted" in checks["remote"]["says"]
    assert checks["S3 keys"] == {"what": "S3 keys", "state": "ok", "says": "…ting, from the environment", "fix": ""}
    assert not contents(server), "the probe is gone"
    server.refuse = lambda method, path: "deny" if method == "PUT" else None
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    assert main(["doctor"]) == 1
    output = capsys.readouterr().out
    assert f"writing to bucket {BUCKET}" in output and "-> these credentials have no permission" in output
    assert "prefect server start" in output
    server.refuse = lambda method, path: 1.0
    monkeypatch.setattr(store, "TIMEOUT", 0.3)
    assert main(["doctor", "--json"]) == 1
    checks = {entry["what"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert "timeout" in checks["remote"]["says"] and "does not answer" in checks["remote"]["fix"]


def test_a_version_without_cards_is_pulled(caplog):
    class Older(Repository):
        def files(self, rev, folder):
            raise PersresError("dvc list failed: The path 'data/cards' does not exist")

    assert _cards(StoredFile(LEARNED, "0"), "v1", Older()) == []
    assert "v1 has no model card of ours/dog7" in caplog.text


def test_gc_keeps_what_a_tag_needs_and_deletes_the_rest(retrained, server, tmp_path, monkeypatch, capsys):
    """And refuses if this clone lacks a tag, whose data would go. A run between v1 and v2 was never published."""
    work = retrained.copy(tmp_path, server)
    git(work, "commit", "-q", "-am", "a run that nobody published")
    dvc(work, "push", "-q")
    stray = key_of(md5_of(work / LEARNED))
    train(work, b"dog seven, best" * 1000, 0.6)
    released(work, "v2")
    monkeypatch.chdir(work)
    git(work, "tag", "-d", "v1")
    assert main(["gc", "--old-commits", "--delete"]) == 1
    output = capsys.readouterr().err
    assert "lacks (v1)" in output and "git fetch --tags origin" in output
    git(work, "fetch", "-q", "--tags", "origin")
    assert main(["gc", "--old-commits", "--verbose"]) == 0
    output = capsys.readouterr().out
    assert f"Removing {BUCKET}/{stray}" in output and "--delete" in output and stray in contents(server)
    assert main(["gc", "--old-commits", "--delete"]) == 0
    assert stray not in contents(server), "no tag needs it"
    for version, content in (("v1", DOG), ("v2", b"dog seven, best" * 1000)):
        got = pull("dog7", version, Repository(str(tmp_path / "origin.git")), tmp_path / version)
        assert got.read_bytes() == content
