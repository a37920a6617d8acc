"""Where units meet: a folder that all machines see, or a prefix in S3, behind a few verbs.

S3 is spoken to by boto3 alone: put-if-absent needs it (``If-None-Match: *``, one winner of a race on AWS, Ceph and moto), and a second
client (s3fs) would have errors and retries of its own. Credentials come from the environment, the server's address from
AWS_ENDPOINT_URL, as in every AWS tool.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from persres.errors import PersresError
from persres.units.files import write_atomic, written_whole
from persres.versions.git_dvc import fix_for
from persres.versions.store import LONGEST, error_code

PATIENCE, PAUSE = 120.0, 2.0  # seconds to wait for a server that is away, and between two tries
T = TypeVar("T")


class StoreError(PersresError):
    """The store failed, not the unit: to be tried again."""


class Store(Protocol):
    """Keys are paths with ``/``. Every verb raises StoreError naming the object, where the store fails."""

    def read(self, key: str) -> bytes | None:
        """An object's bytes; None where there is none."""

    def write(self, key: str, data: bytes, only_new: bool = False) -> bool:
        """Write an object, whole or not at all. With ``only_new`` one of several writers wins; returns whether this one did."""

    def upload(self, path: Path, key: str) -> None:
        """A file of any size."""

    def download(self, key: str, path: Path) -> bool:
        """To a file, whole or not at all; False where there is no such object."""

    def has(self, key: str) -> bool:
        """Whether it is there."""

    def remove(self, key: str) -> None:
        """Take it away; nothing happens where there is none."""

    def keys(self, prefix: str) -> Iterator[str]:
        """All below a prefix that ends in ``/``, or of the whole store where it is empty."""

    def link(self, key: str) -> str:
        """For a browser."""


