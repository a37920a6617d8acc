"""One object of a DVC remote to a file: from a folder, through DVC's client, or from a stranger's server without credentials."""

from __future__ import annotations

import http.client
import shutil
import stat
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, urlsplit

from persres.errors import PersresError
from persres.untrusted.text import printable, redacted
from persres.versions.git_dvc import remote_errors, remote_files

SILENCE = 20  # seconds without a byte from a stranger's server
TRIES = 3
SLOWEST, PATIENCE = 1000, 60  # bytes per second, after so many seconds
PIECE = 1 << 16


def download_from_folder(folder: Path, key: str, target: Path) -> None:
    """Copy an object of a remote that is a folder. Raises PersresError."""
    source = folder / key
    with remote_errors("get"):
        if not stat.S_ISREG(source.stat().st_mode):
            raise PersresError(f"{source} is not a regular file; remove it and push again")
        shutil.copyfile(source, target)


def download_with_dvc(remotes: dict[str, dict[str, Any]], name: str, key: str, target: Path) -> None:
    """Download with the file system that DVC has for the remote, and so with the user's credentials. Raises PersresError."""
    with remote_errors("get"):
        files, root = remote_files(remotes, name)
        files.get_file(files.join(root, *key.split("/")), str(target))


def download_anonymously(settings: dict[str, Any], key: str, target: Path, most: int) -> None:
    """Download over HTTP without any credentials, those of ~/.netrc included.

    Raises PersresError, HTTPError for the server's refusals, and other errors of urllib.
    """
    url = object_url(settings, key)
    for left in reversed(range(TRIES)):
        try:
            with urllib.request.urlopen(url, timeout=SILENCE) as answer, target.open("wb") as file:  # noqa: S310 - object_url allows HTTP only
                return _copy(answer, file, most, url)
        except urllib.error.HTTPError as error:
            if error.code < 500 or not left:
                raise
        except (OSError, http.client.HTTPException):
            if not left:
                raise


def object_url(settings: dict[str, Any], key: str) -> str:
    """The URL of an object of a remote in S3 or on a web server. Raises PersresError for an address that is none."""
    url = str(settings["url"])
    if not url.startswith("s3://"):
        address = f"{url.rstrip('/')}/{quote(key)}"
    else:
        bucket, prefix = s3_place(url)
        path = quote("/".join(part for part in (prefix, key) if part))
        address = f"{_bucket_url(settings, quote(bucket, safe=''))}/{path}"
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname or not address.isprintable() or " " in address:
        raise PersresError(f"{printable(redacted(address), 200)!r} is no address of a server; name it with --endpoint")
    return address


def s3_place(url: str) -> tuple[str, str]:
    """Bucket and prefix of ``s3://bucket/prefix``, as DVC reads it: ``#`` belongs to the prefix."""
    parts = urlsplit(url)
    prefix = f"{parts.path}#{parts.fragment}" if parts.fragment else parts.path
    return parts.netloc.rpartition("@")[2], prefix.strip("/")


def _bucket_url(settings: dict[str, Any], bucket: str) -> str:
    if endpoint := settings.get("endpointurl"):
        return f"{endpoint.rstrip('/')}/{bucket}"
    region = quote(settings.get("region", ""), safe="")
    if "." in bucket:  # a certificate has one label only
        return f"https://s3.{region or 'us-east-1'}.amazonaws.com/{bucket}"
    return f"https://{bucket}.s3.{region}.amazonaws.com" if region else f"https://{bucket}.s3.amazonaws.com"


def _copy(answer: http.client.HTTPResponse, file: BinaryIO, most: int, url: str) -> None:
    begun, size = time.monotonic(), 0
    shown = printable(redacted(url), 200)
    while piece := answer.read1(PIECE):
        size += len(piece)
        seconds = time.monotonic() - begun
        if size > most:
            raise PersresError(f"{shown} is larger than {most >> 20} MiB; ask who published it")
        if seconds > PATIENCE and size < SLOWEST * seconds:
            raise PersresError(f"{shown} sends less than {SLOWEST} bytes per second; run again later")
        file.write(piece)
    if answer.length:  # what is missing of Content-Length
        raise http.client.IncompleteRead(b"", answer.length)
