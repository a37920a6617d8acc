"""Groups units into shards of similar cost, each for one worker. A worker's start takes seconds, so single units are not sent."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationInfo, field_validator
from typing_extensions import TypedDict  # pydantic needs it below Python 3.12

from persres.planning.estimate import MeasuredSeconds
from persres.planning.measured_runs import measured_units
from persres.stages.jobs import job_type
from persres.units.unit import Unit
from persres.untrusted.fields import Identifier, ShortText, UnitHash

Count = Annotated[int, Field(ge=0, le=1_000_000, strict=True)]


class UnitJson(TypedDict):
    """A unit as :func:`persres.fleet.serialization.unit_to_json` writes it."""

    stage: Identifier
    name: ShortText
    hash: UnitHash
    spec: dict[str, Any]


class Shard(BaseModel):
    """Units of one stage for one worker. ``options`` are the stage's (batch sizes, offloading): they affect speed only."""

    model_config = ConfigDict(frozen=True, extra="ignore")  # a shard of version 0.1 has another field

    id: Identifier
    stage: Identifier
    attempt: int
    device: ShortText
    options: dict[Identifier, StrictBool | Count | Literal["auto"]]
    units: tuple[UnitJson, ...]

    @field_validator("units")
    @classmethod
    def _of_the_stage(cls, units: tuple[UnitJson, ...], info: ValidationInfo) -> tuple[UnitJson, ...]:
        if any(raw["stage"] != info.data.get("stage") for raw in units) or len({raw["hash"] for raw in units}) < len(
            units
        ):
            raise ValueError("a unit is of another stage, or twice in the shard")
        return units

    @property
    def key(self) -> str:
        """Its key in the store."""
        return f"shards/{self.id}.json"


def make_shard(units: list[dict[str, Any]], attempt: int, device: str, options: dict[str, Any]) -> Shard:
    """A shard whose id follows from its units and the attempt: the same work sent twice is the same shard."""
    identity = json.dumps([sorted(raw["hash"] for raw in units), attempt])
    stage = units[0]["stage"]
    shard_id = hashlib.sha256(f"{stage}\n{identity}".encode()).hexdigest()[:16]
    return Shard(id=shard_id, stage=stage, attempt=attempt, device=device, options=options, units=tuple(units))


def group_by_cost(units: list[Unit], seconds: dict[str, float], count: int) -> list[list[Unit]]:
    """At most ``count`` groups of similar total: the longest unit goes first, into the shortest group (longest processing time)."""
    groups: list[list[Unit]] = [[] for _ in range(min(count, len(units)))]
    totals = [0.0] * len(groups)
    for unit in sorted(units, key=lambda unit: (-seconds[unit.hash], unit.name)):
        shortest = totals.index(min(totals))
        groups[shortest].append(unit)
        totals[shortest] += seconds[unit.hash]
    return groups


def estimate_seconds(units: list[Unit], work: Path, defaults: MeasuredSeconds) -> dict[str, float]:
    """Seconds by unit hash, from the median rate of the same variant or config in earlier manifests, else of the stage, else ``defaults``.

    They only decide which worker runs what: a wrong one costs time, never a result.
    """
    stage = units[0].stage
    job, measured = job_type(stage), _measured_rates(stage, work)
    every = [rate for some in measured.values() for rate in some]
    default = median(every) if every else getattr(defaults, job.rate)
    return {unit.hash: job.cost(unit.spec) * median(measured.get(_group(unit.name), [default])) for unit in units}


def _group(name: str) -> str:
    return name.rpartition("/")[0]


def _measured_rates(stage: str, work: Path) -> dict[str, list[float]]:
    """Seconds per cost by variant or config, of units that one run made whole."""
    measured: dict[str, list[float]] = {}
    for manifest, _, rate in measured_units(stage, work):
        measured.setdefault(_group(manifest.name), []).append(rate)
    return measured
