"""The store between machines: a folder that all machines see, or a prefix of an S3 bucket.

S3 needs put-if-absent (``If-None-Match: *``, one winner of a race on AWS, Ceph and moto). obstore provides it, with retries. boto3
provides the credentials, from the environment or ~/.aws; AWS_ENDPOINT_URL is the server's address, as in every AWS tool.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Protocol, TypeVar

from persres.errors import PersresError
from persres.units.files import write_atomic, written_whole
from persres.untrusted.documents import MOST_BYTES
from persres.untrusted.names import object_key, s3_address
from persres.untrusted.text import printable, redacted
from persres.versions.git_dvc import fix_for
from persres.versions.store import LONGEST

PATIENCE, PAUSE = (
    timedelta(seconds=120),
    timedelta(seconds=2),
)  # retries of a server that is down, and the longest pause between two
PART = 64 << 20  # bytes per request of a download
_SCHEME = re.compile(r"\s*([sS]3(?=:)|[A-Za-z][A-Za-z0-9+.-]*(?=:/)):/*")  # a folder may have a colon in its name
T = TypeVar("T")


class StoreError(PersresError):
    """The store failed, not the unit; another try may succeed."""


class TooLarge(PersresError):
    """An object that is read whole is larger than any that this library writes."""


class Store(Protocol):
    """Objects by keys with ``/``. Every method raises StoreError naming the object if the store fails, and PersresError for a key that
    is none (:func:`persres.untrusted.names.object_key`)."""

    def read(self, key: str) -> bytes | None:
        """The bytes of a small object; None if it does not exist. Raises TooLarge for more than 64 MiB."""

    def write(self, key: str, data: bytes, only_new: bool = False) -> bool:
        """Write an object atomically; returns whether it was written. With ``only_new`` the first of several writers wins."""

    def upload(self, path: Path, key: str) -> None:
        """Upload a file of any size."""

    def download(self, key: str, path: Path) -> bool:
        """Download to a file atomically; returns False if the object does not exist."""

    def has(self, key: str) -> bool:
        """Whether an object exists."""

    def remove(self, key: str) -> None:
        """Remove an object if it exists."""

    def keys(self, prefix: str) -> Iterator[str]:
        """All keys with a prefix that ends in ``/``, or all keys if it is empty."""

    def link(self, key: str) -> str:
        """A URL for a browser."""


class FolderStore:
    """A folder that all machines see, on one disk or NFS."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, key: str) -> bytes | None:
        """See :class:`Store`."""
        return self._guarded(key, lambda path: _read(path, key) if path.is_file() else None)

    def write(self, key: str, data: bytes, only_new: bool = False) -> bool:
        """Write by a rename; with ``only_new`` by a hard link, which fails if the name exists."""
        return self._guarded(key, lambda path: _put_new(path, data) if only_new else _put(path, data))

    def upload(self, path: Path, key: str) -> None:
        """See :class:`Store`."""

        def put(target: Path) -> None:
            with written_whole(target) as partial:
                shutil.copyfile(path, partial)

        self._guarded(key, put)

    def download(self, key: str, path: Path) -> bool:
        """See :class:`Store`."""
        source = self._guarded(key, lambda path: path.open("rb") if path.is_file() else None)
        if source is None:
            return False
        with source, written_whole(path) as partial, partial.open("wb") as target:
            shutil.copyfileobj(source, target, PART)  # an OSError here may be an error of this machine's disk
        return True

    def has(self, key: str) -> bool:
        """See :class:`Store`."""
        return (self.root / object_key(key)).is_file()

    def remove(self, key: str) -> None:
        """See :class:`Store`."""
        self._guarded(key, lambda path: path.unlink(missing_ok=True))

    def keys(self, prefix: str) -> Iterator[str]:
        """See :class:`Store`."""
        folder = self.root / object_key(prefix.removesuffix("/")) if prefix else self.root
        files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
        return (str(path.relative_to(self.root)) for path in sorted(files))

    def link(self, key: str) -> str:
        """See :class:`Store`."""
        return (self.root / object_key(key)).as_uri()

    def _guarded(self, key: str, action: Callable[[Path], T]) -> T:
        path = self.root / object_key(key)
        try:
            return action(path)
        except OSError as error:
            raise StoreError(
                f"the store {self.root} failed at {key} ({error.strerror or error}); make it writable or free some space"
            ) from error


def _read(path: Path, key: str) -> bytes:
    _check_size(path.stat().st_size, key)
    return path.read_bytes()


def _check_size(size: int, key: str) -> None:
    if size > MOST_BYTES:
        raise TooLarge(f"{key} has {size >> 20} MiB in the store, more than any object that is read whole; remove it")


def _put(path: Path, data: bytes) -> bool:
    write_atomic(path, data)
    return True


def _put_new(path: Path, data: bytes) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        fresh.write_bytes(data)
        os.link(fresh, path)
    except FileExistsError:
        return False
    finally:
        fresh.unlink(missing_ok=True)
    return True


