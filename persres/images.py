"""Photos, tensors, PNG files, and image archives: the generated images of a unit in one ZIP."""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from persres.errors import PersresError
from persres.untrusted.archives import check_distinct, entry_path, open_zip, read_entry
from persres.untrusted.documents import read_file
from persres.untrusted.names import is_system_name
from persres.untrusted.text import printable

if TYPE_CHECKING:  # photos are checked in a moment, and torch takes seconds to import
    import torch

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".webp", ".bmp", ".tif", ".tiff")
FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP")  # by content. Of Pillow's other decoders, EPS would start a program.
SMALLEST = 16  # pixels, short side; smaller images have nothing to train on
MOST_PIXELS = 120_000_000  # a camera's largest; one takes a gigabyte of memory while it is decoded
CHEAP_PIXELS, MOST_PIXELS_PER_BYTE = 16_000_000, 1000  # a flat drawing has a few hundred pixels per byte
MOST_SCANS, MOST_SEGMENTS = 64, 10_000  # of a JPEG; a progressive one has about ten scans
MOST_PHOTO_BYTES = 1 << 30
CACHED_PIXELS = 170_000_000  # of decoded photos: 512 MB, fourteen of a phone's
ROWS = 256  # converted at a time
SAMPLE_FORMAT = 339  # TIFF's tag: 2 for signed levels
ARCHIVE_FIX = "delete it and sample again"
decoded_photos: OrderedDict[bytes, Image.Image] = OrderedDict()  # by the digest of the file, least recently used first
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # of a JPEG's segment
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF's orientation


def list_photos(folder: Path) -> list[Path]:
    """Returns the photos of a folder, sorted by name. Raises PersresError where there is none."""
    if os.path.lexists(folder) and not folder.is_dir():
        raise PersresError(f"{folder} is not a folder; name the folder that holds the photos")
    if not folder.is_dir():
        raise PersresError(f"no folder {folder}; create it and put 3 to 15 photos of one subject in it")
    photos = sorted(path for path in folder.iterdir() if _is_photo(path))
    if not photos:
        raise PersresError(f"no photos in {folder}; put 3 to 15 of one subject there ({', '.join(SUFFIXES)})")
    return photos


def _is_photo(path: Path) -> bool:
    """By its name; what is no file, such as a dead link or a pipe, is an error when it is read."""
    return path.suffix.lower() in SUFFIXES and not is_system_name(path.name) and not path.is_dir()


def load_photo(path: Path) -> Image.Image:
    """Returns a photo as upright RGB: EXIF rotation applied, CMYK, palette, grey and 16-bit converted, transparency on white.

    Photos stay in memory by the digest of their file, so a copy is not decoded again. Do not modify the image. Raises PersresError where the
    file is not a whole image of one of the :data:`FORMATS`, has more than :data:`MOST_PIXELS`, or is too small.
    """
    if not os.path.exists(path):
        raise _missing(path)
    data = read_file(path, MOST_PHOTO_BYTES)
    key = hashlib.sha256(data).digest()
    image = decoded_photos.pop(key, None) or _large_enough(decode(data, path), path)
    decoded_photos[key] = image
    while len(decoded_photos) > 1 and sum(i.width * i.height for i in list(decoded_photos.values())) > CACHED_PIXELS:
        decoded_photos.popitem(last=False)
    return image


def _missing(path: Path) -> PersresError:
    if os.path.islink(path):
        return PersresError(
            f"{path} is a link to {os.readlink(path)}, which is missing; put the photo there or remove the link"
        )
    return PersresError(f"no photo at {path}; put it back or run fetch again")


def check_photo(path: Path) -> None:
    """Raises PersresError where :func:`load_photo` does, and for a photo of one colour, which has nothing to learn."""
    if all(low == high for low, high in load_photo(path).getextrema()):
        raise PersresError(f"{path} has one colour all over; replace or remove it")


