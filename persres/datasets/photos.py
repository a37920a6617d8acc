"""Photos into a concept's folder: every one is opened first, and what is left out is said."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from persres.datasets.layout import Concept, write_concept
from persres.errors import PersresError
from persres.images import SUFFIXES, list_photos, load_photo

log = logging.getLogger(__name__)
UNREAD = (".heic", ".heif", ".avif", ".dng", ".raw", ".cr2", ".nef", ".arw")  # photos, but not for Pillow alone
_NO_PHOTO = ("concept.json",)


def find_photos(folder: Path) -> list[Path]:
    """The photos of a folder by name; files that are left out are logged.

    Raises PersresError where there is none, naming the mend where there are only photos in a phone's or a camera's own format.
    """
    others = _others(folder)
    unread = [name for name in others if name.lower().endswith(UNREAD)]
    if unread and not _any_photo(folder):
        raise PersresError(
            f"{folder}: {', '.join(unread)} are photos in a format that is not read; save them as JPEG and put those there"
        )
    photos = list_photos(folder)
    if others:
        hint = "; save HEIC and raw photos as JPEG to use them" if unread else ""
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
    """Write a concept below ``root`` with its photos, each checked. Raises PersresError naming the first broken one."""
    for photo in photos:
        load_photo(photo)
    folder = write_concept(root, concept)
    for index, photo in enumerate(photos):
        shutil.copyfile(photo, folder / "images" / f"{index:03d}{photo.suffix.lower()}")