class S3Store:
    """A prefix of a bucket. Requests to a server that is down are retried for two minutes."""

    def __init__(self, bucket: str, prefix: str) -> None:
        from obstore import store
        from obstore.auth.boto3 import Boto3CredentialProvider

        self.bucket = bucket
        self.store = store.S3Store(
            bucket,
            prefix=prefix or None,
            credential_provider=Boto3CredentialProvider(),
            client_options={"allow_http": True, "connect_timeout": "5s", "timeout": "120s"},
            retry_config={"max_retries": 1000, "retry_timeout": PATIENCE, "backoff": {"max_backoff": PAUSE}},
        )

    def read(self, key: str) -> bytes | None:
        """See :class:`Store`."""
        answer = self._call(key, lambda: self.store.get(key), absent=None)
        if answer is None:
            return None
        _check_size(answer.meta["size"], key)
        return self._call(key, lambda: bytes(answer.bytes()))

    def write(self, key: str, data: bytes, only_new: bool = False) -> bool:
        """See :class:`Store`. A retry after a lost response is refused like a second writer: the bytes decide whether they are ours."""
        from obstore.exceptions import AlreadyExistsError

        try:
            self._call(key, lambda: self.store.put(key, data, mode="create" if only_new else "overwrite"))
        except AlreadyExistsError:
            return self.read(key) == data
        return True

    def upload(self, path: Path, key: str) -> None:
        """See :class:`Store`. Large files are sent in parts."""
        self._call(key, lambda: self.store.put(key, path))

    def download(self, key: str, path: Path) -> bool:
        """See :class:`Store`."""
        size = self._call(key, lambda: self.store.head(key)["size"], absent=None)
        if size is None:
            return False
        with written_whole(path) as partial, partial.open("wb") as file:
            for start in range(0, size, PART):
                end = min(start + PART, size)
                file.write(self._call(key, lambda s=start, e=end: self.store.get_range(key, start=s, end=e)))
        return True

    def has(self, key: str) -> bool:
        """See :class:`Store`."""
        return self._call(key, lambda: bool(self.store.head(key)), absent=False)

    def remove(self, key: str) -> None:
        """See :class:`Store`."""
        self._call(key, lambda: self.store.delete(key))

    def keys(self, prefix: str) -> Iterator[str]:
        """See :class:`Store`. A request returns a thousand keys."""
        pages = iter(self.store.list(object_key(prefix.removesuffix("/")) if prefix else None))
        while page := self._call(prefix, lambda: next(pages, None)):
            yield from (
                entry["path"] for entry in page if entry["path"]
            )  # "": S3's console makes an object of a folder

    def link(self, key: str) -> str:
        """A URL that is signed for seven days, the longest that S3 allows."""
        from obstore import sign

        return sign(self.store, "GET", object_key(key), expires_in=timedelta(seconds=LONGEST))

    def _call(self, key: str, action: Callable[[], T], **absent: T) -> T:
        """The result of ``action``, or ``absent`` if the object does not exist."""
        from obstore.exceptions import AlreadyExistsError, BaseError

        if key:
            object_key(key.removesuffix("/"))
        try:
            return action()
        except AlreadyExistsError:
            raise
        except (BaseError, FileNotFoundError) as error:
            if absent and isinstance(error, FileNotFoundError):
                return absent["absent"]
            reason = printable(redacted(str(error).partition("\n")[0]))
            known = (
                "remove or rename that object"
                if "invalid path" in reason
                else fix_for(f"{type(error).__name__} {error}")
            )
            fix = known or "check the server"
            raise StoreError(
                f"the store s3://{self.bucket} failed at {key or 'its keys'}: {reason}; {fix}, then run again"
            ) from error


@lru_cache
def open_store(url: str) -> Store:
    """The store of ``s3://bucket/prefix`` or a folder. Raises PersresError for another scheme, or if obstore is not installed.

    Neither is a URL: what follows the bucket is the prefix of keys, and a folder is a path, whatever characters they have.
    """
    scheme = _SCHEME.match(url)
    if scheme is None:
        return FolderStore(_folder(url))
    if scheme[1].lower() == "file":
        return FolderStore(_folder(_path_of(url)))
    if scheme[1].lower() != "s3" or not scheme[0].endswith("//"):
        shown = printable(redacted(url))
        raise PersresError(f"{shown} is no store; pass s3://BUCKET/PREFIX, or a folder that every machine sees")
    bucket, prefix = s3_address(url)
    prefix = prefix.removesuffix("/")
    try:
        return S3Store(bucket, prefix and object_key(prefix, f"the prefix of s3://{bucket}/,"))
    except ImportError as error:
        raise PersresError("obstore or boto3 is not installed; pip install 'persres[pipeline]'") from error


def _path_of(url: str) -> str:
    """The path of ``file:///path``, where it can mean only one."""
    path = url.partition(":")[2]
    path = path[2:] if path.startswith("//") else path
    if not path.startswith("/") or any(c in path for c in "#?%"):
        raise PersresError(f"{printable(url)} is a URL that may mean several folders; pass the folder's path instead")
    return path


def _folder(path: str) -> Path:
    if not path.strip() or "\0" in path or path.split("/")[0] == "~":
        raise PersresError(f"{printable(repr(path))} is no folder; pass its whole path, or s3://BUCKET/PREFIX")
    try:
        return Path(path).resolve()
    except (OSError, RuntimeError) as error:  # a loop of links
        raise PersresError(f"{printable(path)} is no folder ({printable(error)}); pass another") from error
