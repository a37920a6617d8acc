"""The unit: one concept and one variant, config or class, with a frozen spec whose hash names its folder.

A unit is done when its manifest has the spec's hash and lists the files that its stage makes (:data:`RESULTS`), and each exists with
the recorded digest. The manifest is written last, by an atomic rename.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from persres.errors import PersresError
from persres.units.files import digest_file, digest_files, write_atomic
from persres.units.specs import Spec
from persres.untrusted.documents import parse_json, read_file
from persres.untrusted.fields import FileName, Identifier, Sha256, ShortText, UnitHash

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
READY = "ready.json"  # in a batch's folder: the manifests of its units, until each is in the unit's folder
RESULTS = {  # by stage, the files of a finished unit; one of another stage has one file at least
    "class_images": {"images.zip"},
    "early_stopping_score": {"scores.csv"},
    "early_stopping_trace": {"states.safetensors", "trace.json"},
    "masked_lora_sample": {"rows.parquet", "shown.zip"},
    "masked_lora_train": {"kohya.safetensors", "lora.safetensors"},
    "noop": {"number.txt"},
    "nouns": {"features.safetensors"},
    "sample": {"images.zip"},
    "score": {"scores.parquet"},
    "train": {"learned.safetensors", "log.jsonl"},
}
S = TypeVar("S", bound=Spec)
Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Facts(BaseModel):
    """What a run recorded of itself; a stage adds others."""

    model_config = ConfigDict(extra="allow", strict=True)

    seconds: Number = 0.0
    peak_mib: Number = 0.0
    parameters: int = 0
    images: int = 0
    sampled: int = 0
    steps: int = 0
    device: str = ""


class Manifest(BaseModel):
    """What a finished unit is: whose, its files with their digests, and facts about its run."""

    model_config = ConfigDict(extra="allow", frozen=True)

    spec_hash: UnitHash
    stage: Identifier
    name: ShortText
    spec: dict[str, Any]
    files: dict[FileName, Sha256]
    facts: Facts = Facts()

    def problem(self) -> str | None:
        """Return why this is no manifest of a finished unit of its stage; None if it is one."""
        expected = RESULTS.get(self.stage)
        if not self.files or (expected and set(self.files) != expected):
            return (
                f"its files are not those of a unit of {self.stage}: {', '.join(sorted(expected or ['one at least']))}"
            )
        if self.stage == "sample" and "parameters" not in self.facts.model_fields_set:
            return "facts.parameters is missing, which the tables report"
        return None


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
    """Whether the manifest is that of the finished unit and the files match it."""
    folder = unit.folder(work)
    try:
        manifest = read_manifest(read_file(folder / MANIFEST), unit, folder / MANIFEST)
    except PersresError:
        return False
    return _match(manifest, folder)


def read_manifest(data: bytes, unit: Unit, name: object) -> Manifest:
    """The manifest of a finished unit; ``name`` is what an error calls it.

    Raises PersresError if it is malformed, another unit's, or without the files of its stage.
    """
    manifest = parse_json(data, Manifest, name)
    other = (manifest.spec_hash, manifest.stage) != (unit.hash, unit.stage)
    problem = "it belongs to another unit" if other else manifest.problem()
    if problem:
        raise PersresError(f"{name} is not the manifest of {unit.name}: {problem}; remove it")
    return manifest


def _match(manifest: Manifest, folder: Path) -> bool:
    try:
        return all(digest_file(folder / name) == digest for name, digest in manifest.files.items())
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
            data = ready.read_bytes()
            try:
                parse_json(data, list[Manifest], ready)
            except PersresError as error:
                log.warning("%s; its units run again", error)
                ready.unlink()
            else:
                _write_manifests(ready, json.loads(data))


def _write_manifests(ready: Path, manifests: list[dict[str, Any]]) -> None:
    for raw in manifests:
        manifest, folder = Manifest(**raw), ready.parent.parent / raw["spec_hash"]
        if not manifest.problem() and _match(manifest, folder):
            write_atomic(folder / MANIFEST, _as_bytes(raw))
    shutil.rmtree(ready.parent, ignore_errors=True)


def facts(unit: Unit, work: Path) -> dict[str, Any]:
    """The facts that a finished unit recorded about its run (seconds, memory, versions)."""
    return json.loads((unit.folder(work) / MANIFEST).read_bytes()).get("facts", {})


def amend(unit: Unit, work: Path, more: dict[str, Any]) -> None:
    """Add facts to a finished unit's manifest, by the same atomic rename."""
    path = unit.folder(work) / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["facts"] = manifest.get("facts", {}) | more
    write_atomic(path, _as_bytes(manifest))
