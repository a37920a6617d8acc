"""Copy photos into a concept's folder: each is opened first, and skipped files are logged."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from persres.datasets.layout import Concept, write_concept
from persres.errors import PersresError
from persres.images import SUFFIXES, list_photos, load_photo

log = logging.getLogger(__name__)
UNSUPPORTED = (".heic", ".heif", ".avif", ".dng", ".raw", ".cr2", ".nef", ".arw")  # Pillow alone cannot read them
_NO_PHOTO = ("concept.json",)


def find_photos(folder: Path) -> list[Path]:
    """The photos of a folder, sorted by name; logs skipped files.

    Raises PersresError where there is none, or none in a format that Pillow reads.
    """
    others = _others(folder)
    unsupported = [name for name in others if name.lower().endswith(UNSUPPORTED)]
    if unsupported and not _any_photo(folder):
        raise PersresError(f"{folder}: {', '.join(unsupported)} are in an unsupported format; save them as JPEG")
    photos = list_photos(folder)
    if others:
        hint = "; save HEIC and raw photos as JPEG to use them" if unsupported else ""
        log.info("fetch: %s: left out %s%s", folder, ", ".join(others), hint)
    return photos


def _any_photo(folder: Path) -> bool:
    return any(path.suffix.lower() in SUFFIXES for path in folder.iterdir() if not path.name.startswith("."))


def _others(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    names = (p.name for p in folder.iterdir() if p.is_file() and p.suffix.lower() not in SUFFIXES)
    return sorted(name for name in names if not name.startswith(".") and name not in _NO_PHOTO)


def copy_concept(photos: list[Path], concept: Concept, root: Path) -> None:
    """Write a concept with its photos below ``root``. Raises PersresError that names the first damaged photo."""
    for photo in photos:
        load_photo(photo)  # stays decoded for the stages that read the copy
    folder = write_concept(root, concept)
    for index, photo in enumerate(photos):
        shutil.copyfile(photo, folder / "images" / f"{index:03d}{photo.suffix.lower()}")
