"""Versions in S3: published, listed, pulled, compared; and what is left when something goes wrong. moto's server on loopback
in every run, Ceph's gateway in a marked one: the same tests on both. What git alone decides is in test_publish.py."""

from __future__ import annotations

import json
import shutil
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ceph_server
import pytest
from s3_server import BUCKET, Server

from persres.cli import main
from persres.errors import PersresError
from persres.versions import publish as publishing
from persres.versions import store
from persres.versions.compare import differences
from persres.versions.publish import plan_publication, publish
from persres.versions.pull import _card, pull
from persres.versions.repository import Repository, StoredFile, cache_folder, md5_of
from persres.versions.tools import dvc, git

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
DOG, BETTER, MUG = b"dog seven" * 1000, b"dog seven, better" * 1000, b"mug" * 1000
LEARNED = "data/learned/ours/dog7.safetensors"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "2",
    "NO_PROXY": "127.0.0.1,localhost",
    "DVC_NO_ANALYTICS": "1",
    "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@t", "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@t",
}  # fmt: skip


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


@pytest.fixture(scope="module", autouse=True)
def environment():
    """Credentials in the environment alone."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(autouse=True)
def surroundings(environment, server, monkeypatch, tmp_path):
    """A server that refuses nothing, an empty bucket, a cache of the test's own."""
    monkeypatch.setenv("PERSRES_CACHE", str(tmp_path / "cache"))
    server.refuse = lambda method, path: None
    fill(server, {})
    yield
    server.refuse = lambda method, path: None


def fill(server, objects: dict[str, bytes]) -> None:
    """Make the bucket hold just that."""
    client = server.client()
    client.create_bucket(Bucket=BUCKET)
    for key in contents(server):
        client.delete_object(Bucket=BUCKET, Key=key)
    for key, body in objects.items():
        client.put_object(Bucket=BUCKET, Key=key, Body=body)


def contents(server) -> set[str]:
    return {entry["Key"] for entry in server.client().list_objects_v2(Bucket=BUCKET).get("Contents", [])}


def name_remote(folder: Path, endpoint: str, **options: object) -> None:
    """Write what ``dvc remote add -d`` and ``modify`` would."""
    lines = {"url": f"s3://{BUCKET}/team", "endpointurl": endpoint} | options
    text = "".join(f"    {key} = {value}\n" for key, value in lines.items())
    (folder / ".dvc" / "config").write_text(f"[core]\n    remote = store\n['remote \"store\"']\n{text}")


class State:
    """A repository ``work`` with git's remote ``origin.git`` beside it, and what the bucket holds; to be copied, never changed."""

    def __init__(self, root: Path, server) -> None:
        client, self.root = server.client(), root
        self.objects = {
            key: client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in sorted(contents(server))
        }

    def copy(self, root: Path, server) -> Path:
        fill(server, self.objects)
        for name in ("work", "origin.git"):
            shutil.copytree(self.root / name, root / name, symlinks=True)
        git(root / "work", "remote", "set-url", "origin", str(root / "origin.git"))
        return root / "work"


@pytest.fixture(scope="module")
def ran(environment, server, tmp_path_factory) -> State:
    """It ran once, is committed and clean, and has remotes."""
    root = tmp_path_factory.mktemp("ran")
    folder = root / "work"
    (folder / "source").mkdir(parents=True)
    (folder / "source" / "dog7.safetensors").write_bytes(DOG)
    (folder / "source" / "mug.safetensors").write_bytes(MUG)
    (folder / "source" / "dog7.md").write_text("---\nlicense: other\n---\n")
    (folder / "source" / "dog7.png").write_bytes(b"a picture")
    (folder / "source" / "table1.csv").write_text(table(0.5))
    (folder / "dvc.yaml").write_text(STAGE)
    (folder / "params.yaml").write_text(PARAMS)
    git(folder, "init", "-q", "-b", "main")
    git(root, "init", "-q", "--bare", "-b", "main", "origin.git")
    git(folder, "remote", "add", "origin", str(root / "origin.git"))
    dvc(folder, "init", "-q")
    dvc(folder, "repro", "-q")
    name_remote(folder, server.endpoint)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "settings")
    git(folder, "push", "-q", "origin", "main")
    fill(server, {})
    return State(root, server)


