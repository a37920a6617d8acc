"""Inputs and results of units in a store, by digest: a key never changes its meaning.

``blobs/<2 digits>/<sha256>`` is a file. ``folders/<sha256>`` is the JSON of a folder's files and their digests, whose SHA-256 is the
folder's digest. ``units/<stage>/<hash>.json`` is a unit's manifest, written last and only once. Two writers of a unit are harmless:
each manifest names the files of its writer, and the first manifest stays.

What the store holds may be anything: digests and names in it are checked before they become keys and paths. A reader removes an
object as damaged only if it reads the same wrong bytes twice: its own memory, disk or network may be what is damaged.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from pydantic import BaseModel

from persres.errors import PersresError
from persres.fleet.store import Store, StoreError, TooLarge
from persres.units.files import digest_file, digest_files, digest_folder, write_atomic
from persres.units.specs import FileRef
from persres.units.unit import MANIFEST, Unit, read_manifest
from persres.untrusted.documents import parse_json, read_file
from persres.untrusted.fields import Key, Sha256
from persres.untrusted.names import digest as check_digest
from persres.untrusted.names import object_key
from persres.untrusted.text import printable

IN_STORE = "in_store"  # in a unit's folder on a worker: a file that marks that the store has all of the unit
T = TypeVar("T")


class Damaged(PersresError):
    """The bytes of an object do not match its digest."""


class Unsteady(Damaged):
    """An object is read differently each time: this machine is at fault, or the way to the store."""


def blob_key(digest: str) -> str:
    """The key of a file. Raises PersresError if it is no digest."""
    return f"blobs/{digest[:2]}/{check_digest(digest)}"


def folder_key(digest: str) -> str:
    """The key of a folder's list of files. Raises PersresError if it is no digest."""
    return f"folders/{check_digest(digest)}"


def manifest_key(unit: Unit) -> str:
    """The key of a unit's manifest."""
    return f"units/{unit.stage}/{unit.hash}.json"


def references(value: Any) -> Iterator[FileRef]:
    """All files and folders that a spec refers to."""
    if isinstance(value, FileRef):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from references(getattr(value, name))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from references(inner)


def put_input(store: Store, reference: FileRef) -> None:
    """Upload a file or a folder unless the store has it. Raises PersresError if it has changed since the spec was made."""
    path = Path(reference.path)
    if store.has(folder_key(reference.digest) if path.is_dir() else blob_key(reference.digest)):
        return
    if path.is_dir():
        files = digest_files([p for p in path.rglob("*") if p.is_file()], path)
        for name, digest in files.items():
            object_key(name, f"the file name in {path},")
            put_input(store, FileRef(path=str(path / name), digest=digest))
        listing = json.dumps(files, sort_keys=True).encode()  # as digest_folder computes it
        _check(hashlib.sha256(listing).hexdigest(), reference, path)
        store.write(folder_key(reference.digest), listing)
        return
    _check(digest_file(path), reference, path)
    store.upload(path, blob_key(reference.digest))


def _check(digest: str, reference: FileRef, path: Path) -> None:
    if digest != reference.digest:
        raise PersresError(f"{path} has changed since its stage began; run the stage again")


def input_path(reference: FileRef, cache: Path) -> Path:
    """The path of a file or a folder in a machine's cache. Raises PersresError if the digest or the name is none."""
    digest, name = check_digest(reference.digest), object_key(Path(reference.path).name, "the name of an input,")
    return cache / digest[:2] / digest / name


def get_input(store: Store, reference: FileRef, cache: Path) -> FileRef:
    """A reference to this machine's copy, fetched if it is missing or damaged; its digest is checked each time.

    Raises Damaged or StoreError naming the object.
    """
    path = input_path(reference, cache)
    if path.is_dir() and digest_folder(path) != reference.digest:
        damaged = path.with_name(f".{path.name}.{uuid.uuid4().hex}.gone")  # the rename frees the name at once
        path.rename(damaged)
        shutil.rmtree(damaged, ignore_errors=True)
    if not path.is_dir():
        _fetch(store, reference.digest, path)
    return reference.localized(path)


def _fetch(store: Store, digest: str, path: Path) -> None:
    if _download(store, digest, path):
        return
    listing = _read_listing(store, digest)
    if listing is None:
        raise Damaged(f"{blob_key(digest)} ({path.name}) is not in the store; run the stage again to upload it")
    fresh = path.with_name(f".{path.name}.fresh")
    fresh.mkdir(parents=True, exist_ok=True)
    for name, inner in listing.items():
        if not _download(store, inner, fresh / name):
            raise Damaged(
                f"{blob_key(inner)} ({path.name}/{name}) is not in the store; run the stage again to upload it"
            )
    if not path.exists():  # the name appears when the folder is complete
        fresh.rename(path)


