"""Files that are no photos, photos that are no harmless files, and levels of every range."""

from __future__ import annotations

import io
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from persres.datasets.photos import find_photos
from persres.errors import PersresError
from persres.images import MOST_SCANS, check_photo, decode, decoded_photos, list_photos, load_photo

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
RAMP = np.linspace(0, 1, 40 * 60).reshape(40, 60)  # dark at the top


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def refused(path: Path, message: str) -> None:
    with pytest.raises(PersresError, match=message) as error:
        load_photo(path)
    assert path.name in str(error.value)


@pytest.fixture(autouse=True)
def nothing_decoded():
    decoded_photos.clear()


@pytest.fixture
def no_programs(monkeypatch):
    """Any program that is started is an error."""

    def start(*arguments, **named):
        raise AssertionError(f"started {arguments}")

    for name in ("subprocess.Popen", "subprocess.call", "subprocess.check_call", "os.system"):
        monkeypatch.setattr(name, start)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", "gs")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\nshowpage\n%%EOF\n"
OTHER_FORMATS = ["GIF", "ICO", "JPEG2000", "PPM", "TGA", "SGI", "PCX", "DDS", "PDF", "SPIDER", "AVIF"]


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.tif", "x.bmp"])
@pytest.mark.parametrize(
    "data",
    [EPS, b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 32, len(EPS)) + bytes(20) + EPS, b"8BPS\0\1" + bytes(40),
     b"SIMPLE  =                    T" + bytes(2850), b"\xd7\xcd\xc6\x9a" + bytes(60), b"\0\0\1\0\1\0" + bytes(40), b"P6 60 40 255\n" + bytes(7200)],
    ids=["EPS", "EPS of DOS", "PSD", "FITS", "WMF", "ICO", "PPM"],
)  # fmt: skip
def test_the_content_decides_and_no_program_is_started(tmp_path, no_programs, name, data):
    (tmp_path / name).write_bytes(data)
    refused(tmp_path / name, r"none of JPEG, PNG, TIFF, WEBP, BMP\); replace or remove it")


@pytest.mark.parametrize("kind", OTHER_FORMATS)
def test_whole_images_of_other_formats_are_refused(tmp_path, kind):
    (tmp_path / "x.png").write_bytes(saved(NOISE.convert("F") if kind == "SPIDER" else NOISE, kind))
    refused(tmp_path / "x.png", "none of JPEG")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "BMP"])
@pytest.mark.parametrize("name", ["x.jfif", "x.JPE", "x.png"])
def test_the_formats_are_read_by_any_of_their_names(tmp_path, kind, name):
    (tmp_path / name).write_bytes(saved(NOISE, kind))
    assert list_photos(tmp_path) == [tmp_path / name] and load_photo(tmp_path / name).size == (60, 40)


@pytest.mark.parametrize("kind", ["WEBP", "PNG", "TIFF", "MPO"])
def test_the_first_of_several_images_is_the_photo(tmp_path, kind):
    first = Image.fromarray((RAMP * 255).astype(np.uint8)).convert("RGB")
    (tmp_path / "x.jpg").write_bytes(saved(first, kind, save_all=True, append_images=[ImageOps.flip(first)] * 2))
    assert np.abs(np.asarray(load_photo(tmp_path / "x.jpg"), int) - np.asarray(first)).max() < 20


def jpeg_of(width: int, height: int, progressive: bool = False) -> bytes:
    data = bytearray(saved(NOISE, "JPEG", progressive=progressive))
    frame = data.index(b"\xff\xc2" if progressive else b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def png_of(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"x")) + chunk(b"IEND", b"")


def bmp_of(width: int, height: int) -> bytes:
    data = bytearray(saved(NOISE, "BMP"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


@pytest.mark.parametrize(("width", "height"), [(13_000, 13_000), (20_000, 10_000), (60_000, 60_000)])
@pytest.mark.parametrize("build", [jpeg_of, png_of, bmp_of])
def test_too_many_pixels_are_refused_in_megapixels_before_decoding(tmp_path, monkeypatch, build, width, height):
    (tmp_path / "x.jpg").write_bytes(build(width, height))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: pytest.fail("decoded"))
    megapixels = round(width * height / 1e6)
    refused(tmp_path / "x.jpg", rf"has {megapixels} megapixels; replace it by a copy of at most 120$")


@pytest.mark.parametrize("build", [jpeg_of, png_of, bmp_of])
def test_a_small_file_that_claims_many_pixels_is_refused_before_decoding(tmp_path, monkeypatch, build):
    (tmp_path / "x.jpg").write_bytes(build(1_600, 60_000))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: pytest.fail("decoded"))
    refused(tmp_path / "x.jpg", "bytes cannot hold a photo of 96 megapixels")


