"""Inputs and results of units in a store, by digest: a key never changes its meaning.

``blobs/<2 digits>/<sha256>`` is a file. ``folders/<sha256>`` is the JSON of a folder's files and their digests, whose SHA-256 is the
folder's digest. ``units/<stage>/<hash>.json`` is a unit's manifest, written last and only once. Two writers of a unit are harmless:
each manifest names the files of its writer, and the first manifest stays.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from persres.errors import PersresError
from persres.fleet.store import Store
from persres.units.files import digest_file, digest_files, digest_folder, write_atomic
from persres.units.specs import FileRef
from persres.units.unit import MANIFEST, Unit

IN_STORE = "in_store"  # in a unit's folder on a worker: a file that marks that the store has all of the unit


class Damaged(PersresError):
    """The bytes of an object do not match its digest."""


def blob_key(digest: str) -> str:
    """The key of a file."""
    return f"blobs/{digest[:2]}/{digest}"


def folder_key(digest: str) -> str:
    """The key of a folder's list of files."""
    return f"folders/{digest}"


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
    """The path of a file or a folder in a machine's cache."""
    return cache / reference.digest[:2] / reference.digest / Path(reference.path).name


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
    listing = store.read(folder_key(digest))
    if listing is None or hashlib.sha256(listing).hexdigest() != digest:
        store.remove(folder_key(digest))
        raise Damaged(f"{blob_key(digest)} ({path.name}) is not in the store; run the stage again to upload it")
    fresh = path.with_name(f".{path.name}.fresh")
    for name, inner in json.loads(listing).items():
        _fetch(store, inner, fresh / name)
    if not path.exists():  # the name appears when the folder is complete
        fresh.rename(path)


def put_unit(store: Store, unit: Unit, work: Path) -> None:
    """Upload a finished unit: its files, then its manifest, unless the store has another writer's."""
    folder = unit.folder(work)
    manifest = json.loads((folder / MANIFEST).read_text())
    for name, digest in manifest["files"].items():
        if not store.has(blob_key(digest)):
            store.upload(folder / name, blob_key(digest))
    store.write(manifest_key(unit), json.dumps(manifest, sort_keys=True).encode(), only_new=True)
    (folder / IN_STORE).touch()


def get_unit(store: Store, unit: Unit, work: Path) -> bool:
    """Download a finished unit, files checked and manifest last; returns False if it is not finished.

    Raises Damaged if an object does not match the manifest. The manifest is removed then, so that the unit runs again.
    """
    data = store.read(manifest_key(unit))
    if data is None:
        return False
    folder = unit.folder(work)
    try:
        manifest = json.loads(data)
        if manifest["spec_hash"] != unit.hash:
            raise ValueError("it belongs to another unit")
        for name, digest in manifest["files"].items():
            if not _download(store, digest, folder / name):
                raise Damaged(f"{blob_key(digest)} ({name}) is not in the store")
    except (ValueError, KeyError, TypeError, AttributeError, Damaged) as error:
        store.remove(manifest_key(unit))
        raise Damaged(f"{manifest_key(unit)} ({unit.name}) is damaged: {error}; the unit runs again") from error
    write_atomic(folder / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())
    return True


def _download(store: Store, digest: str, path: Path) -> bool:
    """Download and check a file; returns False if the store does not have it. A damaged object is removed, to be uploaded again."""
    if path.is_file() and digest_file(path) == digest:
        return True
    if not store.download(blob_key(digest), path):
        return False
    if digest_file(path) != digest:
        path.unlink()
        store.remove(blob_key(digest))
        raise Damaged(f"{blob_key(digest)} ({path.name}) was damaged in the store and is removed; run the stage again")
    return True


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