def _large_enough(image: Image.Image, path: Path) -> Image.Image:
    if min(image.size) < SMALLEST:
        raise PersresError(
            f"{path} is {image.width}×{image.height} pixels; the short side must have at least {SMALLEST}; replace or remove it"
        )
    return image


def decode(
    data: bytes, name: object, formats: tuple[str, ...] = FORMATS, fix: str = "replace or remove it"
) -> Image.Image:
    """Returns the bytes of an image file as upright RGB. Raises PersresError, which calls it ``name``, for whatever a decoder raises."""
    pixels, reason = 0, ""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), "r", formats) as opened:
            pixels = opened.width * opened.height
            if pixels <= MOST_PIXELS:
                _check_cost(data, pixels)
                opened.load()
                image, turn = _to_rgb(opened), _orientation(opened)
                opened.close()  # frees its pixels
                return image if turn is None else image.transpose(turn)
    except UnidentifiedImageError:
        reason = f"its content is none of {', '.join(formats)}"
    except Image.DecompressionBombError as error:  # raised before the size can be read; it names the pixels first
        pixels = int(next(iter(re.findall(r"\d+", str(error))), 2 * MOST_PIXELS))
    except Exception as error:  # struct.error, TypeError, AttributeError, OverflowError …: the file's fault
        reason = printable(error) or type(error).__name__
    if reason:
        raise PersresError(f"{name} is not a readable image ({reason}); {fix}")
    raise PersresError(
        f"{name} has {pixels / 1e6:.0f} megapixels; replace it by a copy of at most {MOST_PIXELS / 1e6:.0f}"
    )


