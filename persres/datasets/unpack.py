"""Unpack an untrusted ZIP, whole or not at all."""

from __future__ import annotations

import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from persres.errors import PersresError
from persres.units.files import publishing

MOST_UNPACKED = 20 << 30  # bytes; the known archives are below 2 GiB
MOST_EXPANSION = 100  # times the archive's size: photos hardly shrink, a bomb does


def check_space(folder: Path, needed: int) -> None:
    """Raises PersresError where the disk has fewer than ``needed`` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise PersresError(
            f"{folder} needs {needed / 1e9:.2f} GB and its disk has {free / 1e9:.2f} GB free; free some space, or set fetch.folder to another disk"
        )


def unpack(archive: Path, target: Path, prefix: str, also: tuple[str, ...] = ()) -> None:
    """Unpack the files below ``prefix`` of a ZIP, and the files ``also``, as the new folder ``target``, whole or not at all.

    Raises PersresError for a damaged archive, a name that leads out of the folder, a link, and an excessive expansion.
    """
    try:
        with zipfile.ZipFile(archive) as packed, publishing(target) as fresh:
            members = _members(archive, packed.infolist(), prefix, also)
            _check_growth(archive, members, fresh)
            for info, path in members:
                (fresh / path).parent.mkdir(parents=True, exist_ok=True)
                with packed.open(info) as source, (fresh / path).open("wb") as file:
                    shutil.copyfileobj(source, file)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise PersresError(f"{archive} is not a whole ZIP ({error}); delete it and run again") from error
    except OSError as error:
        raise PersresError(
            f"cannot unpack {archive} into {target}: {error.strerror or error}; free some space or make the folder writable"
        ) from error


def _members(
    archive: Path, infos: list[zipfile.ZipInfo], prefix: str, also: tuple[str, ...]
) -> list[tuple[zipfile.ZipInfo, str]]:
    """The files to unpack with their paths below the target."""
    members = []
    for info in infos:
        _check_member(archive, info)
        if info.is_dir() or "__MACOSX" in info.filename:
            continue
        if info.filename.startswith(prefix):
            members.append((info, info.filename.removeprefix(prefix)))
        elif info.filename in also:
            members.append((info, PurePosixPath(info.filename).name))
    if not any(info.filename.startswith(prefix) for info, _ in members):
        raise PersresError(f"{archive} holds nothing below {prefix!r}; it is another archive: delete it and run again")
    return members


def _check_member(archive: Path, info: zipfile.ZipInfo) -> None:
    name, kind = info.filename, stat.S_IFMT(info.external_attr >> 16)
    if name.startswith("/") or "\\" in name or ":" in name.split("/")[0] or ".." in PurePosixPath(name).parts:
        raise PersresError(
            f"{archive}: the name {name!r} leads out of the folder; do not trust this archive, delete it"
        )
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise PersresError(f"{archive}: {name!r} is a link or a device; do not trust this archive, delete it")


def _check_growth(archive: Path, members: list[tuple[zipfile.ZipInfo, str]], folder: Path) -> None:
    total = sum(info.file_size for info, _ in members)  # zipfile reads no more than an entry declares
    if total > MOST_UNPACKED or total > MOST_EXPANSION * max(archive.stat().st_size, 1 << 20):
        raise PersresError(
            f"{archive} would unpack to {total / 1e9:.1f} GB, far more than photos can; do not trust this archive, delete it"
        )
    check_space(folder, total)
