"""Downloads that are cut, changed or refused, and archives that must not be unpacked, against a server on this machine."""

from __future__ import annotations

import hashlib
import random

import pytest
from local_server import zipped

from persres.datasets import download
from persres.errors import PersresError

BODY = bytes(range(256)) * 800


def test_a_download_is_recorded_printed_and_not_repeated(server, tmp_path, logged):
    server.files["/a.zip"] = BODY
    target, digest = tmp_path / "new" / "a.zip", hashlib.sha256(BODY).hexdigest()
    for _ in range(2):
        assert download.download(f"{server.url}/a.zip", target).read_bytes() == BODY
    assert len(server.asked) == 1
    assert digest in logged.text
    assert (tmp_path / "new" / "a.zip.sha256").read_text() == f"{digest}  a.zip\n"
    assert sorted(p.name for p in target.parent.iterdir()) == ["a.zip", "a.zip.sha256"]
    target.write_bytes(b"something else")
    with pytest.raises(PersresError, match="recorded by an earlier run"):
        download.download(f"{server.url}/a.zip", target)


def test_a_cut_download_goes_on_where_it_stopped(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "CHUNK", 10_000)
    server.files["/a.zip"], server.cut = BODY, 30_000
    with pytest.raises(PersresError, match=r"connection was cut.*90,000 bytes are kept"):
        download.download(f"{server.url}/a.zip", tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()
    assert (tmp_path / "a.zip.partial").read_bytes() == BODY[:90_000], (
        "three attempts of 30,000 bytes, one after another"
    )
    server.cut = 0
    assert download.download(f"{server.url}/a.zip", tmp_path / "a.zip").read_bytes() == BODY
    assert [asked for _, asked in server.asked] == [None, "bytes=30000-", "bytes=60000-", "bytes=90000-"]


@pytest.mark.parametrize("kind", ["no ranges", "another version", "longer than the file", "whole already"])
def test_a_part_that_can_not_be_gone_on_with(server, tmp_path, kind):
    server.files["/a.zip"] = BODY
    partial = tmp_path / "a.zip.partial"
    partial.write_bytes({"longer than the file": BODY + b"more", "whole already": BODY}.get(kind, b"old" * 1000))
    if kind == "another version":
        (tmp_path / "a.zip.partial.etag").write_text('"of-before"')
    server.ranges = kind != "no ranges"
    assert download.download(f"{server.url}/a.zip", tmp_path / "a.zip").read_bytes() == BODY
    assert not partial.exists()


def test_a_wrong_digest_leaves_nothing(server, tmp_path):
    server.files["/a.zip"] = BODY
    with pytest.raises(PersresError, match=r"the pinned one in fetch\.sha256 is 0{64}"):
        download.download(f"{server.url}/a.zip", tmp_path / "a.zip", "0" * 64)
    assert not list(tmp_path.iterdir())
    server.named = "1" * 64
    with pytest.raises(PersresError, match=r"the server names is 1{64}"):
        download.download(f"{server.url}/resolve", tmp_path / "a.zip")
    assert not list(tmp_path.iterdir())
    server.named = ""
    assert download.download(f"{server.url}/resolve", tmp_path / "a.zip").exists()


def test_no_such_file_no_network_and_no_space(server, tmp_path, monkeypatch):
    with pytest.raises(PersresError, match=r"127\.0\.0\.1.*gone\.zip.*404 Not Found.*put it there yourself"):
        download.download(f"{server.url}/gone.zip", tmp_path / "a.zip", mend="put it there yourself")
    assert len(server.asked) == 1, "what is not there is not asked for again"
    with pytest.raises(PersresError, match="no connection"):
        download.download("http://127.0.0.1:9/a.zip", tmp_path / "a.zip")
    server.files["/a.zip"] = BODY
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(PersresError, match=r"needs 0\.00 GB.*free some space"):
        download.download(f"{server.url}/a.zip", tmp_path / "a.zip")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_while_writing_is_one_clear_error(server, tmp_path, monkeypatch):
    server.files["/a.zip"] = BODY

    def full(answer, partial, have):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download, "_write", full)
    with pytest.raises(PersresError, match=r"a\.zip\.partial: No space left on device; free some space"):
        download.download(f"{server.url}/a.zip", tmp_path / "a.zip")


@pytest.mark.parametrize(
    "name", ["in/../../evil.txt", "/evil.txt", "in/..\\..\\evil.txt", "C:/evil.txt", "../evil.txt"]
)
def test_names_that_leave_the_folder_are_refused(tmp_path, name):
    archive = tmp_path / "a.zip"
    archive.write_bytes(zipped({"in/good.txt": b"x", name: b"evil"}))
    with pytest.raises(PersresError, match="leads out of the folder"):
        download.unpack(archive, tmp_path / "out" / "deep", "in/")
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
    monkeypatch.setattr(download, "MOST_UNPACKED", 2000 if kind == "bomb" else 1 << 30)
    message = {"link": "is a link", "bomb": "far more than photos can", "another": "holds nothing below"}.get(
        kind, "not a whole ZIP"
    )
    with pytest.raises(PersresError, match=message):
        download.unpack(archive, tmp_path / "out", "elsewhere/" if kind == "another" else "in/")
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"], "nothing half-unpacked"
