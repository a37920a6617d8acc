"""Photos in, tensors out; and generated pictures packed in one ZIP per concept and method."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from persres.errors import PersresError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
SMALLEST = 16  # pixels, short side; below this there is nothing to learn from


def list_photos(folder: Path) -> list[Path]:
    """The photos of a folder by name. Raises PersresError where there is none."""
    if not folder.is_dir():
        raise PersresError(f"no folder {folder}; create it and put 3 to 15 photos of one thing in it")
    photos = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not photos:
        raise PersresError(f"no photos in {folder}; put 3 to 15 of one thing there ({', '.join(SUFFIXES)})")
    return photos


def load_photo(path: Path) -> Image.Image:
    """One photo as upright RGB: EXIF rotation applied, CMYK, palette, grey and 16-bit converted, transparency on white.

    Raises PersresError where the file is not a whole image or is too small.
    """
    try:
        with Image.open(path) as opened:
            opened.load()
            image = ImageOps.exif_transpose(opened)
    except FileNotFoundError as error:
        raise PersresError(f"no photo at {path}") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PersresError(f"{path} is not a readable image ({error}); replace or remove it") from error
    if min(image.size) < SMALLEST:
        raise PersresError(
            f"{path} is {image.width}×{image.height} pixels; the short side must have at least {SMALLEST}: replace or remove it"
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
    """Short side to ``resolution`` (bicubic), then the centre square."""
    return ImageOps.fit(image, (resolution, resolution), Image.Resampling.BICUBIC, centering=(0.5, 0.5))


def to_tensor(images: list[Image.Image]) -> torch.Tensor:
    """RGB images of one size -> float [n, 3, h, w] in [-1, 1]."""
    return torch.from_numpy(np.stack([np.asarray(i) for i in images])).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(tensor: torch.Tensor) -> list[Image.Image]:
    """Float [n, 3, h, w] in [-1, 1] -> RGB images."""
    pixels = ((tensor.float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(p) for p in pixels]


def png_bytes(image: Image.Image) -> bytes:
    """A PNG file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def zip_bytes(files: dict[str, bytes]) -> bytes:
    """A pack of files (PNGs: stored, not squeezed again); the same files give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as packed:
        for name in sorted(files):
            packed.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), files[name])
    return buffer.getvalue()


def unzip_bytes(path: Path, prefix: str = "") -> dict[str, bytes]:
    """The files of an image archive by name, those whose name starts with ``prefix``. Raises PersresError where it is damaged."""
    try:
        with zipfile.ZipFile(path) as packed:
            return {name: packed.read(name) for name in packed.namelist() if name.startswith(prefix)}
    except (OSError, zipfile.BadZipFile) as error:
        raise PersresError(f"{path} is not a whole image archive ({error}); delete it and sample again") from error


def unzip_images(path: Path, prefix: str = "") -> dict[str, Image.Image]:
    """The images of an archive by name, as RGB."""
    return {name: Image.open(io.BytesIO(data)).convert("RGB") for name, data in unzip_bytes(path, prefix).items()}
