"""Units in shards of like cost: what one agent is given at a time. An agent's start takes seconds, so a unit is too little to send."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import BaseModel, ConfigDict

from persres.estimate import IMAGE_STEPS, PAPER_BATCH, MeasuredSeconds
from persres.fleet.jobs import job_type
from persres.units.unit import MANIFEST, Unit

SECONDS_PER_SCORED = 0.1  # a picture, where nothing was measured yet; no published rate is known


class Shard(BaseModel):
    """Units of one stage for one agent. ``options``: what decides how fast, never what (batch, offload).
    ``together``: how many units an agent may do at once, None as many as it finds room for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    stage: str
    attempt: int
    device: str
    options: dict[str, Any]
    together: int | None = 1
    units: tuple[dict[str, Any], ...]

    @property
    def key(self) -> str:
        """Its place in the store."""
        return f"shards/{self.id}.json"


def make_shard(
    units: list[dict[str, Any]], attempt: int, device: str, options: dict[str, Any], together: int | None = 1
) -> Shard:
    """Named by what it holds and by the attempt: the same work sent twice is the same shard."""
    text = json.dumps([sorted(raw["hash"] for raw in units), attempt])
    stage = units[0]["stage"]
    name = hashlib.sha256(f"{stage}\n{text}".encode()).hexdigest()[:16]
    return Shard(
        id=name,
        stage=stage,
        attempt=attempt,
        device=device,
        options=options,
        together=together,
        units=tuple(units),
    )


def group(units: list[Unit], seconds: dict[str, float], count: int) -> list[list[Unit]]:
    """At most ``count`` groups of like total, the dearest unit first into the cheapest group (longest processing time)."""
    groups: list[list[Unit]] = [[] for _ in range(min(count, len(units)))]
    totals = [0.0] * len(groups)
    for unit in sorted(units, key=lambda unit: (-seconds[unit.hash], unit.name)):
        least = totals.index(min(totals))
        groups[least].append(unit)
        totals[least] += seconds[unit.hash]
    return groups


def estimates(units: list[Unit], work: Path, rates: MeasuredSeconds) -> dict[str, float]:
    """Seconds by unit hash: the median of what the same method took here before per step and picture, else of the stage, else the plan's
    figures. They decide who does what, never the result, so a wrong one only costs time."""
    measured, stage = _measured(units[0].stage, work), units[0].stage
    whole = [rate for rates_of in measured.values() for rate in rates_of]
    fallback = median(whole) if whole else _planned(stage, rates)
    size = job_type(stage).size
    return {u.hash: size(u.spec) * median(measured.get(_group(u.name), [fallback])) for u in units}


def _group(name: str) -> str:
    return name.rpartition("/")[0]


def _measured(stage: str, work: Path) -> dict[str, list[float]]:
    """Seconds per size by variant or method, of units that one run made whole."""
    found: dict[str, list[float]] = {}
    for path in (work / stage).glob(f"*/{MANIFEST}"):
        try:
            manifest = json.loads(path.read_text())
            facts = manifest["facts"]
            rate = facts["seconds"] / _size(stage, manifest["spec"])
            if facts.get("drawn") == facts.get("pictures") and rate > 0:
                found.setdefault(_group(manifest["name"]), []).append(rate)
        except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
            continue  # another version's: only an estimate is lost
    return found


def _size(stage: str, spec: dict[str, Any]) -> float:
    """As :class:`persres.fleet.jobs.JobType` has it, of a manifest's spec."""
    if stage == "train":
        return spec["settings"]["steps"] * spec["settings"]["batch_size"]
    if stage == "sample":
        return len(spec["prompts"]) * spec["sampling"]["images_per_prompt"] * spec["sampling"]["steps"]
    if stage == "class_images":
        return spec["count"] * spec["steps"]
    return len(spec["image_specs"]) if stage == "score" else 1.0


def _planned(stage: str, rates: MeasuredSeconds) -> float:
    if stage == "train":
        return rates.train_step_s / PAPER_BATCH
    if stage in ("sample", "class_images"):
        return rates.image_s / IMAGE_STEPS
    return SECONDS_PER_SCORED