@pytest.fixture(scope="module")
def published(ran, server, tmp_path_factory) -> State:
    """That, published as v1."""
    root = tmp_path_factory.mktemp("published")
    released(ran.copy(root, server), "v1")
    return State(root, server)


@pytest.fixture(scope="module")
def retrained(published, server, tmp_path_factory) -> State:
    """That, with another setting and another result, which nobody has published."""
    root = tmp_path_factory.mktemp("retrained")
    folder = published.copy(root, server)
    (folder / "params.yaml").write_text(PARAMS.replace("0.001", "0.002"))
    train(folder, BETTER, 0.6)
    return State(root, server)


def train(folder: Path, dog: bytes, dino: float) -> None:
    """What is learned depends on ``source``, which git keeps."""
    (folder / "source" / "dog7.safetensors").write_bytes(dog)
    (folder / "source" / "table1.csv").write_text(table(dino))
    git(folder, "add", "source")
    git(folder, "commit", "-q", "-m", "photos")
    dvc(folder, "repro", "-q")


def released(folder: Path, version: str) -> None:
    publish(plan_publication(version, folder), None, folder)


def tags(tmp_path: Path) -> list[str]:
    return git(tmp_path / "origin.git", "tag").split()


def key_of(md5: str) -> str:
    return f"team/files/md5/{md5[:2]}/{md5[2:]}"


def unpublished(work: Path, tmp_path: Path, before: str) -> bool:
    """Nothing of a version that failed stands, here or there, and its changes are as they were."""
    return (git(work, "tag").split(), git(work, "rev-parse", "HEAD"), tags(tmp_path)) == ([], before, [])


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
    pull("dog7", "v1", repository, tmp_path / "two")
    assert (tmp_path / "two" / "dog7.safetensors").read_bytes() == DOG
    assert not any(method == "GET" and path.endswith(key) for method, path in server.asked)
    kept = next(path for path in (cache_folder() / "files").rglob("*") if path.is_file())
    kept.write_bytes(b"damaged here")
    pull("dog7", "v1", repository, tmp_path / "three")
    assert (tmp_path / "three" / "dog7.safetensors").read_bytes() == DOG, "a damaged cache mends itself"


