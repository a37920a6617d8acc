"""Units that run several at a time: which ones share a batch, and how many fit.

Both follow from all units of the stage, never from those that are left: sums over another batch differ in their last bits, and a
resumed run must give the same results. A measured batch size is therefore written to disk.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import PositiveInt

from persres.errors import PersresError
from persres.units.files import write_atomic
from persres.units.unit import Unit
from persres.untrusted.documents import read_json

log = logging.getLogger(__name__)
BATCH_SIZES = "batch_sizes.json"  # in a stage's work folder: the measured sizes

UnitFunction = Callable[[Unit, Path, str], None]  # unit, work folder, device
Measure = Callable[[Iterable[Unit], str, int], int]  # units, device, workers -> units that fit


def alone(unit: Unit) -> str | None:
    """The batch key of units that share no batch."""
    return None


class WorkerStartError(PersresError):
    """The worker processes end before they begin."""


@dataclass(frozen=True)
class Job:
    """The function that runs a unit, and what runs several in one batch if anything can.

    ``run_many`` returns errors by unit name, of units that are at fault themselves; what it raises concerns the whole batch. Units
    with equal ``batch_key`` may share a batch; a unit with the key None runs alone. ``batch_size`` is the largest batch, or measures
    it. ``options`` are the stage's, from which another machine makes the same job.
    """

    run: UnitFunction
    run_many: Callable[[list[Unit], Path, str], dict[str, Exception]] | None = None
    batch_key: Callable[[Unit], str | None] = alone
    batch_size: int | Measure = 1
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """How the units of a stage run: a job in ``workers`` processes of ``threads`` threads each."""

    job: Job
    work: Path
    device: str
    workers: int
    threads: int


def split_evenly(units: list[Unit], most: int) -> list[list[Unit]]:
    """The fewest parts of at most ``most`` units, of nearly equal size, in order."""
    parts = -(-len(units) // most)
    bounds = [len(units) * part // parts for part in range(parts + 1)] if parts else [0]
    return [units[start:end] for start, end in pairwise(bounds)]


def group_units(units: list[Unit], batch_key: Callable[[Unit], str | None]) -> list[list[Unit]]:
    """Units grouped by batch key, in the order of each group's first; a unit without a key is a group of its own."""
    groups: dict[object, list[Unit]] = {}
    for number, unit in enumerate(units):
        key = batch_key(unit)
        groups.setdefault(number if key is None else key, []).append(unit)
    return list(groups.values())


def plan_batches(
    units: list[Unit], todo: list[Unit], run: Run, measure: Callable[[list[Unit]], int]
) -> list[list[Unit]]:
    """The units of ``todo`` in batches that all ``units`` determine; every worker gets a share of each group.

    ``measure`` returns how many units of a group fit into memory at once.
    """
    left, batches = {unit.hash for unit in todo}, []
    for group in group_units(units, run.job.batch_key):
        most = -(-len(group) // run.workers)
        if most > 1 and any(unit.hash in left for unit in group):
            size = run.job.batch_size
            most = min(most, size if isinstance(size, int) else _measured_size(group, run, measure))
        batches += [[unit for unit in batch if unit.hash in left] for batch in split_evenly(group, most)]
    return [batch for batch in batches if batch]


def _measured_size(group: list[Unit], run: Run, measure: Callable[[list[Unit]], int]) -> int:
    """The batch size measured for this group before, else measured now; 1 if that fails."""
    path = run.work / group[0].stage / BATCH_SIZES
    identity = json.dumps([run.workers, run.device, sorted(unit.hash for unit in group)])
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]
    sizes = _read_sizes(path)
    if key not in sizes:
        try:
            sizes[key] = max(1, measure(group))
        except WorkerStartError:
            raise
        except Exception as error:
            log.warning("%s: cannot measure the batch size (%s); units run one by one", group[0].name, error)
            sizes[key] = 1
        log.info("%s: %d of %d units fit into a batch", group[0].name, sizes[key], len(group))
        write_atomic(path, json.dumps(sizes, indent=1, sort_keys=True).encode())
    return sizes[key]


def _read_sizes(path: Path) -> dict[str, int]:
    """The sizes measured so far; none if there is no file, or if it is damaged: they are measured again."""
    try:
        return read_json(path, dict[str, PositiveInt])
    except PersresError:
        return {}