class FolderStore:
    """A folder that all machines see: one disk, NFS."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, key: str) -> bytes | None:
        """See :class:`Store`."""
        return self._guarded(key, lambda path: path.read_bytes() if path.is_file() else None)

    def write(self, key: str, data: bytes, only_new: bool = False) -> bool:
        """By a rename; ``only_new`` by a link, which fails where the name is taken."""
        return self._guarded(key, lambda path: _put_new(path, data) if only_new else _put(path, data))

    def upload(self, path: Path, key: str) -> None:
        """See :class:`Store`."""

        def put(target: Path) -> None:
            with written_whole(target) as partial:
                shutil.copyfile(path, partial)

        self._guarded(key, put)

    def download(self, key: str, path: Path) -> bool:
        """See :class:`Store`."""
        source = self.root / key
        if not source.is_file():
            return False
        with written_whole(path) as partial:  # an OSError here is this machine's disk, not the store
            shutil.copyfile(source, partial)
        return True

    def has(self, key: str) -> bool:
        """See :class:`Store`."""
        return (self.root / key).is_file()

    def remove(self, key: str) -> None:
        """See :class:`Store`."""
        self._guarded(key, lambda path: path.unlink(missing_ok=True))

    def keys(self, prefix: str) -> Iterator[str]:
        """See :class:`Store`."""
        found = (path for path in (self.root / prefix).rglob("*") if path.is_file() and not path.name.startswith("."))
        return (str(path.relative_to(self.root)) for path in sorted(found))

    def link(self, key: str) -> str:
        """See :class:`Store`."""
        return (self.root / key).as_uri()

    def _guarded(self, key: str, action: Callable[[Path], T]) -> T:
        try:
            return action(self.root / key)
        except OSError as error:
            raise StoreError(
                f"the store {self.root} failed at {key} ({error.strerror or error}); make it writable, free some space"
            ) from error


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
    """A prefix of a bucket. A server that is away is waited for, up to two minutes."""

    def __init__(self, bucket: str, prefix: str) -> None:
        import boto3
        from botocore.config import Config

        self.bucket, self.prefix = bucket, prefix
        config = Config(
            connect_timeout=5,
            read_timeout=30,
            retries={"max_attempts": 2, "mode": "standard"},
            signature_version="s3v4",
        )
        self.client = boto3.session.Session().client("s3", config=config)

    def read(self, key: str) -> bytes | None:
        """See :class:`Store`."""
        return self._call(key, lambda place: self.client.get_object(**place)["Body"].read(), absent=None)

    def write(self, key: str, data: bytes, only_new: bool = False) -> bool:
        """``only_new`` by If-None-Match. A put whose answer was lost is refused when tried again: then whether the bytes are ours decides."""
        condition = {"IfNoneMatch": "*"} if only_new else {}

        def put(place: dict[str, str]) -> bool:
            try:
                self.client.put_object(**place, Body=data, **condition)
            except Exception as error:
                if only_new and error_code(error) in ("PreconditionFailed", "412", "ConditionalRequestConflict"):
                    return self.read(key) == data
                raise
            return True

        return self._call(key, put)

    def upload(self, path: Path, key: str) -> None:
        """In parts where it is large."""
        self._call(key, lambda place: self.client.upload_file(str(path), place["Bucket"], place["Key"]))

    def download(self, key: str, path: Path) -> bool:
        """See :class:`Store`."""

        def get(place: dict[str, str]) -> bool:
            with written_whole(path) as partial:
                self.client.download_file(place["Bucket"], place["Key"], str(partial))
            return True

        return self._call(key, get, absent=False)

    def has(self, key: str) -> bool:
        """See :class:`Store`."""
        return self._call(key, lambda place: bool(self.client.head_object(**place)), absent=False)

    def remove(self, key: str) -> None:
        """See :class:`Store`."""
        self._call(key, lambda place: self.client.delete_object(**place))

    def keys(self, prefix: str) -> Iterator[str]:
        """A thousand a request."""
        start, token = f"{self.prefix}/" if self.prefix else "", {}
        while True:

            def ask(place: dict[str, str], token: dict[str, str] = token) -> dict[str, Any]:
                return self.client.list_objects_v2(Bucket=self.bucket, Prefix=start + prefix, **token)

            page = self._call(prefix, ask)
            yield from (entry["Key"].removeprefix(start) for entry in page.get("Contents", []))
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def link(self, key: str) -> str:
        """Signed for seven days, the longest that S3 signs for."""
        place = self._place(key)
        return self.client.generate_presigned_url("get_object", Params=place, ExpiresIn=LONGEST)

    def _place(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": "/".join(part for part in (self.prefix, key) if part)}

    def _call(self, key: str, action: Callable[[dict[str, str]], T], **absent: T) -> T:
        """``absent`` is the answer where there is no such object."""
        place = self._place(key)
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return action(place)
            except (StoreError, OSError) as error:
                if isinstance(error, StoreError) or not _is_away(error):
                    raise
                trouble: Exception = error
            except Exception as error:
                if "absent" in absent and error_code(error) in ("404", "NoSuchKey", "NotFound"):
                    return absent["absent"]
                trouble = (
                    error.__context__ if type(error).__name__ == "S3UploadFailedError" else error
                )  # boto3 wraps it
            if not _is_away(trouble) or time.monotonic() > until:
                mend = fix_for(f"{type(trouble).__name__} {trouble}") or "look at the server, then run again"
                raise StoreError(
                    f"the store s3://{self.bucket} failed at {place['Key']}: {trouble}; {mend}"
                ) from trouble
            time.sleep(PAUSE)


def _is_away(error: Exception) -> bool:
    """Whether nobody answered, or the server said that it can't now."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    if isinstance(error, ClientError):
        return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) >= 500
    return isinstance(error, BotoCoreError | ConnectionError) and not isinstance(error, NoCredentialsError)


@lru_cache
def open_store(url: str) -> Store:
    """``s3://bucket/prefix`` or a folder. Raises PersresError for another scheme, or where boto3 is not installed."""
    place = urlsplit(url)
    if place.scheme in ("", "file"):
        return FolderStore(Path(place.path).resolve())
    if place.scheme != "s3" or not place.netloc:
        raise PersresError(f"{url} is no store: give s3://BUCKET/PREFIX, or a folder that every machine sees")
    try:
        return S3Store(place.netloc, place.path.strip("/"))
    except ImportError as error:
        raise PersresError("boto3 is not installed here; pip install 'persres[pipeline]'") from error
