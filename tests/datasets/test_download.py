"""Downloads that are cut, changed or refused, and archives that must not be unpacked, against a server on this machine."""

from __future__ import annotations

import hashlib
import random

import pytest

from persres.datasets import download, unpack
from persres.errors import PersresError
from tests.support.local_server import zipped

BODY = bytes(range(256)) * 800


@pytest.fixture
def fetch(request, server, monkeypatch):
    """Either way to a file: ``fetch(target, ...)`` of the server's ``/a.zip``."""
    monkeypatch.setattr(download, "ENDPOINT", server.url)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return {
        "web": lambda target, *more: download.from_web(f"{server.url}/a.zip", target, *more),
        "hub": lambda target, *more: download.from_hub("someone/photos", "a.zip", target, *more),
    }[request.param]


both = pytest.mark.parametrize("fetch", ["web", "hub"], indirect=True)


def names(folder) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file() and ".cache" not in p.parts)


@both
def test_a_download_is_recorded_logged_and_not_repeated(server, fetch, tmp_path, logged):
    server.files["/a.zip"] = BODY
    target, digest = tmp_path / "new" / "a.zip", hashlib.sha256(BODY).hexdigest()
    assert fetch(target).read_bytes() == BODY
    requests = len(server.requests)
    assert fetch(target).read_bytes() == BODY and len(server.requests) == requests
    assert digest in logged.text
    assert (tmp_path / "new" / "a.zip.sha256").read_text() == f"{digest}  a.zip\n"
    assert names(tmp_path) == ["a.zip", "a.zip.sha256"]
    target.write_bytes(b"something else")
    with pytest.raises(PersresError, match="recorded by an earlier run"):
        fetch(target)


@pytest.mark.parametrize("fetch", ["hub"], indirect=True)
def test_an_interrupted_download_from_the_hub_resumes(server, fetch, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)  # what was received by then is kept
    server.files["/a.zip"], server.max_bytes = BODY, 120_000
    assert fetch(tmp_path / "a.zip").read_bytes() == BODY
    assert [ranged for path, ranged in server.requests if path == "/a.zip" and ranged != "HEAD"][1:] == [
        "bytes=120000-"
    ]


@pytest.mark.parametrize("fetch", ["web"], indirect=True)
def test_an_interrupted_download_from_elsewhere_is_one_error_and_leaves_nothing(server, fetch, tmp_path):
    server.files["/a.zip"], server.max_bytes = BODY, 30_000
    with pytest.raises(PersresError, match=r"cannot fetch http.*a\.zip \(the connection was cut\)"):
        fetch(tmp_path / "a.zip")
    assert names(tmp_path) == []


@both
def test_a_wrong_digest_leaves_nothing(server, fetch, tmp_path):
    server.files["/a.zip"] = BODY
    with pytest.raises(PersresError, match=r"the pinned one in fetch\.sha256 is 0{64}"):
        fetch(tmp_path / "a.zip", "0" * 64)
    assert names(tmp_path) == []
    assert fetch(tmp_path / "a.zip", hashlib.sha256(BODY).hexdigest()).exists()


@pytest.mark.parametrize("fetch", ["hub"], indirect=True)
def test_the_digest_that_the_hub_names_is_checked(server, fetch, tmp_path):
    server.files["/a.zip"], server.etag = BODY, "1" * 64
    with pytest.raises(PersresError, match=r"the server names is 1{64}"):
        fetch(tmp_path / "a.zip")
    assert names(tmp_path) == []


@both
def test_no_such_file_and_no_network(server, fetch, tmp_path, monkeypatch):
    with pytest.raises(PersresError, match=r"127\.0\.0\.1.*a\.zip.*404.*put it there yourself"):
        fetch(tmp_path / "a.zip", None, "put it there yourself")
    assert names(tmp_path) == []


def test_no_connection(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(PersresError, match=r"cannot fetch http://127\.0\.0\.1:9/a\.zip \(no connection\)"):
        download.from_web("http://127.0.0.1:9/a.zip", tmp_path / "a.zip")
    with pytest.raises(PersresError, match=r"cannot fetch http://127\.0\.0\.1:9/datasets.*a\.zip \(no connection\)"):
        download.from_hub("someone/photos", "a.zip", tmp_path / "a.zip")
    assert names(tmp_path) == []


@both
def test_a_full_disk_is_one_clear_error(server, fetch, tmp_path, monkeypatch):
    server.files["/a.zip"] = BODY

    def full(*arguments, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pooch.retrieve", full)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", full)
    with pytest.raises(PersresError, match=r"a\.zip: No space left on device; free some space"):
        fetch(tmp_path / "a.zip")


@pytest.mark.parametrize(
    "name", ["in/../../evil.txt", "/evil.txt", "in/..\\..\\evil.txt", "C:/evil.txt", "../evil.txt"]
)
def test_names_that_leave_the_folder_are_refused(tmp_path, name):
    archive = tmp_path / "a.zip"
    archive.write_bytes(zipped({"in/good.txt": b"x", name: b"evil"}))
    with pytest.raises(PersresError, match="leads out of its folder"):
        unpack.unpack(archive, tmp_path / "out" / "deep", "in/")
    assert not list(tmp_path.rglob("*.txt")) and not (tmp_path / "out" / "deep").exists()


@pytest.mark.parametrize("kind", ["link", "bomb", "cut", "no zip", "bad bytes", "another"])
def test_archives_that_are_not_unpacked(tmp_path, monkeypatch, kind):
    archive = tmp_path / "a.zip"
    noise = random.Random(0).randbytes(3000)
    whole = zipped({"in/a.txt": noise, "in/b.txt": b"/etc/passwd"}, "in/b.txt" if kind == "link" else None)
    archive.write_bytes(
        {"cut": whole[:-40], "no zip": b"<html>sorry</html>", "bad bytes": whole[:500] + b"\0\0\0\0" + whole[504:]}.get(
            kind, whole
        )
    )
    monkeypatch.setattr(unpack, "MOST_UNPACKED", 2000 if kind == "bomb" else 1 << 30)
    message = {"link": "is a link", "bomb": "far more than photos can", "another": "holds nothing below"}.get(
        kind, "not a whole ZIP"
    )
    with pytest.raises(PersresError, match=message):
        unpack.unpack(archive, tmp_path / "out", "elsewhere/" if kind == "another" else "in/")
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"], "nothing half-unpacked"