def test_a_jpeg_of_many_scans_is_refused_and_a_progressive_one_is_not(tmp_path):
    """Each scan of a few bytes costs a pass over the whole image."""
    data = saved(NOISE, "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    for more, accepted in ((1, True), (MOST_SCANS, False)):
        (tmp_path / "x.jpg").write_bytes(data[:-2] + last * more + b"\xff\xd9" + last * MOST_SCANS)
        assert load_photo(tmp_path / "x.jpg") if accepted else not refused(tmp_path / "x.jpg", "scans")


def test_what_is_no_file_neither_blocks_nor_is_read(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    for name, target in {"b.png": "/dev/zero", "c.png": "/nowhere/c.png", "d.png": "d.png", "e.png": "a.png"}.items():
        (tmp_path / name).symlink_to(target)
    (tmp_path / "f.png").mkdir()
    saved_to = tmp_path / "elsewhere" / "x.png"
    saved_to.parent.mkdir()
    NOISE.save(saved_to)
    (tmp_path / "g.png").symlink_to(saved_to)
    assert [p.name for p in list_photos(tmp_path)] == ["a.png", "b.png", "c.png", "d.png", "e.png", "g.png"]
    for name in ("a.png", "b.png", "e.png"):
        refused(tmp_path / name, r"is not a regular file\); replace or remove it")
    for name in ("c.png", "d.png"):
        refused(tmp_path / name, "is a link to .*, which is missing; put the photo there or remove the link")
    assert load_photo(tmp_path / "g.png").size == (60, 40), "links to photos elsewhere are usual"


ORIENTATION = (274, 3, 1, b"\6\0\0\0")
ILL_TYPED = {
    "resolution unit as BYTE": (296, 1, 1, b"\2\0\0\0"),
    "resolution unit as DOUBLE": (296, 12, 1, b"\0\0\0\0"),
    "resolution as text": (282, 2, 4, b"abc\0"),
    "software as a fraction": (305, 5, 1, b"\x08\0\0\0"),
    "artist as a number": (315, 3, 1, b"\1\0\0\0"),
    "EXIF folder as text": (34665, 2, 2, b"a\0\0\0"),
    "GPS folder as BYTE": (34853, 1, 1, b"\1\0\0\0"),
    "unknown type": (296, 99, 1, b"\2\0\0\0"),
    "beyond the end": (270, 2, 9_999_999, b"\xff\xff\xff\x7f"),
}


def exif_of(*tags: tuple[int, int, int, bytes]) -> bytes:
    entries = b"".join(struct.pack("<HHI", *tag[:3]) + tag[3] for tag in sorted(tags))
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("kind", ILL_TYPED)
@pytest.mark.parametrize("container", ["JPEG", "PNG", "WEBP"])
def test_one_ill_typed_tag_does_not_hide_the_orientation(tmp_path, kind, container):
    data = saved(NOISE, container, exif=exif_of(ORIENTATION, ILL_TYPED[kind]))
    (tmp_path / "x.jpg").write_bytes(data)
    assert load_photo(tmp_path / "x.jpg").size == (40, 60)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_equals_pillows(tmp_path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    for kind in ("JPEG", "PNG", "TIFF"):
        data = saved(NOISE, kind, exif=exif)
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        assert np.array_equal(np.asarray(decode(data, "x")), np.asarray(expected))


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", exif_of((274, 2, 2, b"6\0\0\0")), exif_of((274, 3, 1, b"\x63\0\0\0")), exif_of((274, 1, 1, b"\6\0\0\0")), b"Exif\0\0"]
)  # fmt: skip
def test_a_meaningless_orientation_leaves_the_photo_as_it_is(tmp_path, exif):
    (tmp_path / "x.jpg").write_bytes(saved(NOISE, "JPEG", exif=exif))
    assert load_photo(tmp_path / "x.jpg").size == (60, 40)


@pytest.mark.parametrize("error", [struct.error("x"), TypeError("x"), AttributeError("x"), MemoryError(), OverflowError("x"), KeyError("x"), RecursionError("x"), ZeroDivisionError("x")], ids=repr)  # fmt: skip
def test_whatever_a_decoder_raises_is_that_files_fault(tmp_path, monkeypatch, error):
    NOISE.save(tmp_path / "x.png")

    def load(image):
        raise error

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    refused(
        tmp_path / "x.png",
        f"is not a readable image .*{re.escape(str(error)) or 'MemoryError'}.*; replace or remove it",
    )


def raw_tiff(levels: np.ndarray, sample_format: int, compression: int = 1) -> bytes:
    """An uncompressed TIFF of grey levels, of kinds that Pillow does not write."""
    data, (height, width) = levels.tobytes(), levels.shape
    entries = {
        256: width, 257: height, 258: levels.itemsize * 8, 259: compression, 262: 1, 273: 8, 277: 1, 278: height, 279: len(data), 339: sample_format
    }  # fmt: skip
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(entries)) + tags + bytes(4)


LEVELS = {
    "float 0..1": (RAMP.astype(np.float32), 3),
    "float 0..255": ((RAMP * 255).astype(np.float32), 3),
    "float 0..65535": ((RAMP * 65535).astype(np.float32), 3),
    "linear light above 1": ((RAMP * 6).astype(np.float32), 3),
    "float -1..1": ((RAMP * 2 - 1).astype(np.float32), 3),
    "float to 3e38": ((RAMP * 3e38).astype(np.float32), 3),
    "8 bits in 16": ((RAMP * 255).astype(np.uint16), 1),
    "16 bits": ((RAMP * 65535).astype(np.uint16), 1),
    "16 bits in 32": ((RAMP * 65535).astype(np.uint32), 1),
    "20 bits in 32": ((RAMP * (1 << 20)).astype(np.uint32), 1),
    "32 bits": ((RAMP * (2**32 - 1)).astype(np.uint32), 1),
    "32 bits, signed": ((RAMP * (2**31 - 1)).astype(np.int32), 2),
    "around zero": ((RAMP * 1000 - 500).astype(np.int32), 2),
}


@pytest.mark.parametrize("kind", LEVELS)
def test_levels_of_every_range_become_the_same_picture(tmp_path, kind):
    levels, sample_format = LEVELS[kind]
    (tmp_path / "x.tif").write_bytes(raw_tiff(levels, sample_format))
    grey = np.asarray(load_photo(tmp_path / "x.tif"))[..., 0].astype(int)
    assert np.abs(grey - RAMP * 255).max() < 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_levels_that_are_no_numbers_are_refused(tmp_path, value):
    levels = RAMP.astype(np.float32)
    levels[5, 5] = value
    (tmp_path / "x.tif").write_bytes(raw_tiff(levels, 3))
    refused(tmp_path / "x.tif", "not finite numbers")


@pytest.mark.parametrize("image", [
    Image.new("RGB", (40, 40), "red"), Image.new("L", (40, 40), 255), Image.new("RGBA", (40, 40)), Image.fromarray(np.full((40, 40), 0.5, np.float32)),
    Image.fromarray(np.full((40, 40), -3, np.int32)), Image.new("1", (40, 40)), Image.new("CMYK", (40, 40), "blue"),
], ids=lambda image: image.mode)  # fmt: skip
def test_a_photo_of_one_colour_is_refused(tmp_path, image):
    image.save(tmp_path / "x.tif")
    with pytest.raises(PersresError, match=r"x\.tif has one colour all over; replace or remove it"):
        check_photo(tmp_path / "x.tif")
    NOISE.save(tmp_path / "y.png")
    check_photo(tmp_path / "y.png")


def test_a_transparent_photo_is_composed_as_a_whole(tmp_path):
    """In strips, with the bytes that the whole image at once has."""
    pixels = np.random.default_rng(1).integers(0, 256, (600, 20, 4), dtype=np.uint8)
    image = Image.fromarray(pixels, "RGBA")
    image.save(tmp_path / "x.png")
    whole = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    assert np.array_equal(np.asarray(load_photo(tmp_path / "x.png")), np.asarray(whole))


@pytest.mark.parametrize("name", ["\x1b]0;title\x07.png", "\x1b[31mred.jpg", "a\nb.png", "\u202egnp.png", "\udcff.png", "-rf.png", "$(id).png", "é ü.png", "x" * 250 + ".png"])  # fmt: skip
def test_any_file_name_is_read_and_an_error_about_it_is_one_line(tmp_path, name, capsys):
    from persres.cli.main import _fail

    path = tmp_path / name
    path.write_bytes(saved(NOISE, "PNG"))
    assert find_photos(tmp_path) == [path] and load_photo(path).size == (60, 40)
    path.write_bytes(b"no image")
    with pytest.raises(PersresError, match="not a readable image") as error:
        load_photo(path)
    _fail(str(error.value), 1)
    assert capsys.readouterr().err.strip().replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "place_of", [os.mkfifo, Path.touch, lambda path: path.symlink_to("/nowhere"), lambda path: path.symlink_to(path)]
)
def test_photos_in_what_is_no_folder(tmp_path, place_of):
    place_of(tmp_path / "x")
    for read in (list_photos, find_photos):
        with pytest.raises(PersresError, match="x is not a folder; name the folder"):
            read(tmp_path / "x")


def test_system_files_and_folders_named_like_photos_are_left_out(tmp_path, logged):
    NOISE.save(tmp_path / "a.png")
    for name in ("._a.png", ".hidden.jpg"):
        (tmp_path / name).write_bytes(b"x")
    for name in ("album.jpg", "@eaDir", ".ipynb_checkpoints", "__MACOSX", "lost+found"):
        (tmp_path / name).mkdir()
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert [p.name for p in find_photos(tmp_path)] == ["a.png"]
    assert "left out album.jpg, notes.txt" in logged.text and "Thumbs" not in logged.text
