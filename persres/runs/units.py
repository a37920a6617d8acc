"""The unit: one concept × one variant, a frozen spec whose hash names its folder.

A unit is done when its manifest carries the spec's hash and every file it lists is there with
its recorded digest. The manifest is written last, by an atomic rename.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from persres.runs.files import digest_file, digest_files, write_atomic
from persres.runs.specs import Spec

MANIFEST = "manifest.json"
S = TypeVar("S", bound=Spec)


@dataclass(frozen=True)
class Unit(Generic[S]):
    """``spec`` holds everything that the result depends on."""

    stage: str
    name: str
    spec: S

    @cached_property
    def hash(self) -> str:
        """Names the unit's folder: 16 hex digits of the SHA-256 of the spec's identity."""
        return hashlib.sha256(f"{self.stage}\n{self.name}\n{self.spec.identity()}".encode()).hexdigest()[:16]

    def folder(self, work: Path) -> Path:
        """Where the unit works and keeps what it made."""
        return work / self.stage / self.hash


def is_done(unit: Unit, work: Path) -> bool:
    """Whether the manifest matches the spec and the files match the manifest."""
    folder = unit.folder(work)
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["spec_hash"] != unit.hash:
            return False
        return all(digest_file(folder / name) == digest for name, digest in manifest["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def finish(unit: Unit, work: Path, files: list[Path], facts: dict[str, Any] | None = None) -> None:
    """Write the manifest: after this the unit is done."""
    folder = unit.folder(work)
    manifest = {
        "spec_hash": unit.hash,
        "name": unit.name,
        "stage": unit.stage,
        "spec": unit.spec.model_dump(mode="json"),
        "files": digest_files(files, folder),
        "facts": facts or {},
    }
    write_atomic(folder / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())


def facts(unit: Unit, work: Path) -> dict[str, Any]:
    """What a finished unit recorded about its run (seconds, memory, versions)."""
    return json.loads((unit.folder(work) / MANIFEST).read_text())["facts"]


def amend(unit: Unit, work: Path, more: dict[str, Any]) -> None:
    """Add facts to a finished unit's manifest, by the same atomic rename."""
    path = unit.folder(work) / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["facts"] |= more
    write_atomic(path, json.dumps(manifest, indent=1, sort_keys=True).encode())
