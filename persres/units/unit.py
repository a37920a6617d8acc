"""The unit: one concept and one variant, config or class, with a frozen spec whose hash names its folder.

A unit is done when its manifest has the spec's hash and every file that the manifest lists exists with the recorded digest. The
manifest is written last, by an atomic rename.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from persres.units.files import digest_file, digest_files, write_atomic
from persres.units.specs import Spec

MANIFEST = "manifest.json"
READY = "ready.json"  # in a batch's folder: the manifests of its units, until each is in the unit's folder
S = TypeVar("S", bound=Spec)


@dataclass(frozen=True)
class Unit(Generic[S]):
    """One piece of resumable work; ``spec`` holds everything that its result depends on."""

    stage: str
    name: str
    spec: S

    @cached_property
    def hash(self) -> str:
        """The name of the unit's folder: 16 hex digits of the SHA-256 of the spec's identity."""
        return hashlib.sha256(f"{self.stage}\n{self.name}\n{self.spec.identity()}".encode()).hexdigest()[:16]

    def folder(self, work: Path) -> Path:
        """The folder of the unit's checkpoint, results and manifest."""
        return work / self.stage / self.hash


def is_done(unit: Unit, work: Path) -> bool:
    """Whether the manifest matches the spec and the files match the manifest."""
    folder = unit.folder(work)
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["spec_hash"] != unit.hash:
            return False
        return _match(manifest, folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _match(manifest: dict[str, Any], folder: Path) -> bool:
    try:
        return all(digest_file(folder / name) == digest for name, digest in manifest["files"].items())
    except OSError:
        return False


def finish(unit: Unit, work: Path, files: list[Path], facts: dict[str, Any] | None = None) -> None:
    """Write the manifest, which makes the unit done. ``facts``: seconds, memory, versions of the run."""
    write_atomic(unit.folder(work) / MANIFEST, _as_bytes(_manifest(unit, work, files, facts)))


def _manifest(unit: Unit, work: Path, files: list[Path], facts: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "spec_hash": unit.hash,
        "name": unit.name,
        "stage": unit.stage,
        "spec": unit.spec.model_dump(mode="json"),
        "files": digest_files(files, unit.folder(work)),
        "facts": facts or {},
    }


def _as_bytes(manifest: dict[str, Any]) -> bytes:
    return json.dumps(manifest, indent=1, sort_keys=True).encode()


def batch_folder(units: list[Unit], work: Path) -> Path:
    """The folder of the checkpoint of units that run in one batch."""
    identity = "\n".join(unit.hash for unit in units)
    return work / units[0].stage / f"batch-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def finish_batch(units: list[Unit], work: Path, files: list[list[Path]], facts: list[dict[str, Any]]) -> None:
    """Write the manifests of units that ran in one batch, and remove the batch's folder.

    All manifests are first written to that folder, so that after a kill between two of them no unit runs again.
    """
    manifests = [_manifest(unit, work, *rest) for unit, *rest in zip(units, files, facts, strict=True)]
    ready = batch_folder(units, work) / READY
    write_atomic(ready, json.dumps(manifests).encode())
    _write_manifests(ready, manifests)


def finish_interrupted(stage: str, work: Path) -> None:
    """Complete what a kill interrupted in :func:`finish_batch`; only while nothing else runs the stage."""
    for ready in sorted((work / stage).glob(f"*/{READY}")):
        with suppress(FileNotFoundError):  # another worker of the same folder was faster
            _write_manifests(ready, json.loads(ready.read_text()))


def _write_manifests(ready: Path, manifests: list[dict[str, Any]]) -> None:
    for manifest in manifests:
        folder = ready.parent.parent / manifest["spec_hash"]
        if _match(manifest, folder):
            write_atomic(folder / MANIFEST, _as_bytes(manifest))
    shutil.rmtree(ready.parent, ignore_errors=True)


def facts(unit: Unit, work: Path) -> dict[str, Any]:
    """The facts that a finished unit recorded about its run (seconds, memory, versions)."""
    return json.loads((unit.folder(work) / MANIFEST).read_text())["facts"]


def amend(unit: Unit, work: Path, more: dict[str, Any]) -> None:
    """Add facts to a finished unit's manifest, by the same atomic rename."""
    path = unit.folder(work) / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["facts"] |= more
    write_atomic(path, _as_bytes(manifest))
