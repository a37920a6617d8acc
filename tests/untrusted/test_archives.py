"""ZIP files from outside: nothing is written or read that an entry's name, kind or size would lead astray."""

from __future__ import annotations

import io
import os
import stat
import struct
import warnings
import zipfile

import numpy as np
import pytest
from PIL import Image

from persres.datasets.unpack import unpack
from persres.errors import PersresError
from persres.images import png_bytes, unzip_bytes, unzip_images, zip_bytes
from persres.untrusted import archives


def packed(entries: list[tuple[str | zipfile.ZipInfo, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    """A ZIP's bytes, with entries as they are given."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of duplicates
        for entry, content in entries:
            archive.writestr(entry, content, method)
    return buffer.getvalue()


def of_kind(name: str, kind: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (kind | 0o644) << 16
    return info


def patched(data: bytes, local: int, central: int, value: bytes) -> bytes:
    """The first entry's headers with ``value`` at these offsets: what zipfile itself would never write."""
    data, start = bytearray(data), data.index(b"PK\1\2")
    data[local : local + len(value)] = value
    data[start + central : start + central + len(value)] = value
    return bytes(data)


GOOD = ("in/good.txt", b"good")
HOSTILE = {
    "absolute below the prefix": ([("in//tmp/evil.txt", b"")], "leads out"),
    "absolute twice": ([("in///tmp/evil.txt", b"")], "leads out"),
    "up below the prefix": ([("in/a/../../evil.txt", b"")], "leads out"),
    "drive below the prefix": ([("in/a/C:evil.txt", b"")], "leads out"),
    "dot": ([("in/./evil.txt", b"")], "leads out"),
    "control character": ([("in/\x1b[31mevil.txt", b"")], "leads out"),
    "too long": ([("in/" + "x" * 300, b"")], "leads out"),
    "elsewhere in the archive": ([("other//tmp/evil.txt", b"")], "leads out"),
    "twice": ([("in/a.txt", b"1"), ("in/a.txt", b"2")], "are one file"),
    "case": ([("in/a.txt", b"1"), ("in/A.TXT", b"2")], "are one file"),
    "trailing dot": ([("in/a.txt", b"1"), ("in/a.txt.", b"2")], "are one file"),
    "trailing blank in a folder": ([("in/b/a.txt", b"1"), ("in/b /a.txt", b"2")], "are one file"),
    "two Unicode forms": ([("in/\u00e9", b"1"), ("in/e\u0301", b"2")], "are one file"),
    "two licences": ([("LICENSE", b"1"), ("LICENSE", b"2")], "are one file"),
    "file and folder": ([("in/a", b"1"), ("in/a/b", b"2")], "both a file and the folder"),
    "folder and file": ([("in/a/b/c", b"1"), ("in/A", b"2")], "both a file and the folder"),
    "symbolic link": ([(of_kind("in/a", stat.S_IFLNK), b"/etc/passwd")], "link or a device"),
    "device": ([(of_kind("in/a", stat.S_IFCHR), b"")], "link or a device"),
    "pipe": ([(of_kind("in/a", stat.S_IFIFO), b"")], "link or a device"),
    "folder without a slash": ([(of_kind("in/a", stat.S_IFDIR), b"")], "link or a device"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_entry_leaves_nothing(tmp_path, kind):
    entries, message = HOSTILE[kind]
    archive = tmp_path / "a.zip"
    archive.write_bytes(packed([GOOD, *entries]))
    with pytest.raises(PersresError, match=message) as error:
        unpack(archive, tmp_path / "out" / "deep", "in/", ("LICENSE",))
    assert not (tmp_path / "out" / "deep").exists()
    assert str(error.value).isprintable() and not [p for p in tmp_path.rglob("*") if "evil" in p.name]


def test_the_observed_entry_does_not_reach_its_absolute_path(tmp_path):
    """A prefix removed from ``benchmark_dataset//abs/path`` leaves ``/abs/path``."""
    victim, archive = tmp_path / "victim.txt", tmp_path / "a.zip"
    archive.write_bytes(packed([GOOD, (f"in/{victim}", b"evil")]))
    with pytest.raises(PersresError, match="leads out"):
        unpack(archive, tmp_path / "out", "in/")
    assert not victim.exists() and not (tmp_path / "out").exists()


WHOLE = packed([("in/a.txt", b"0123456789" * 50)])
DEFLATED = packed([("in/a.txt", b"0123456789" * 50)], zipfile.ZIP_DEFLATED)
DAMAGED = {
    "encrypted": (patched(WHOLE, 6, 8, b"\1\0"), "is encrypted"),
    "larger size than there is": (patched(DEFLATED, 22, 24, struct.pack("<I", 900)), "declares 900"),
    "smaller size than there is": (patched(DEFLATED, 22, 24, struct.pack("<I", 90)), "not a whole ZIP"),
    "LZMA": (packed([("in/a.txt", b"x")], zipfile.ZIP_LZMA), "neither stored nor deflated"),
    "bzip2": (packed([("in/a.txt", b"x")], zipfile.ZIP_BZIP2), "neither stored nor deflated"),
    "unknown compression": (patched(WHOLE, 8, 10, b"\x63\0"), "neither stored nor deflated"),
    "another name in its header": (WHOLE.replace(b"in/a.txt", b"in/b.txt", 1), "not a whole ZIP"),
    "name that is no UTF-8": (
        patched(patched(WHOLE, 6, 8, b"\0\x08"), 30, 46, b"in/\xff\xff"),
        "not a whole ZIP",
    ),
    "offset beyond the file": (patched(WHOLE, 30, 42, b"\xff\xff\xff\x7f"), "not a whole ZIP"),
    "empty": (b"", "not a whole ZIP"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_archive_is_one_clear_error(tmp_path, kind):
    data, message = DAMAGED[kind]
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(PersresError, match=message):
        unpack(tmp_path / "a.zip", tmp_path / "out", "in/")
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]
    with pytest.raises(PersresError):
        unzip_bytes(tmp_path / "a.zip")


def test_a_pipe_or_folder_in_an_archives_place_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "a.zip")
    (tmp_path / "b.zip").mkdir()
    for name in ("a.zip", "b.zip", "c.zip"):
        for read in (unzip_bytes, lambda path: unpack(path, tmp_path / "out", "in/")):
            with pytest.raises(PersresError, match=rf"{name} is not a file"):
                read(tmp_path / name)


def test_too_many_entries_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MOST_ENTRIES", 3)
    (tmp_path / "a.zip").write_bytes(packed([(f"in/{i}", b"") for i in range(4)]))
    with pytest.raises(PersresError, match="more than 3 entries"):
        unpack(tmp_path / "a.zip", tmp_path / "out", "in/")


def test_what_systems_add_is_left_out_and_plain_names_are_unpacked(tmp_path):
    names = ["in/ünï çode/a photo.JPG", "in/x/..a", "in/x/a..b", "in/.hidden"]
    extra = ["__MACOSX/in/._Icon\r", "in/x/Icon\r", "in/x/Thumbs.db", "in/@eaDir/a.jpg"]
    (tmp_path / "a.zip").write_bytes(packed([(name, b"x") for name in names + extra]))
    unpack(tmp_path / "a.zip", tmp_path / "out", "in/")
    assert sorted(f"in/{p.relative_to(tmp_path / 'out')}" for p in (tmp_path / "out").rglob("*") if p.is_file()) == sorted(names)  # fmt: skip


def test_a_licence_below_the_prefix_is_not_replaced_by_the_archives(tmp_path):
    (tmp_path / "a.zip").write_bytes(packed([("LICENSE", b"outer"), ("in/License", b"inner"), ("NOTICE", b"outer")]))
    unpack(tmp_path / "a.zip", tmp_path / "out", "in/", ("LICENSE", "NOTICE"))
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == {"License": b"inner", "NOTICE": b"outer"}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([("/tmp/evil.png", b"")], "leads out"),
        ([("../evil.png", b"")], "leads out"),
        ([("a.png", b"1"), ("a.png", b"2")], "are one file"),
        ([(of_kind("a.png", stat.S_IFLNK), b"/etc/passwd")], "link or a device"),
    ],
)
def test_an_image_archives_names_are_checked(tmp_path, entries, message):
    (tmp_path / "a.zip").write_bytes(packed(entries))
    with pytest.raises(PersresError, match=message):
        unzip_bytes(tmp_path / "a.zip")


def test_an_image_archive_does_not_grow(tmp_path):
    (tmp_path / "a.zip").write_bytes(packed([("a.png", bytes(1 << 20))], zipfile.ZIP_DEFLATED))
    with pytest.raises(PersresError, match="far more than its size"):
        unzip_bytes(tmp_path / "a.zip")


@pytest.mark.parametrize("content", [b"", b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\n", "cut", "JPEG"])
def test_an_archives_image_that_is_none_names_both(tmp_path, content):
    image, buffer = Image.fromarray(np.arange(2700, dtype=np.uint8).reshape(30, 30, 3)), io.BytesIO()
    image.save(buffer, "JPEG")
    content = {"cut": png_bytes(image)[:100], "JPEG": buffer.getvalue()}.get(content, content)
    (tmp_path / "a.zip").write_bytes(zip_bytes({"0.png": png_bytes(image), "1.png": content}))
    with pytest.raises(PersresError, match=r"a\.zip: 1\.png is not a readable image.*sample again"):
        unzip_images(tmp_path / "a.zip")
