"""ZIP files from outside: every entry checked before one is read."""

from __future__ import annotations

import errno
import stat
import unicodedata
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from persres.errors import PersresError
from persres.untrusted.names import relative_path
from persres.untrusted.text import printable

MOST_ENTRIES = 100_000
KINDS = (0, stat.S_IFREG, stat.S_IFDIR)  # 0: packed on a system without file modes
COMPRESSION = (
    zipfile.ZIP_STORED,
    zipfile.ZIP_DEFLATED,
)  # LZMA and bzip2 decoders reserve as much memory as the file asks for


@contextmanager
def open_zip(path: Path, what: str, fix: str) -> Iterator[zipfile.ZipFile]:
    """Open a ZIP to read. Whatever zipfile raises inside becomes a PersresError: the file is not a whole ``what``; ``fix``."""
    try:
        if not path.is_file():  # a pipe would block
            raise PersresError(f"{path} is not a file; {fix}")
        with zipfile.ZipFile(path) as packed:
            if len(packed.infolist()) > MOST_ENTRIES:
                raise PersresError(f"{path} has more than {MOST_ENTRIES} entries; {fix}")
            yield packed
    except PersresError:
        raise
    except Exception as error:  # BadZipFile, zlib.error, struct.error, UnicodeError, RuntimeError …
        if isinstance(error, OSError) and error.errno not in (
            None,
            errno.EINVAL,
        ):  # the disk's fault; EINVAL: a wild offset
            raise
        raise PersresError(f"{path} is not a whole {what} ({printable(error)}); {fix}") from error


def entry_path(archive: Path, info: zipfile.ZipInfo) -> str:
    """Return an entry's path. Raises PersresError where it leads out, is a link or a device, or is encrypted or packed unusually."""
    path = relative_path(info.filename.removesuffix("/"), f"{archive}: the name")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in KINDS or (kind == stat.S_IFDIR and not info.is_dir()):
        raise PersresError(f"{archive}: {path!r} is a link or a device; do not trust this archive, delete it")
    if info.flag_bits & 1:
        raise PersresError(f"{archive}: {path!r} is encrypted; delete the archive and fetch it from its source")
    if info.compress_type not in COMPRESSION:
        raise PersresError(f"{archive}: {path!r} is neither stored nor deflated; pack the archive again with zip")
    return path


def check_distinct(archive: Path, paths: list[str]) -> None:
    """Raises PersresError where two paths are one file on some system, or a file is also a folder."""
    files: dict[tuple[str, ...], str] = {}
    for path in paths:
        key = tuple(_folded(part) for part in path.split("/"))
        if key in files:
            raise _unclear(archive, f"{files[key]!r} and {path!r} are one file on some systems")
        files[key] = path
    for key, path in files.items():
        above = [files[key[:count]] for count in range(1, len(key)) if key[:count] in files]
        if above:
            raise _unclear(archive, f"{above[0]!r} is both a file and the folder of {path!r}")


def read_entry(packed: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """Return an entry's bytes. Raises zipfile.BadZipFile where they are damaged or not as many as the entry declares."""
    data = packed.read(info)
    if len(data) != info.file_size:
        raise zipfile.BadZipFile(f"{info.filename} has {len(data)} bytes and declares {info.file_size}")
    return data


def _folded(part: str) -> str:
    """A name as file systems compare it that ignore case, Unicode forms and trailing dots and blanks."""
    return unicodedata.normalize("NFC", part).casefold().rstrip(". ")


def _unclear(archive: Path, problem: str) -> PersresError:
    return PersresError(f"{archive}: {problem}; do not trust this archive, delete it")
