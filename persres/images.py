"""Photos, tensors, PNG files, and image archives: the generated images of a unit in one ZIP."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from persres.errors import PersresError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
SMALLEST = 16  # pixels, short side; smaller images have nothing to train on
CACHED_PIXELS = 170_000_000  # of decoded photos: 512 MB, fourteen of a phone's
decoded_photos: OrderedDict[bytes, Image.Image] = OrderedDict()  # by the digest of the file, least recently used first


def list_photos(folder: Path) -> list[Path]:
    """Returns the photos of a folder, sorted by name. Raises PersresError where there is none."""
    if not folder.is_dir():
        raise PersresError(f"no folder {folder}; create it and put 3 to 15 photos of one subject in it")
    photos = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not photos:
        raise PersresError(f"no photos in {folder}; put 3 to 15 of one subject there ({', '.join(SUFFIXES)})")
    return photos


def load_photo(path: Path) -> Image.Image:
    """Returns a photo as upright RGB: EXIF rotation applied, CMYK, palette, grey and 16-bit converted, transparency on white.

    Photos stay in memory by the digest of their file, so a copy is not decoded again. Do not modify the image. Raises PersresError where the
    file is not a whole image or is too small.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise PersresError(f"no photo at {path}; put it back or run fetch again") from error
    except OSError as error:
        raise PersresError(f"{path} is not readable ({error}); replace or remove it") from error
    key = hashlib.sha256(data).digest()
    image = decoded_photos.pop(key, None) or _decode(path, data)
    decoded_photos[key] = image
    while len(decoded_photos) > 1 and sum(i.width * i.height for i in list(decoded_photos.values())) > CACHED_PIXELS:
        decoded_photos.popitem(last=False)
    return image


def _decode(path: Path, data: bytes) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data)) as opened:
            opened.load()
            image = ImageOps.exif_transpose(opened)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else error
        raise PersresError(f"{path} is not a readable image ({reason}); replace or remove it") from error
    if min(image.size) < SMALLEST:
        raise PersresError(
            f"{path} is {image.width}×{image.height} pixels; the short side must have at least {SMALLEST}; replace or remove it"
        )
    return _to_rgb(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        levels = np.asarray(image, dtype=np.float64)
        top = 65535.0 if levels.max() > 255 else 255.0
        return Image.fromarray((levels / top * 255).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def square(image: Image.Image, resolution: int) -> Image.Image:
    """Returns the centre square, with the short side resized to ``resolution`` (bicubic)."""
    return ImageOps.fit(image, (resolution, resolution), Image.Resampling.BICUBIC, centering=(0.5, 0.5))


def to_tensor(images: list[Image.Image]) -> torch.Tensor:
    """Returns RGB images of one size as float [n, 3, h, w] in [-1, 1]."""
    return torch.from_numpy(np.stack([np.asarray(i) for i in images])).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(tensor: torch.Tensor) -> list[Image.Image]:
    """Returns float [n, 3, h, w] in [-1, 1] as RGB images."""
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
        with zipfile.ZipFile(path) as archive:
            return {name: archive.read(name) for name in archive.namelist() if name.startswith(prefix)}
    except (OSError, zipfile.BadZipFile) as error:
        raise PersresError(f"{path} is not a whole image archive ({error}); delete it and sample again") from error


def unzip_images(path: Path, prefix: str = "") -> dict[str, Image.Image]:
    """Returns the images of an archive by name, as RGB."""
    return {name: Image.open(io.BytesIO(data)).convert("RGB") for name, data in unzip_bytes(path, prefix).items()}
