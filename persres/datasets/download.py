"""Archives from the network: a download goes on where it stopped, is compared by SHA-256, and is unpacked whole or not at all."""

from __future__ import annotations

import logging
import os
import re
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

import requests
from tqdm import tqdm

from persres.errors import PersresError
from persres.runs.files import digest_file, publishing, write_atomic

log = logging.getLogger(__name__)
TIMEOUT = (15, 60)  # seconds to connect, and between two pieces
CHUNK = 1 << 16  # bytes; a cut loses at most so many
ATTEMPTS = 3  # in one run, as long as each brings something
MOST_UNPACKED = 20 << 30  # bytes; the archives that we know are below 2 GiB
MOST_EXPANSION = 100  # times the archive's size: photos hardly shrink, a bomb does
_SHA256 = re.compile(r"[0-9a-f]{64}")


def download(url: str, target: Path, pinned: str | None = None, mend: str = "connect to the network") -> Path:
    """The file at ``url`` as ``target``; one that lies there already is not fetched again, only compared.

    Compared with: the ``pinned`` SHA-256, the one that the server names (Hugging Face does), and the one recorded beside the
    file by an earlier run (``<target>.sha256``, as ``sha256sum -c`` reads it). Raises PersresError naming URL and ``mend``.
    """
    record, known = target.with_name(f"{target.name}.sha256"), {"the pinned one in fetch.sha256": pinned}
    known["the one recorded by an earlier run"] = _recorded(record)
    if target.exists():
        digest = _same(target, known, f"delete {target} to fetch it again, or {record} where the change is meant")
    else:
        partial = target.with_name(f"{target.name}.partial")
        known["the one that the server names"] = _receive(url, partial, mend)
        try:
            digest = _same(
                partial,
                known,
                f"run again; where {url} has changed and that is meant, mend fetch.sha256 or delete {record}",
            )
        except PersresError:
            _forget(partial)
            raise
        os.replace(partial, target)
        _forget(partial)
    write_atomic(record, f"{digest}  {target.name}\n".encode())
    log.info("fetch: %s has sha256 %s", target, digest)
    return target


def _recorded(record: Path) -> str | None:
    return record.read_text().split()[0] if record.exists() and record.read_text().strip() else None


def _same(path: Path, known: dict[str, str | None], mend: str) -> str:
    """The file's digest, where it is what every known one says. Raises PersresError."""
    digest = digest_file(path)
    for whose, wanted in known.items():
        if wanted is not None and wanted != digest:
            raise PersresError(f"{path} has sha256 {digest}, but {whose} is {wanted}; {mend}")
    return digest


def _tag(partial: Path) -> Path:
    """Beside a part, the server's name for the version that it is a part of."""
    return partial.with_name(f"{partial.name}.etag")


def _forget(partial: Path) -> None:
    partial.unlink(missing_ok=True)
    _tag(partial).unlink(missing_ok=True)


def _receive(url: str, partial: Path, mend: str) -> str | None:
    """Bring the whole file into ``partial``; returns the SHA-256 that the server names, if it does."""
    reason = ""
    for _ in range(ATTEMPTS):
        before = _size(partial)
        try:
            partial.parent.mkdir(parents=True, exist_ok=True)
            return _attempt(url, partial)
        except requests.RequestException as error:
            reason = _reason(error)
        except OSError as error:
            raise PersresError(
                f"cannot write {partial}: {error.strerror or error}; free some space or make the folder writable, then run again to go on"
            ) from error
        if _size(partial) <= before:
            break
    kept = f"; {_size(partial):,} bytes are kept, run again to go on" if _size(partial) else ""
    raise PersresError(f"cannot fetch {url} ({reason}){kept}; {mend}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _reason(error: requests.RequestException) -> str:
    if error.response is not None:
        return f"the server answers {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection was cut"
    if isinstance(error, requests.Timeout):
        return "the server does not answer"
    return "no connection" if isinstance(error, requests.ConnectionError) else str(error)[:200]


def _attempt(url: str, partial: Path) -> str | None:
    have = _size(partial)
    headers = {"Accept-Encoding": "identity"}  # lengths and ranges are then those of the file itself
    if have:
        headers["Range"] = f"bytes={have}-"
        if _tag(partial).exists():
            headers["If-Range"] = _tag(partial).read_text()
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code == 416:  # nothing after what is here: whole already, or a part of something else
            if answer.headers.get("Content-Range", "").endswith(f"/{have}"):
                return _named_digest(answer)
            _forget(partial)
            return _attempt(url, partial)
        answer.raise_for_status()
        _write(answer, partial, have if answer.status_code == 206 else 0)
        return _named_digest(answer)


def _write(answer: requests.Response, partial: Path, have: int) -> None:
    length = answer.headers.get("Content-Length")
    total = None if length is None else have + int(length)
    if total is not None:
        check_space(partial.parent, total - have)
    etag = answer.headers.get("ETag", "")
    if etag and not etag.startswith("W/"):  # a weak one does not promise the same bytes
        _tag(partial).write_text(etag)
    with (
        partial.open("ab" if have else "wb") as file,
        tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=partial.stem, disable=None) as bar,
    ):
        for chunk in answer.iter_content(CHUNK):
            file.write(chunk)
            bar.update(len(chunk))


def _named_digest(answer: requests.Response) -> str | None:
    """Hugging Face names a large file's SHA-256 in ``X-Linked-ETag`` of the answer that redirects to it."""
    tags = [step.headers.get("X-Linked-ETag", "").strip('"') for step in (*answer.history, answer)]
    return next((tag for tag in tags if _SHA256.fullmatch(tag)), None)


def check_space(folder: Path, needed: int) -> None:
    """Raises PersresError where the disk has fewer than ``needed`` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise PersresError(
            f"{folder} needs {needed / 1e9:.2f} GB and its disk has {free / 1e9:.2f} GB free; free some space, or set fetch.folder to another disk"
        )


def unpack(archive: Path, target: Path, inside: str, also: tuple[str, ...] = ()) -> None:
    """Unpack what lies below ``inside`` of a ZIP, and the files ``also``, as the new folder ``target``: whole or not at all.

    Raises PersresError for a broken archive, for a name that leads out of the folder, for links, and for one that grows absurdly.
    """
    try:
        with zipfile.ZipFile(archive) as packed, publishing(target) as fresh:
            members = _members(archive, packed.infolist(), inside, also)
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
    archive: Path, infos: list[zipfile.ZipInfo], inside: str, also: tuple[str, ...]
) -> list[tuple[zipfile.ZipInfo, str]]:
    """The files to unpack with their paths below the target."""
    members = []
    for info in infos:
        _check_member(archive, info)
        if info.is_dir() or "__MACOSX" in info.filename:
            continue
        if info.filename.startswith(inside):
            members.append((info, info.filename.removeprefix(inside)))
        elif info.filename in also:
            members.append((info, PurePosixPath(info.filename).name))
    if not any(info.filename.startswith(inside) for info, _ in members):
        raise PersresError(f"{archive} holds nothing below {inside!r}; it is another archive: delete it and run again")
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
