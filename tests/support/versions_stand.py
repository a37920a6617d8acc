"""Repositories with versions for tests, and their S3 server. A test module imports the fixtures by name; each builds a state once per
module, and tests copy it.

The same tests run on moto's server, and in a marked run on Ceph's gateway.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from persres.versions.git_dvc import dvc, git
from persres.versions.publish import plan_publication, publish
from tests.support import ceph_server
from tests.support.s3_server import BUCKET

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
    return f"method,clip_text,clip_text_low,dino,dino_low\nours,0.7,,{dino},\n"


@pytest.fixture(scope="module", params=["moto", pytest.param("ceph", marks=pytest.mark.ceph)])
def server(request, tmp_path_factory):
    """moto's, and in the marked run Ceph's (make test-ceph)."""
    with ceph_server.serving(request.param, tmp_path_factory) as served:
        yield served


@pytest.fixture(scope="module", autouse=True)
def environment():
    """Credentials only in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(autouse=True)
def surroundings(environment, server, monkeypatch, tmp_path):
    """A server that refuses nothing, an empty bucket, a cache of this test."""
    monkeypatch.setenv("PERSRES_CACHE", str(tmp_path / "cache"))
    server.refuse = lambda method, path: None
    fill(server, {})
    yield
    server.settle()


def fill(server, objects: dict[str, bytes]) -> None:
    """Make the bucket hold only these objects."""
    client = server.client()
    client.create_bucket(Bucket=BUCKET)
    for key in contents(server):
        client.delete_object(Bucket=BUCKET, Key=key)
    for key, body in objects.items():
        client.put_object(Bucket=BUCKET, Key=key, Body=body)


def contents(server) -> set[str]:
    return {entry["Key"] for entry in server.client().list_objects_v2(Bucket=BUCKET).get("Contents", [])}


def name_remote(folder: Path, endpoint: str, **options: object) -> None:
    """Write the configuration as ``dvc remote add -d`` and ``modify`` do."""
    lines = {"url": f"s3://{BUCKET}/team", "endpointurl": endpoint} | options
    text = "".join(f"    {key} = {value}\n" for key, value in lines.items())
    (folder / ".dvc" / "config").write_text(f"[core]\n    remote = store\n['remote \"store\"']\n{text}")


class State:
    """A repository ``work``, its git remote ``origin.git``, and the bucket's objects; copied, never changed."""

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
    """A repository that ran once, is committed and clean, and has remotes."""
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
    """The state ``ran``, published as v1."""
    root = tmp_path_factory.mktemp("published")
    released(ran.copy(root, server), "v1")
    return State(root, server)


@pytest.fixture(scope="module")
def retrained(published, server, tmp_path_factory) -> State:
    """The state ``published`` with another setting and result, unpublished."""
    root = tmp_path_factory.mktemp("retrained")
    folder = published.copy(root, server)
    (folder / "params.yaml").write_text(PARAMS.replace("0.001", "0.002"))
    train(folder, BETTER, 0.6)
    return State(root, server)


def train(folder: Path, dog: bytes, dino: float) -> None:
    """Run the stage again with other ``source`` files, which git tracks."""
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
    """Whether nothing of a failed version remains, local or remote, and its changes are as before."""
    return (git(work, "tag").split(), git(work, "rev-parse", "HEAD"), tags(tmp_path)) == ([], before, [])