def _read_listing(store: Store, digest: str) -> dict[str, str] | None:
    """The files of a folder, by name; None if the store does not have them."""
    key = folder_key(digest)

    def check(data: bytes) -> dict[str, str]:
        if hashlib.sha256(data).hexdigest() != digest:
            raise PersresError("its bytes do not match its digest")
        files = parse_json(data, dict[Key, Sha256], key)
        if any(str(above) in files for name in files for above in PurePosixPath(name).parents):
            raise PersresError("one of its files is also a folder")
        return files

    return _read_checked(store, key, check)


def _read_checked(store: Store, key: str, check: Callable[[bytes], T]) -> T | None:
    """What ``check`` makes of a small object; None if there is none. Raises Damaged if it fails twice."""
    wrong: list[bytes] = []
    while len(wrong) < 2:
        try:
            data = store.read(key)
            if data is None:
                return None
            return check(data)
        except TooLarge as error:
            data, reason = b"", error
        except StoreError:
            raise
        except PersresError as error:
            reason = error
        wrong.append(data)
    raise _damaged(store, key, str(reason), wrong[0] == wrong[1])


def _damaged(store: Store, key: str, reason: str, twice: bool) -> Damaged:
    """The error of an object that was read twice, and removed if it was wrong in the same way."""
    if not twice:
        where = f"is read differently each time on {socket.gethostname()}"
        return Unsteady(f"{key} {where} ({printable(reason)}); check its memory, disk and network; nothing is removed")
    store.remove(key)
    return Damaged(f"{key} was damaged in the store and is removed ({printable(reason)}); run the stage again")


def put_unit(store: Store, unit: Unit, work: Path) -> None:
    """Upload a finished unit: its files, then its manifest, unless the store has another writer's."""
    folder = unit.folder(work)
    data = read_file(folder / MANIFEST)
    for name, digest in read_manifest(data, unit, folder / MANIFEST).files.items():
        if not store.has(blob_key(digest)):
            store.upload(folder / name, blob_key(digest))
    store.write(manifest_key(unit), json.dumps(json.loads(data), sort_keys=True).encode(), only_new=True)
    (folder / IN_STORE).touch()


def get_unit(store: Store, unit: Unit, work: Path) -> bool:
    """Download a finished unit, files checked and manifest last; returns False if it is not finished.

    Raises Damaged if an object does not match the manifest. The manifest is removed then, so that the unit runs again.
    """
    key, folder = manifest_key(unit), unit.folder(work)
    read = _read_checked(store, key, lambda data: (read_manifest(data, unit, key), data))
    if read is None:
        return False
    manifest, data = read
    try:
        for name, digest in manifest.files.items():
            if not (_download(store, digest, folder / name) or _download(store, digest, folder / name)):
                raise Damaged(f"{blob_key(digest)} ({name}) is not in the store")
    except Unsteady:
        raise
    except Damaged as error:
        store.remove(key)
        raise Damaged(f"{key} ({unit.name}) is damaged: {error}; the unit runs again") from error
    write_atomic(folder / MANIFEST, json.dumps(json.loads(data), indent=1, sort_keys=True).encode())
    return True


def _download(store: Store, digest: str, path: Path) -> bool:
    """Download and check a file, which then takes its name; returns False if the store does not have it.

    Raises Damaged if its bytes are wrong twice.
    """
    if path.is_file() and digest_file(path) == digest:
        return True
    key, wrong = blob_key(digest), []
    while len(wrong) < 2:
        fresh = path.with_name(f".{uuid.uuid4().hex}.fresh")
        try:
            if not store.download(key, fresh):
                return False
            wrong.append(digest_file(fresh))
            if wrong[-1] == digest:
                os.replace(fresh, path)
                return True
        finally:
            fresh.unlink(missing_ok=True)
    raise _damaged(store, key, f"{path.name} does not match its digest", wrong[0] == wrong[1])


def fetch_inputs(store: Store, spec: Any, cache: Path) -> Any:
    """The spec with its files fetched to this machine: the paths change, the identity does not."""
    return _map_references(spec, lambda reference: get_input(store, reference, cache))


def _map_references(value: Any, change: Any) -> Any:
    if isinstance(value, FileRef):
        return change(value)
    if isinstance(value, BaseModel):
        inner = {name: getattr(value, name) for name in type(value).model_fields}
        new = {name: _map_references(old, change) for name, old in inner.items()}
        return value.model_copy(update={name: new[name] for name in inner if new[name] is not inner[name]})
    if isinstance(value, tuple):
        new = tuple(_map_references(inner, change) for inner in value)
        return new if any(a is not b for a, b in zip(new, value, strict=True)) else value
    return value
