"""Unpack an untrusted ZIP, whole or not at all."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path, PurePosixPath

from persres.errors import PersresError
from persres.units.files import publishing
from persres.untrusted.archives import check_distinct, entry_path, open_zip
from persres.untrusted.names import SYSTEM_NAMES, relative_name

MOST_UNPACKED = 20 << 30  # bytes; the known archives are below 2 GiB
MOST_EXPANSION = 100  # times the archive's size: photos hardly shrink, a bomb does
CHUNK = 1 << 20


def check_space(folder: Path, needed: int) -> None:
    """Raises PersresError where the disk has fewer than ``needed`` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise PersresError(
            f"{folder} needs {needed / 1e9:.2f} GB and its disk has {free / 1e9:.2f} GB free; free some space, or set fetch.folder to another disk"
        )


def unpack(archive: Path, target: Path, prefix: str, also: tuple[str, ...] = ()) -> None:
    """Unpack the files below ``prefix`` of a ZIP, and the files ``also``, as the new folder ``target``, whole or not at all.

    Raises PersresError for a damaged archive, a name that leads out of the folder, a link, two entries for one file, and an
    excessive expansion.
    """
    try:
        with open_zip(archive, "ZIP", "delete it and run again") as packed, publishing(target) as fresh:
            members = _members(archive, packed.infolist(), prefix, also)
            _check_growth(archive, members, fresh)
            for path, info in members.items():
                _extract(packed, info, relative_name(path, fresh, f"{archive}: the name"))
    except OSError as error:
        raise PersresError(
            f"cannot unpack {archive} into {target}: {error.strerror or error}; free some space or make the folder writable"
        ) from error


def _members(
    archive: Path, infos: list[zipfile.ZipInfo], prefix: str, also: tuple[str, ...]
) -> dict[str, zipfile.ZipInfo]:
    """The files to unpack by their path below the target; every other entry is checked too."""
    members: list[tuple[str, zipfile.ZipInfo]] = []
    more: list[tuple[str, zipfile.ZipInfo]] = []
    for info in infos:
        if SYSTEM_NAMES.intersection(info.filename.lower().split("/")):
            continue  # unchecked: macOS has a file "Icon\r"
        path = entry_path(archive, info)
        if info.filename.startswith(prefix) and not info.is_dir():
            members.append((path.removeprefix(prefix), info))
        elif info.filename in also:
            more.append((PurePosixPath(path).name, info))
    if not members:
        raise PersresError(f"{archive} holds nothing below {prefix!r}; it is another archive: delete it and run again")
    taken = {path.casefold() for path, _ in members}
    members += [(path, info) for path, info in more if path.casefold() not in taken]
    check_distinct(archive, [path for path, _ in members])
    return dict(members)


def _extract(packed: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with packed.open(info) as source, path.open("wb") as file:
        shutil.copyfileobj(source, file, CHUNK)
        if file.tell() != info.file_size:
            raise zipfile.BadZipFile(f"{info.filename} has {file.tell()} bytes and declares {info.file_size}")


def _check_growth(archive: Path, members: dict[str, zipfile.ZipInfo], folder: Path) -> None:
    total = sum(info.file_size for info in members.values())  # zipfile reads no more than an entry declares
    if total > MOST_UNPACKED or total > MOST_EXPANSION * max(archive.stat().st_size, 1 << 20):
        raise PersresError(
            f"{archive} would unpack to {total / 1e9:.1f} GB, far more than photos can; do not trust this archive, delete it"
        )
    check_space(folder, total)
