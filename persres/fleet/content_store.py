"""What units read and make, by digest: nothing in the store has a name that could come to mean something else.

``blobs/<sha256>`` holds a file; ``folders/<sha256>`` the JSON of a folder's files and their digests, whose own digest is the folder's.
``units/<stage>/<hash>.json`` is a unit's manifest, written last and only once. Two writers of one unit waste work and harm nothing: each manifest names
the files of its writer, and the first stands.
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

STORED_STAGES = "in_store"  # of a unit's folder on an agent: a file that says that the store has it all


class Damaged(PersresError):
    """An object is not what its digest says."""


def blob_key(digest: str) -> str:
    """Of a file."""
    return f"blobs/{digest[:2]}/{digest}"


def folder_key(digest: str) -> str:
    """Of a folder's list of files."""
    return f"folders/{digest}"


def manifest_key(unit: Unit) -> str:
    """Of a unit."""
    return f"units/{unit.stage}/{unit.hash}.json"


def references(value: Any) -> Iterator[FileRef]:
    """Every file and folder that a spec reads."""
    if isinstance(value, FileRef):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from references(getattr(value, name))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from references(inner)


def put_input(store: Store, reference: FileRef) -> None:
    """A file or a folder, where the store hasn't got it yet. Raises PersresError where it is no longer what the spec was made from."""
    path = Path(reference.path)
    if store.has(folder_key(reference.digest) if path.is_dir() else blob_key(reference.digest)):
        return
    if path.is_dir():
        files = digest_files([p for p in path.rglob("*") if p.is_file()], path)
        for name, digest in files.items():
            put_input(store, FileRef(path=str(path / name), digest=digest))
        listing = json.dumps(files, sort_keys=True).encode()  # as digest_folder has it
        _check(hashlib.sha256(listing).hexdigest(), reference, path)
        store.write(folder_key(reference.digest), listing)
        return
    _check(digest_file(path), reference, path)
    store.upload(path, blob_key(reference.digest))


def _check(found: str, reference: FileRef, path: Path) -> None:
    if found != reference.digest:
        raise PersresError(f"{path} has changed since its stage began; run the stage again")


def input_place(reference: FileRef, cache: Path) -> Path:
    """Where a file or a folder lies in a machine's cache."""
    return cache / reference.digest[:2] / reference.digest / Path(reference.path).name


def get_input(store: Store, reference: FileRef, cache: Path) -> FileRef:
    """The same, in a folder of this machine, fetched where it isn't there or is no longer what it was. All bytes are looked at each time:
    the unit reads them anyway, and that costs it more. Raises Damaged or StoreError naming the object."""
    place = input_place(reference, cache)
    if place.is_dir() and digest_folder(place) != reference.digest:
        gone = place.with_name(f".{place.name}.{uuid.uuid4().hex}.gone")  # whole until its name is free
        place.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
    if not place.is_dir():
        _fetch(store, reference.digest, place)
    return reference.localized(place)


def _fetch(store: Store, digest: str, place: Path) -> None:
    if _bring(store, digest, place):
        return
    listing = store.read(folder_key(digest))
    if listing is None or hashlib.sha256(listing).hexdigest() != digest:
        store.remove(folder_key(digest))
        raise Damaged(
            f"{blob_key(digest)} ({place.name}) is not in the store; run the stage again, which puts it there"
        )
    fresh = place.with_name(f".{place.name}.fresh")
    for name, inner in json.loads(listing).items():
        _fetch(store, inner, fresh / name)
    if not place.exists():  # it has its name when it is whole
        fresh.rename(place)


def put_unit(store: Store, unit: Unit, work: Path) -> None:
    """A finished unit: its files, then its manifest, unless another writer's stands."""
    folder = unit.folder(work)
    manifest = json.loads((folder / MANIFEST).read_text())
    for name, digest in manifest["files"].items():
        if not store.has(blob_key(digest)):
            store.upload(folder / name, blob_key(digest))
    store.write(manifest_key(unit), json.dumps(manifest, sort_keys=True).encode(), only_new=True)
    (folder / STORED_STAGES).touch()


def get_unit(store: Store, unit: Unit, work: Path) -> bool:
    """Bring a finished unit here, files checked, manifest last; False where it is not finished. Raises Damaged where an object is not
    what the manifest says: the manifest is taken away then, so that the unit is made again."""
    data = store.read(manifest_key(unit))
    if data is None:
        return False
    folder = unit.folder(work)
    try:
        manifest = json.loads(data)
        if manifest["spec_hash"] != unit.hash:
            raise ValueError("it is another unit's")
        for name, digest in manifest["files"].items():
            if not _bring(store, digest, folder / name):
                raise Damaged(f"{blob_key(digest)} ({name}) is not in the store")
    except (ValueError, KeyError, TypeError, AttributeError, Damaged) as error:
        store.remove(manifest_key(unit))
        raise Damaged(
            f"{manifest_key(unit)} ({unit.name}) can't be trusted: {error}; the unit is made again"
        ) from error
    write_atomic(folder / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())
    return True


def _bring(store: Store, digest: str, path: Path) -> bool:
    """A file, checked; False where it is not in the store. A damaged object is taken away, so that it can be put again."""
    if path.is_file() and digest_file(path) == digest:
        return True
    if not store.download(blob_key(digest), path):
        return False
    if digest_file(path) != digest:
        path.unlink()
        store.remove(blob_key(digest))
        raise Damaged(
            f"{blob_key(digest)} ({path.name}) was damaged in the store and is taken away; run the stage again"
        )
    return True


def fetch_inputs(store: Store, spec: Any, cache: Path) -> Any:
    """The spec with its files fetched here: places change, what it is does not."""
    return _mapped(spec, lambda reference: get_input(store, reference, cache))


def _mapped(value: Any, change: Any) -> Any:
    if isinstance(value, FileRef):
        return change(value)
    if isinstance(value, BaseModel):
        inner = {name: getattr(value, name) for name in type(value).model_fields}
        new = {name: _mapped(old, change) for name, old in inner.items()}
        return value.model_copy(update={name: new[name] for name in inner if new[name] is not inner[name]})
    if isinstance(value, tuple):
        new = tuple(_mapped(inner, change) for inner in value)
        return new if any(a is not b for a, b in zip(new, value, strict=True)) else value
    return value
