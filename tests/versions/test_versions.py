"""Versions in S3: published, listed, pulled, compared, kept house for. What goes wrong: test_versions_trouble.py; git's part:
test_publish.py."""

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
from persres.versions.pull import _card, pull
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
    said = capsys.readouterr().out
    assert "v2" in said and "dvc.lock, params.yaml" in said and f"s3://{BUCKET}/team" in said
    assert "goes too" in said and "photos" in said and tags(tmp_path) == ["residuals@v1.0.0", "v1"]
    assert main(["publish", "v2", "-m", "twice the rate"]) == 0
    assert tags(tmp_path) == ["residuals@v1.0.0", "residuals@v2.0.0", "v1", "v2"]
    assert git(work, "status", "--porcelain") == ""
    assert git(tmp_path / "origin.git", "log", "-1", "--format=%s", "main").strip() == "twice the rate"
    origin, elsewhere = str(tmp_path / "origin.git"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert Repository(origin).versions() == ["v2", "v1"]
    capsys.readouterr()
    assert main(["pull", "dog7", "--rev", "v1", "--repo", origin, "--out", "a"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "a/dog7.safetensors\n", "what a script reads is the path alone"
    assert "pull: data/learned/ours/dog7.safetensors at v1" in captured.err
    assert (elsewhere / "a" / "dog7.safetensors").read_bytes() == DOG
    assert (elsewhere / "a" / "dog7.md").read_bytes() == (work / "data/cards/ours/dog7.md").read_bytes()
    assert (elsewhere / "a" / "dog7.png").read_bytes() == b"a picture"
    assert main(["list", "--rev", "v2", "--repo", origin, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert set(listed) == {"ours/dog7", "ours/mug"} and listed["ours/dog7"]["md5"] == md5_of(work / LEARNED)
    assert main(["pull", "ours/dog7", "--repo", origin, "--json"]) == 0, "the newest"
    told = json.loads(capsys.readouterr().out)
    assert told == {
        "concept": "ours/dog7", "version": "v2", "md5": listed["ours/dog7"]["md5"], "file": "dog7.safetensors",
        "beside": ["dog7.md", "dog7.png"],
    }  # fmt: skip
    assert (elsewhere / "dog7.safetensors").read_bytes() == BETTER
    found = differences("v1", "v2", Repository(origin))
    assert found["settings"] == {"train.lr": [0.001, 0.002]}
    assert found["scores"]["ours"]["dino"] == [0.5, 0.6]
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


def test_what_was_pulled_once_is_not_fetched_again(published, server, tmp_path):
    work = published.copy(tmp_path, server)
    repository, key = Repository(str(tmp_path / "origin.git")), key_of(md5_of(work / LEARNED))
    pull("dog7", "v1", repository, tmp_path / "one")
    server.asked.clear()
    by_ref = file_of("dog7@v1", repository)  # as load_residual asks for it
    assert by_ref.name == "dog7.safetensors" and by_ref.read_bytes() == DOG
    assert not any(method == "GET" and path.endswith(key) for method, path in server.asked)
    kept = next(path for path in (cache_folder() / "files").rglob("*") if path.is_file())
    kept.write_bytes(b"damaged here")
    pull("dog7", "v1", repository, tmp_path / "three")
    assert (tmp_path / "three" / "dog7.safetensors").read_bytes() == DOG, "a damaged cache mends itself"


def test_a_plain_folder_serves_as_a_remote(ran, server, tmp_path):
    work = ran.copy(tmp_path, server)
    (work / ".dvc" / "config").write_text(
        f"[core]\n    remote = store\n['remote \"store\"']\n    url = {tmp_path}/store\n"
    )
    git(work, "commit", "-qam", "a folder")
    released(work, "v1")
    assert pull("mug", None, Repository(str(tmp_path / "origin.git")), tmp_path).read_bytes() == MUG


def test_doctor_tries_the_remote_and_says_the_mend(ran, server, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ran.copy(tmp_path, server))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert main(["doctor", "--json"]) == 0
    found = {entry["what"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert found["remote"]["state"] == "ok" and "written, read and deleted" in found["remote"]["says"]
    assert found["S3 keys"] == {"what": "S3 keys", "state": "ok", "says": "…ting, from the environment", "mend": ""}
    assert not contents(server), "the probe is gone"
    server.refuse = lambda method, path: "deny" if method == "PUT" else None
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert f"writing to bucket {BUCKET}" in said and "-> these credentials may not" in said
    assert "prefect server start" in said
    server.refuse = lambda method, path: 1.0
    monkeypatch.setattr(store, "SECONDS", 0.3)
    assert main(["doctor", "--json"]) == 1
    found = {entry["what"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert "timeout" in found["remote"]["says"] and "does not answer" in found["remote"]["mend"]


def test_a_version_from_before_there_were_cards_is_pulled_without(caplog):
    class Older(Repository):
        def files(self, rev, folder):
            raise PersresError("dvc list failed: The path 'data/cards' does not exist")

    assert _card(StoredFile(LEARNED, "0"), "v1", Older()) == []
    assert "v1 has no model card of ours/dog7" in caplog.text


def test_housekeeping_keeps_what_a_tag_needs_and_frees_the_rest(retrained, server, tmp_path, monkeypatch, capsys):
    """And does nothing where somebody's tag is not here: its data would go. Between v1 and v2 lies a run that nobody published."""
    work = retrained.copy(tmp_path, server)
    git(work, "commit", "-q", "-am", "a run that nobody published")
    dvc(work, "push", "-q")
    stray = key_of(md5_of(work / LEARNED))
    train(work, b"dog seven, best" * 1000, 0.6)
    released(work, "v2")
    monkeypatch.chdir(work)
    git(work, "tag", "-d", "v1")
    assert main(["gc", "--old-commits", "--delete"]) == 1
    said = capsys.readouterr().err
    assert "lacks (v1)" in said and "git fetch --tags origin" in said
    git(work, "fetch", "-q", "--tags", "origin")
    assert main(["gc", "--old-commits"]) == 0
    said = capsys.readouterr().out
    assert f"Removing {BUCKET}/{stray}" in said and "--delete" in said and stray in contents(server)
    assert main(["gc", "--old-commits", "--delete"]) == 0
    assert stray not in contents(server), "no tag needs it"
    for version, content in (("v1", DOG), ("v2", b"dog seven, best" * 1000)):
        got = pull("dog7", version, Repository(str(tmp_path / "origin.git")), tmp_path / version)
        assert got.read_bytes() == content
