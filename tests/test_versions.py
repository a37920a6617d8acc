"""Versions in S3: published, listed, pulled, compared; and what is left when something goes wrong. moto's server on loopback
in every run, Ceph's gateway in a marked one: the same tests on both."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path

import ceph_server
import pytest
from s3_server import BUCKET, Server

from persres.cli import main
from persres.errors import PersresError
from persres.versions.compare import differences
from persres.versions.publish import plan_publication, publish
from persres.versions.pull import _card, pull
from persres.versions.ref import file_of
from persres.versions.repository import Repository, StoredFile, cache_folder, md5_of

STAGE = """
stages:
  train:
    cmd: mkdir -p data/learned/ours data/tables && cp source/*.safetensors data/learned/ours/ && cp source/table1.csv data/tables/ && mkdir -p data/cards/ours && cp source/dog7.* data/cards/ours/ && rm data/cards/ours/*.safetensors
    deps: [source]
    outs: [data/learned, data/tables, data/cards]
artifacts:
  residuals: {path: data/learned, type: model}
"""
PARAMS = "profile: tiny\ntiny:\n  train: {lr: 0.001, steps: 150}\n"


def run(folder: Path, *command: str) -> str:
    if command[0] == "dvc":
        command = (sys.executable, "-m", *command)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def table(dino: float) -> str:
    return f"method,clip_text,dino\nours,0.7,{dino}\n"


@pytest.fixture(scope="module", params=["moto", pytest.param("ceph", marks=pytest.mark.ceph)])
def server(request, tmp_path_factory):
    """moto's in every run; Ceph's in the marked one (make test-ceph)."""
    ceph = None
    if request.param == "ceph":
        if ceph_server.why_not():
            pytest.skip(ceph_server.why_not())
        ceph = ceph_server.Ceph(tmp_path_factory.mktemp("ceph"))
    served = Server(ceph_server.Forward(ceph.endpoint) if ceph else None)
    served.is_real = ceph is not None
    yield served
    served.stop()
    if ceph:
        ceph.stop()


@pytest.fixture(autouse=True)
def surroundings(server, monkeypatch, tmp_path):
    """Credentials in the environment alone, an empty bucket, a cache of the test's own."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "2",
        "NO_PROXY": "127.0.0.1,localhost",
        "PERSRES_CACHE": str(tmp_path / "cache"),
        "DVC_NO_ANALYTICS": "1",
        "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@t", "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@t",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    server.refuse = lambda method, path: None
    client = server.client()
    client.create_bucket(Bucket=BUCKET)
    yield
    server.refuse = lambda method, path: None
    for entry in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=entry["Key"])


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """A repository that has run once, without a remote."""
    folder = tmp_path_factory.mktemp("template") / "work"
    (folder / "source").mkdir(parents=True)
    (folder / "source" / "dog7.safetensors").write_bytes(b"dog seven" * 1000)
    (folder / "source" / "mug.safetensors").write_bytes(b"mug" * 1000)
    (folder / "source" / "dog7.md").write_text("---\nlicense: other\n---\n")
    (folder / "source" / "dog7.png").write_bytes(b"a picture")
    (folder / "source" / "table1.csv").write_text(table(0.5))
    (folder / "dvc.yaml").write_text(STAGE)
    (folder / "params.yaml").write_text(PARAMS)
    run(folder, "git", "init", "-q", "-b", "main")
    run(folder, "dvc", "init", "-q")
    run(folder, "dvc", "repro", "-q")
    return folder


@pytest.fixture
def work(template, server, tmp_path) -> Path:
    """That repository with a remote in S3 and one of git's, committed and clean."""
    folder = tmp_path / "work"
    shutil.copytree(template, folder, symlinks=True)
    run(tmp_path, "git", "init", "-q", "--bare", "-b", "main", "origin.git")
    run(folder, "git", "remote", "add", "origin", str(tmp_path / "origin.git"))
    run(folder, "dvc", "remote", "add", "-q", "-d", "store", f"s3://{BUCKET}/team")
    run(folder, "dvc", "remote", "modify", "-q", "store", "endpointurl", server.endpoint)
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-q", "-m", "settings")
    run(folder, "git", "push", "-q", "origin", "main")
    return folder


def retrain(folder: Path, dino: float = 0.6) -> None:
    """A run with another setting and another result."""
    (folder / "params.yaml").write_text(PARAMS.replace("0.001", "0.002"))
    (folder / "source" / "dog7.safetensors").write_bytes(b"dog seven, better" * 1000)
    (folder / "source" / "table1.csv").write_text(table(dino))
    run(folder, "git", "add", "source")
    run(folder, "git", "commit", "-q", "-m", "photos")
    run(folder, "dvc", "repro", "-q")


def released(folder: Path, version: str) -> None:
    publish(plan_publication(version, folder), None, folder)


def tags(tmp_path: Path) -> list[str]:
    return run(tmp_path / "origin.git", "git", "tag").split()


def objects(server) -> set[str]:
    return {entry["Key"] for entry in server.client().list_objects_v2(Bucket=BUCKET).get("Contents", [])}


def test_two_versions_are_published_listed_pulled_and_compared(work, server, tmp_path, monkeypatch, capsys):
    released(work, "v1")
    first = md5_of(work / "data" / "learned" / "ours" / "dog7.safetensors")
    retrain(work)
    monkeypatch.chdir(work)
    assert main(["publish", "v2", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert (
        "v2" in said
        and "dvc.lock, params.yaml" in said
        and f"s3://{BUCKET}/team" in said
        and tags(tmp_path) == ["residuals@v1.0.0", "v1"]
    )
    assert main(["publish", "v2", "-m", "twice the rate"]) == 0
    assert (
        tags(tmp_path) == ["residuals@v1.0.0", "residuals@v2.0.0", "v1", "v2"]
        and run(work, "git", "status", "--porcelain") == ""
    )
    assert run(tmp_path / "origin.git", "git", "log", "-1", "--format=%s", "main").strip() == "twice the rate"
    origin, elsewhere = str(tmp_path / "origin.git"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert Repository(origin).versions() == ["v2", "v1"]
    assert main(["pull", "dog7", "--rev", "v1", "--repo", origin, "--out", "a"]) == 0
    assert md5_of(elsewhere / "a" / "dog7.safetensors") == first
    assert sorted(path.name for path in (elsewhere / "a").iterdir()) == ["dog7.md", "dog7.png", "dog7.safetensors"]
    assert (elsewhere / "a" / "dog7.md").read_bytes() == (work / "data/cards/ours/dog7.md").read_bytes()
    capsys.readouterr()
    assert main(["list", "--rev", "v2", "--repo", origin, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert set(listed) == {"ours/dog7", "ours/mug"} and listed["ours/dog7"]["md5"] != first
    assert main(["pull", "ours/dog7", "--repo", origin]) == 0, "the newest"
    assert md5_of(elsewhere / "dog7.safetensors") == listed["ours/dog7"]["md5"]
    found = differences("v1", "v2", Repository(origin))
    assert found["settings"] == {"train.lr": [0.001, 0.002]}
    assert found["scores"]["ours"]["dino"] == [0.5, 0.6]
    run(elsewhere, "dvc", "artifacts", "get", origin, "residuals", "--rev", "v1.0.0", "-o", "all")
    assert md5_of(elsewhere / "all" / "ours" / "dog7.safetensors") == first


def test_a_link_needs_no_key_and_a_lost_object_gets_none(work, server, monkeypatch, capsys):
    released(work, "v1")
    monkeypatch.chdir(work)
    capsys.readouterr()
    assert main(["link", "dog7"]) == 0
    with urllib.request.urlopen(capsys.readouterr().out.strip()) as answer:
        assert answer.read() == b"dog seven" * 1000
        assert 'filename="dog7.safetensors"' in answer.headers["Content-Disposition"]
    server.client().delete_object(Bucket=BUCKET, Key=key_of(work / "data/learned/ours/dog7.safetensors"))
    assert main(["link", "dog7"]) == 1
    assert "no link to data/learned/ours/dog7.safetensors" in capsys.readouterr().err


def key_of(path: Path) -> str:
    md5 = md5_of(path)
    return f"team/files/md5/{md5[:2]}/{md5[2:]}"


def test_what_was_pulled_once_is_not_fetched_again(work, server, tmp_path):
    released(work, "v1")
    repository, file = Repository(str(tmp_path / "origin.git")), key_of(work / "data/learned/ours/dog7.safetensors")
    pull("dog7", "v1", repository, tmp_path / "one")
    server.asked.clear()
    by_ref = file_of("dog7@v1", repository)  # as load_residual asks for it
    assert by_ref.name == "dog7.safetensors" and by_ref.read_bytes() == b"dog seven" * 1000
    assert not any(method == "GET" and path.endswith(file) for method, path in server.asked)
    kept = next(path for path in (cache_folder() / "files").rglob("*") if path.is_file())
    kept.write_bytes(b"damaged here")
    pull("dog7", "v1", repository, tmp_path / "three")
    assert (tmp_path / "three" / "dog7.safetensors").read_bytes() == b"dog seven" * 1000, "a damaged cache mends itself"


def test_a_damaged_object_is_named_and_leaves_nothing(work, server, tmp_path):
    released(work, "v1")
    key = key_of(work / "data/learned/ours/dog7.safetensors")
    server.client().put_object(Bucket=BUCKET, Key=key, Body=b"dog sevem" * 1000)
    with pytest.raises(PersresError, match=r"data/learned/ours/dog7.safetensors") as caught:
        pull("dog7", "v1", Repository(str(tmp_path / "origin.git")), tmp_path / "out")
    assert "digest" in str(caught.value) and not (tmp_path / "out").exists()
    assert not [path for path in cache_folder().rglob("*") if path.is_file()]


def test_a_lost_object_is_named_and_leaves_nothing(work, server, tmp_path):
    released(work, "v1")
    server.client().delete_object(Bucket=BUCKET, Key=key_of(work / "data/learned/ours/dog7.safetensors"))
    with pytest.raises(PersresError, match="not in the remote") as caught:
        pull("dog7", "v1", Repository(str(tmp_path / "origin.git")), tmp_path / "out")
    assert "Traceback" not in str(caught.value) and not (tmp_path / "out").exists()
    with pytest.raises(PersresError, match="has no concept cat; it has: dog7, mug"):
        pull("cat", "v1", Repository(str(tmp_path / "origin.git")), tmp_path / "out")
    with pytest.raises(PersresError, match="has no version v7; it has: v1"):
        pull("dog7", "v7", Repository(str(tmp_path / "origin.git")), tmp_path / "out")


def unpublished(work: Path, tmp_path: Path, before: str) -> bool:
    """Nothing of a version that failed stands, here or there, and its changes are as they were."""
    here = run(work, "git", "tag").split(), run(work, "git", "rev-parse", "HEAD")
    return here == ([], before) and tags(tmp_path) == []


def test_an_upload_refused_in_the_middle_publishes_nothing_and_goes_on(work, server, tmp_path):
    before, put = run(work, "git", "rev-parse", "HEAD"), []

    def refuse(method: str, path: str) -> str | None:
        if method == "PUT":
            put.append(path)
        return "deny" if method == "PUT" and len(put) > 2 else None

    server.refuse = refuse
    with pytest.raises(PersresError, match="dvc push failed"):
        released(work, "v1")
    assert unpublished(work, tmp_path, before) and len(objects(server)) == 2
    server.refuse = lambda method, path: None
    released(work, "v1")
    assert tags(tmp_path) == ["residuals@v1.0.0", "v1"]
    assert pull("mug", "v1", Repository(str(tmp_path / "origin.git")), tmp_path).read_bytes() == b"mug" * 1000


def test_dropped_and_slow_connections_are_borne(work, server, tmp_path):
    dropped: list[str] = []

    def refuse(method: str, path: str) -> str | float | None:
        if method in ("PUT", "GET") and not path.endswith(".dir") and path not in dropped:
            dropped.append(path)
            return "drop"
        return 0.02

    server.refuse = refuse
    released(work, "v1")
    dropped.clear()
    assert pull("mug", "v1", Repository(str(tmp_path / "origin.git")), tmp_path).read_bytes() == b"mug" * 1000
    assert dropped, "the server did drop some"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["url", "s3://nowhere/team"], "create the bucket"),
        (["endpointurl", "http://127.0.0.1:9"], "does not answer"),
    ],
)
def test_no_bucket_and_no_server_are_one_error_each(work, tmp_path, change, says):
    run(work, "dvc", "remote", "modify", "-q", "store", *change)
    run(work, "git", "commit", "-qam", "another remote")
    before = run(work, "git", "rev-parse", "HEAD")
    with pytest.raises(PersresError, match=says):
        released(work, "v1")
    assert unpublished(work, tmp_path, before)


def test_of_two_publishers_at_once_one_is_told(work, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(work, other, symlinks=True)
    retrain(work, 0.6)
    retrain(other, 0.7)
    plans = plan_publication("v1", work), plan_publication("v1", other)
    publish(plans[0], None, work)
    before = run(other, "git", "rev-parse", "HEAD")
    with pytest.raises(PersresError, match=r"(?s)was not published.*git pull"):
        publish(plans[1], None, other)
    assert run(other, "git", "tag").split() == [] and run(other, "git", "rev-parse", "HEAD") == before
    assert "params.yaml" in run(other, "git", "status", "--porcelain"), "the loser's own work stands as it was"
    assert run(tmp_path / "origin.git", "git", "rev-parse", "v1^{commit}") == run(work, "git", "rev-parse", "HEAD")
    with pytest.raises(PersresError, match="not published"):
        publish(replace(plans[1], version="v2", tags=["v2"]), None, other)  # another name, but the branch has moved
    assert tags(tmp_path) == ["residuals@v1.0.0", "v1"]


def test_what_is_unfinished_or_unsafe_is_refused(work, tmp_path):
    (work / "notes.txt").write_text("mine")
    with pytest.raises(PersresError, match=r"notes.txt changed and belong to no run"):
        plan_publication("v1", work)
    (work / "notes.txt").unlink()
    for name in ("", "-f", "a b", "v1..2/x"):
        with pytest.raises(PersresError, match="no name for a version"):
            plan_publication(name, work)
    (work / "source" / "dog7.safetensors").write_bytes(b"other photos")
    with pytest.raises(PersresError, match="train must run again"):
        plan_publication("v1", work)
    run(work, "git", "checkout", "-q", "source")
    shutil.rmtree(work / "data" / "learned")
    with pytest.raises(PersresError, match="train must run again"):
        plan_publication("v1", work)
    run(work, "dvc", "checkout", "-q")
    run(work, "dvc", "remote", "modify", "-q", "store", "secret_access_key", "s3cret")
    with pytest.raises(PersresError, match=r"secret_access_key.*environment"):
        plan_publication("v1", work)
    run(work, "dvc", "remote", "remove", "-q", "store")
    with pytest.raises(PersresError, match="no DVC remote to publish to"):
        plan_publication("v1", work)


def test_a_plain_folder_serves_as_a_remote(work, tmp_path):
    run(work, "dvc", "remote", "add", "-q", "-f", "-d", "store", str(tmp_path / "store"))
    run(work, "git", "commit", "-qam", "a folder")
    released(work, "v1")
    assert pull("mug", None, Repository(str(tmp_path / "origin.git")), tmp_path).read_bytes() == b"mug" * 1000


def test_doctor_tries_the_remote_and_says_the_mend(work, server, monkeypatch, capsys):
    monkeypatch.chdir(work)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    capsys.readouterr()
    assert main(["doctor", "--json"]) == 0
    found = {entry["what"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert found["remote"]["state"] == "ok" and "written, read and deleted" in found["remote"]["says"]
    assert not objects(server), "the probe is gone"
    server.refuse = lambda method, path: "deny" if method == "PUT" else None
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert f"writing to bucket {BUCKET}" in said and "access" in said and "prefect server start" in said


def test_a_wrong_secret_is_named(work, server, tmp_path, monkeypatch, capsys):
    if not server.is_real:
        pytest.skip("moto takes any secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    before = run(work, "git", "rev-parse", "HEAD")
    with pytest.raises(PersresError, match=r"AWS_SECRET_ACCESS_KEY|may not do that"):
        released(work, "v1")
    assert unpublished(work, tmp_path, before)
    monkeypatch.chdir(work)
    assert main(["doctor"]) == 1
    assert "AWS_SECRET_ACCESS_KEY" in capsys.readouterr().out


def test_a_lost_preview_is_said_and_keeps_nobody_from_the_residual(work, server, tmp_path, caplog):
    released(work, "v1")
    server.client().delete_object(Bucket=BUCKET, Key=key_of(work / "data/cards/ours/dog7.png"))
    pull("dog7", "v1", Repository(str(tmp_path / "origin.git")), tmp_path / "got")
    assert sorted(path.name for path in (tmp_path / "got").iterdir()) == ["dog7.md", "dog7.safetensors"]
    assert "without dog7.png" in caplog.text


def test_a_version_from_before_there_were_cards_is_pulled_without(caplog):
    class Older(Repository):
        def files(self, rev, folder):
            raise PersresError("dvc list failed: The path 'data/cards' does not exist")

    assert _card(StoredFile("data/learned/ours/dog7.safetensors", "0"), "v1", Older()) == []
    assert "v1 has no model card of ours/dog7" in caplog.text


def test_housekeeping_keeps_what_a_tag_needs_and_frees_the_rest(work, server, tmp_path):
    """The command of docs/versions.md, word for word but for the question it asks."""
    released(work, "v1")
    retrain(work)
    run(work, "git", "commit", "-q", "-am", "a run that nobody published")
    run(work, "dvc", "push", "-q")
    stray = key_of(work / "data/learned/ours/dog7.safetensors")
    (work / "source" / "dog7.safetensors").write_bytes(b"dog seven, best" * 1000)
    run(work, "git", "commit", "-q", "-am", "more photos")
    run(work, "dvc", "repro", "-q")
    released(work, "v2")
    assert stray in objects(server)
    documented = "dvc gc -w --all-tags --all-branches -c"
    assert documented in (Path(__file__).parent.parent / "docs" / "versions.md").read_text()
    run(work, *documented.split(), "-f", "-q")
    assert stray not in objects(server), "no tag needs it"
    for version, text in (("v1", b"dog seven"), ("v2", b"dog seven, best")):
        got = pull("dog7", version, Repository(str(tmp_path / "origin.git")), tmp_path / version)
        assert got.read_bytes() == text * 1000