def _check_cost(data: bytes, pixels: int) -> None:
    """Raises ValueError for a small file that would take a gigabyte or minutes: a JPEG's scan of a few bytes costs a pass over all pixels."""
    if pixels > max(CHEAP_PIXELS, MOST_PIXELS_PER_BYTE * len(data)):
        raise ValueError(f"{len(data)} bytes cannot hold a photo of {pixels / 1e6:.0f} megapixels")
    scans = segments = 0
    marker = _MARKER.search(data, 2) if data.startswith(b"\xff\xd8") else None
    while marker and marker[0] != b"\xff\xd9":
        scans, segments = scans + (marker[0] == b"\xff\xda"), segments + 1
        if scans > MOST_SCANS or segments > MOST_SEGMENTS:
            raise ValueError(f"a JPEG of more than {MOST_SCANS} scans or {MOST_SEGMENTS} segments")
        marker = _MARKER.search(data, marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big"))


def _orientation(opened: Image.Image) -> Image.Transpose | None:
    """The turn that EXIF asks for. exif_transpose would write the whole EXIF block again and fail on any ill-typed tag."""
    try:
        value = opened.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # as viewers do, leave a photo whose EXIF is damaged as it is
        return None
    return _TURNS.get(value) if isinstance(value, int) else None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(_levels(image))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _on_white(image)
    return image.convert("RGB")


def _levels(image: Image.Image) -> np.ndarray:
    """Grey levels of more than 8 bits. Pillow reads a TIFF's unsigned 32 bits as signed."""
    levels = np.asarray(image)
    signed = 2 in np.atleast_1d(getattr(image, "tag_v2", {}).get(SAMPLE_FORMAT, 1))
    return levels.view(np.uint32) if levels.dtype == np.int32 and image.format == "TIFF" and not signed else levels


def _eight_bits(levels: np.ndarray) -> np.ndarray:
    low, high = float(levels.min()), float(levels.max())  # NaN where one level is
    if not math.isfinite(high - low):
        raise ValueError("it has pixels that are not finite numbers")
    if low >= 0:
        low, high = 0.0, _white(high, levels.dtype.kind == "f")
    result = np.empty(levels.shape, np.uint8)
    for start in range(0, len(levels), ROWS):
        rows = levels[start : start + ROWS].astype(np.float64)
        result[start : start + ROWS] = ((rows - low) / ((high - low) or 1) * 255).clip(0, 255)
    return result


def _white(high: float, floating: bool) -> float:
    """The level that is white: floats are in 0..1, or linear light a little above; else levels have 8, 16 or more bits."""
    if floating and high < 128:
        return max(high, 1.0)
    return next((white for white in (255.0, 65535.0) if high <= white), high)


def _on_white(image: Image.Image) -> Image.Image:
    """A transparent image on white, in strips: whole, it would take four times the memory."""
    result = Image.new("RGB", image.size)
    for top in range(0, image.height, ROWS):
        strip = image.crop((0, top, image.width, min(top + ROWS, image.height))).convert("RGBA")
        white = Image.new("RGBA", strip.size, "white")
        result.paste(Image.alpha_composite(white, strip).convert("RGB"), (0, top))
    return result


def square(image: Image.Image, resolution: int) -> Image.Image:
    """Returns the centre square, with the short side resized to ``resolution`` (bicubic)."""
    return ImageOps.fit(image, (resolution, resolution), Image.Resampling.BICUBIC, centering=(0.5, 0.5))


def to_tensor(images: list[Image.Image]) -> torch.Tensor:
    """Returns RGB images of one size as float [n, 3, h, w] in [-1, 1]."""
    import torch

    return torch.from_numpy(np.stack([np.asarray(i) for i in images])).permute(0, 3, 1, 2).float() / 127.5 - 1


def check_finite(pixels: torch.Tensor) -> None:
    """Raises PersresError for NaN and infinity, which a PNG would hold as black and white."""
    if not bool(pixels.isfinite().all()):
        raise PersresError(
            "sampling gave NaN or infinity: the model's numbers overflow; use dtype float32 or bfloat16, or a smaller cfg_scale or strength"
        )


def to_images(tensor: torch.Tensor) -> list[Image.Image]:
    """Returns float [n, 3, h, w] in [-1, 1] as RGB images. Raises PersresError for NaN and infinity."""
    check_finite(tensor)
    pixels = ((tensor.float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(p) for p in pixels]


def png_bytes(image: Image.Image) -> bytes:
    """Returns the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def zip_bytes(files: dict[str, bytes]) -> bytes:
    """Returns an image archive: files stored without compression. The same files give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), files[name])
    return buffer.getvalue()


def unzip_bytes(path: Path, prefix: str = "") -> dict[str, bytes]:
    """Returns the files of an image archive whose name starts with ``prefix``. Raises PersresError where it is damaged."""
    try:
        with open_zip(path, "image archive", ARCHIVE_FIX) as archive:
            entries = archive_entries(path, archive)
            return {name: read_entry(archive, info) for name, info in entries.items() if name.startswith(prefix)}
    except OSError as error:
        raise PersresError(f"{path} is not a whole image archive ({error}); {ARCHIVE_FIX}") from error


def archive_entries(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Returns the entries of an open image archive by name. Raises PersresError for names and sizes that none of ours has."""
    entries = [(entry_path(path, info), info) for info in archive.infolist() if not info.is_dir()]
    check_distinct(path, [name for name, _ in entries])
    if sum(info.file_size for _, info in entries) > 2 * path.stat().st_size:  # they are stored without compression
        raise PersresError(f"{path} would unpack to far more than its size; {ARCHIVE_FIX}")
    return dict(entries)


def unzip_images(path: Path, prefix: str = "") -> dict[str, Image.Image]:
    """Returns the images of an archive by name, as RGB. Raises PersresError where one is damaged."""
    return {name: archive_image(path, name, data) for name, data in unzip_bytes(path, prefix).items()}


def archive_image(path: Path, name: str, data: bytes) -> Image.Image:
    """Returns an image of an archive as RGB. Raises PersresError naming both."""
    return decode(data, f"{path}: {name}", ("PNG",), ARCHIVE_FIX)
