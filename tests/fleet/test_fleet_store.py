"""The store between machines: a folder, moto's S3 in every run, and Ceph's gateway in a marked one (make test-ceph)."""

from __future__ import annotations

import os
import threading
from datetime import timedelta

import pytest

from persres.errors import PersresError
from persres.fleet import on_demand
from persres.fleet import store as stores
from persres.fleet.on_demand import Request
from persres.fleet.store import StoreError, open_store
from persres.fleet.worker import read_shard
from persres.units.files import written_whole
from tests.support import ceph_server
from tests.support.s3_server import BUCKET, credentials


@pytest.fixture(scope="module", params=["moto", pytest.param("ceph", marks=pytest.mark.ceph)])
def server(request, tmp_path_factory):
    with ceph_server.serving(request.param, tmp_path_factory) as served:
        yield served


@pytest.fixture
def surroundings(server, monkeypatch):
    """Credentials in the environment alone, and a bucket."""
    open_store.cache_clear()
    for name, value in credentials(server.endpoint).items():
        monkeypatch.setenv(name, value)
    server.refuse = lambda method, path: None
    server.client().create_bucket(Bucket=BUCKET)
    yield
    server.refuse = lambda method, path: None


@pytest.fixture(params=["folder", "s3"])
def url(request, tmp_path, surroundings):
    """A store of each kind, empty."""
    return str(tmp_path / "store") if request.param == "folder" else f"s3://{BUCKET}/{tmp_path.name}"


def test_one_writer_wins_and_nothing_is_read_by_halves(url, tmp_path):
    store = open_store(url)
    assert store.read("a/b") is None and not store.has("a/b") and list(store.keys("a/")) == []
    assert store.write("a/b", b"one", only_new=True) and store.read("a/b") == b"one"
    assert not store.write("a/b", b"two", only_new=True) and store.read("a/b") == b"one"
    assert store.write("a/b", b"three") and store.read("a/b") == b"three"
    results = []
    threads = [
        threading.Thread(target=lambda i=i: results.append(store.write("race", b"%d" % i, only_new=True)))
        for i in range(8)
    ]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert results.count(True) == 1
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    store.upload(tmp_path / "file", "a/large")
    assert store.download("a/large", tmp_path / "deep" / "copy") and not store.download("a/none", tmp_path / "none")
    assert (tmp_path / "deep" / "copy").read_bytes() == b"x" * 100_000 and not (tmp_path / "none").exists()
    assert list(store.keys("a/")) == ["a/b", "a/large"]
    store.remove("a/b"), store.remove("a/b")
    assert not store.has("a/b")


def test_a_server_that_is_away_is_waited_for_and_a_refusal_is_not(server, surroundings, tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "PAUSE", timedelta(seconds=0.1))
    url, left = f"s3://{BUCKET}/{tmp_path.name}", [6]

    def away(method, path):
        left[0] -= 1
        return "drop" if left[0] > 0 else None

    server.refuse = away
    assert open_store(url).write("a", b"1") and left[0] <= 0
    monkeypatch.setattr(stores, "PATIENCE", timedelta(seconds=0.3))
    open_store.cache_clear()
    server.refuse = lambda method, path: "deny" if method == "PUT" else None
    with pytest.raises(StoreError, match="ask for access"):
        open_store(url).write("b", b"1")
    server.refuse = lambda method, path: "drop"
    with pytest.raises(StoreError, match=r"s3://persres failed at .*; "):
        open_store(url).read("b")
    server.refuse = lambda method, path: None


def test_no_such_store_and_no_such_shard_are_one_error_each(tmp_path):
    with pytest.raises(PersresError, match="gs://x is no store"):
        open_store("gs://x")
    with pytest.raises(PersresError, match="holds no shard abc"):
        read_shard(str(tmp_path / "store"), "abc")


def test_two_writers_of_a_file_use_different_temporary_files(tmp_path):
    """Containers that share a folder have processes of equal numbers: as here, where both are this one."""
    path = tmp_path / "file"
    with written_whole(path) as first:
        first.write_bytes(b"first")
        with written_whole(path) as second:
            second.write_bytes(b"second")
        assert first.read_bytes() == b"first" and path.read_bytes() == b"second"
    assert path.read_bytes() == b"first" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["", "..", "../photos", "/absolute"])
def test_a_name_that_leads_elsewhere_empties_no_folder(tmp_path, monkeypatch, name):
    existing = [tmp_path / "work" / place / "existing" for place in (".", "photos", "photos/other")] + [
        tmp_path / "own" / "existing"
    ]
    for path in existing:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("existing")
    monkeypatch.setattr(on_demand, "personalize", None)  # it must not come so far
    name = str(tmp_path / "own") if name == "/absolute" else name
    photos, to = str(tmp_path / "photos"), str(tmp_path / "to")
    with pytest.raises(PersresError, match="is not usable: letters"):
        on_demand.personalize_from_store(Request(photos, to, name, "dog", profile="mini"), tmp_path / "work")
    assert all(path.exists() for path in existing)
