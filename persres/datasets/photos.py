"""Copy photos into a concept's folder: each is opened first, and skipped files are logged."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from persres.datasets.layout import Concept, write_concept
from persres.errors import PersresError
from persres.images import SUFFIXES, check_photo, list_photos
from persres.untrusted.names import is_system_name

log = logging.getLogger(__name__)
UNSUPPORTED = (
    ".heic", ".heif", ".avif", ".jxl", ".jp2", ".gif", ".psd", ".dng", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2",
)  # fmt: skip
_NO_PHOTO = ("concept.json",)


def find_photos(folder: Path) -> list[Path]:
    """The photos of a folder, sorted by name; logs skipped files.

    Raises PersresError where there is none, or none in a supported format.
    """
    others = _others(folder)
    unsupported = [name for name in others if name.lower().endswith(UNSUPPORTED)]
    try:
        photos = list_photos(folder)
    except PersresError as error:
        if not unsupported:
            raise
        names = ", ".join(unsupported)
        raise PersresError(f"{folder}: {names} are in an unsupported format; save them as JPEG") from error
    if others:
        hint = "; save HEIC and raw photos as JPEG to use them" if unsupported else ""
        log.info("fetch: %s: left out %s%s", folder, ", ".join(others), hint)
    return photos


def _others(folder: Path) -> list[str]:
    """Files that are no photos, and folders that are named like one."""
    if not folder.is_dir():
        return []
    names = (p.name for p in folder.iterdir() if p.is_dir() == (p.suffix.lower() in SUFFIXES))
    return sorted(name for name in names if not is_system_name(name) and name not in _NO_PHOTO)


def copy_concept(photos: list[Path], concept: Concept, root: Path) -> None:
    """Write a concept with its photos below ``root``. Raises PersresError that names the first damaged photo."""
    for photo in photos:
        check_photo(photo)  # stays decoded for the stages that read the copy
    folder = write_concept(root, concept)
    for index, photo in enumerate(photos):
        shutil.copyfile(photo, folder / "images" / f"{index:03d}{photo.suffix.lower()}")