def test_what_the_server_damaged_or_lost_is_named_and_leaves_nothing(published, server, tmp_path, caplog):
    key = key_of(md5_of(published.copy(tmp_path, server) / LEARNED))
    origin, client = Repository(str(tmp_path / "origin.git")), server.client()
    client.put_object(Bucket=BUCKET, Key=key, Body=b"dog sevem" * 1000)
    with pytest.raises(PersresError, match=rf"{LEARNED}.*digest"):
        pull("dog7", "v1", origin, tmp_path / "out")
    client.delete_object(Bucket=BUCKET, Key=key)
    with pytest.raises(PersresError, match="not in the remote") as caught:
        pull("dog7", "v1", origin, tmp_path / "out")
    assert "Traceback" not in str(caught.value) and not (tmp_path / "out").exists()
    assert not [path for path in cache_folder().rglob("*") if path.is_file()]
    client.put_object(Bucket=BUCKET, Key=key, Body=DOG)
    client.delete_object(Bucket=BUCKET, Key=key_of(md5_of(tmp_path / "work" / "data/cards/ours/dog7.png")))
    pull("dog7", "v1", origin, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["dog7.md", "dog7.safetensors"]
    assert "without dog7.png" in caplog.text, "a lost preview keeps nobody from the residual"
    with pytest.raises(PersresError, match="has no concept cat; it has: dog7, mug"):
        pull("cat", "v1", origin, tmp_path / "out")
    with pytest.raises(PersresError, match="has no version v7; it has: v1"):
        pull("dog7", "v7", origin, tmp_path / "out")


def test_an_upload_refused_in_the_middle_publishes_nothing_and_goes_on(ran, server, tmp_path):
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
    assert pull("mug", "v1", Repository(str(tmp_path / "origin.git")), tmp_path).read_bytes() == MUG


def test_dropped_and_slow_connections_are_borne(ran, server, tmp_path):
    """Slow: the first answer to each upload comes later than the client waits for it, so that it must ask again."""
    work, seen = ran.copy(tmp_path, server), []
    name_remote(work, server.endpoint, read_timeout=1)
    git(work, "commit", "-qam", "short patience")

    def refuse(method: str, path: str) -> str | float | None:
        first = (method, path) not in seen
        seen.append((method, path))
        return ("drop" if method == "GET" else 1.5) if first and path.endswith(keys) else None

    keys = tuple(key_of(md5_of(work / "data/learned/ours" / name)) for name in ("dog7.safetensors", "mug.safetensors"))
    server.refuse = refuse
    released(work, "v1")
    puts = [path for method, path in seen if method == "PUT" and path.endswith(keys)]
    assert len(puts) == 2 * len(set(puts)) == 4, "each was asked twice"
    assert pull("mug", "v1", Repository(str(tmp_path / "origin.git")), tmp_path).read_bytes() == MUG
    assert len([path for method, path in seen if method == "GET" and path.endswith(keys[1])]) > 1, "one was dropped"


def test_no_bucket_no_server_and_a_wrong_secret_are_one_error_each(published, server, tmp_path, monkeypatch, capsys):
    """To who publishes, to who pulls, and to the doctor."""
    work = published.copy(tmp_path, server)
    before = git(work, "rev-parse", "HEAD")

    def fails(says: str) -> None:
        with pytest.raises(PersresError, match=says):
            released(work, "v2")
        with pytest.raises(PersresError, match=says):
            pull("dog7", "main", Repository(str(tmp_path / "origin.git")), tmp_path / "out")
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
    fails("AWS_SECRET_ACCESS_KEY|may not do that")
    monkeypatch.chdir(work)
    assert main(["doctor", "--json"]) == 1
    found = {entry["what"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert "AWS_SECRET_ACCESS_KEY" in found["remote"]["mend"] and not (tmp_path / "out").exists()


def test_of_two_publishers_at_once_one_is_told(retrained, server, tmp_path, monkeypatch):
    """Each in a thread and a clone of its own; their pushes to git begin together."""
    work, other = retrained.copy(tmp_path, server), tmp_path / "other"
    shutil.copytree(work, other, symlinks=True)
    before, together = git(work, "rev-parse", "HEAD").strip(), threading.Barrier(2)

    def both_at_once(folder: Path, *arguments: str) -> str:
        if arguments[0] == "push":
            together.wait(60)
        return git(folder, *arguments)

    def race(folder: Path) -> str | None:
        try:
            publish(plan_publication("v2", folder), f"by {folder.name}", folder)
        except PersresError as error:
            return str(error)
        return None

    monkeypatch.setattr(publishing, "git", both_at_once)
    with ThreadPoolExecutor() as threads:
        told = dict(zip((work, other), threads.map(race, (work, other)), strict=True))
    (winner,), (loser,) = ([folder for folder, said in told.items() if bool(said) is lost] for lost in (False, True))
    assert "v2 was not published" in told[loser] and "git pull" in told[loser]
    origin = tmp_path / "origin.git"
    assert (
        git(origin, "rev-parse", "v2^{commit}") == git(winner, "rev-parse", "HEAD") == git(origin, "rev-parse", "main")
    )
    assert git(origin, "log", "-1", "--format=%s", "main").strip() == f"by {winner.name}"
    assert "v2" not in git(loser, "tag").split() and git(loser, "rev-parse", "HEAD").strip() == before
    assert "params.yaml" in git(loser, "status", "--porcelain"), "the loser's own work stands as it was"
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
    assert main(["housekeep", "--old-commits", "--delete"]) == 1
    said = capsys.readouterr().err
    assert "lacks (v1)" in said and "git fetch --tags origin" in said
    git(work, "fetch", "-q", "--tags", "origin")
    assert main(["housekeep", "--old-commits"]) == 0
    said = capsys.readouterr().out
    assert f"Removing {BUCKET}/{stray}" in said and "--delete" in said and stray in contents(server)
    assert main(["housekeep", "--old-commits", "--delete"]) == 0
    assert stray not in contents(server), "no tag needs it"
    for version, content in (("v1", DOG), ("v2", b"dog seven, best" * 1000)):
        got = pull("dog7", version, Repository(str(tmp_path / "origin.git")), tmp_path / version)
        assert got.read_bytes() == content
