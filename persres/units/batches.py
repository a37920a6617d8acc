"""Units that are done several at a time: which go together, and how many.

Both follow from the plan, all units of the stage, and never from what is left to do: sums over another batch differ in their last
bits, and a resumed run should not. What was measured on the way is written down for the same reason.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from persres.units.files import write_atomic
from persres.units.unit import Unit

log = logging.getLogger(__name__)
BATCH_SIZES = "together.json"  # of a stage's work folder: how many were found to fit

Work = Callable[[Unit, Path, str], None]  # unit, work folder, device


@dataclass(frozen=True)
class Batches:
    """Work that can do several units at once; called, it does one, as any other.

    ``many`` does several in one go and returns errors by unit name: of units that are at fault themselves, while the others are
    done. What it raises is the whole batch's. ``alike`` gives units that may go together the same key, None to one that goes alone.
    ``most`` in one batch; None: as many as ``measure`` finds room for, of (units, device, workers).
    """

    one: Work
    many: Callable[[list[Unit], Path, str], dict[str, Exception]]
    alike: Callable[[Unit], str | None]
    measure: Callable[[Iterable[Unit], str, int], int]
    most: int | None = None

    def __call__(self, unit: Unit, work: Path, device: str) -> None:
        """One unit by itself."""
        self.one(unit, work, device)


def split_evenly(units: list[Unit], most: int) -> list[list[Unit]]:
    """In as few parts of at most so many as can be, all of like size, in order."""
    parts = -(-len(units) // most)
    bounds = [len(units) * part // parts for part in range(parts + 1)] if parts else [0]
    return [units[start:end] for start, end in pairwise(bounds)]


def groups_of(units: list[Unit], alike: Callable[[Unit], str | None]) -> list[list[Unit]]:
    """Units that may go together, in the order of each family's first; one without a key is a family of its own."""
    found: dict[object, list[Unit]] = {}
    for number, unit in enumerate(units):
        key = alike(unit)
        found.setdefault(number if key is None else key, []).append(unit)
    return list(found.values())


def plan_batches(
    units: list[Unit],
    todo: list[Unit],
    function: Work,
    work: Path,
    workers: int,
    device: str,
    measure: Callable[[Callable[[], int]], int],
) -> list[list[Unit]]:
    """What is to be done, in batches that the whole plan decides: every worker gets a share of each family, so none holds more than
    its part. ``measure`` calls what measures, where units run."""
    if not isinstance(function, Batches):
        return [[unit] for unit in todo]
    left, batches = {unit.hash for unit in todo}, []
    for family in groups_of(units, function.alike):
        most = -(-len(family) // workers)
        if most > 1 and any(unit.hash in left for unit in family):
            most = min(most, function.most or _room(family, function, work, workers, device, measure))
        batches += [[unit for unit in some if unit.hash in left] for some in split_evenly(family, most)]
    return [some for some in batches if some]


def _room(family: list[Unit], function: Batches, work: Path, workers: int, device: str, measure) -> int:
    """As it was found for this family before, else as it is now; one at a time where that can't be told."""
    path = work / family[0].stage / BATCH_SIZES
    said = json.dumps([workers, device, sorted(unit.hash for unit in family)])
    key = hashlib.sha256(said.encode()).hexdigest()[:16]
    known = _known(path)
    if key not in known:
        try:
            known[key] = max(1, measure(_Measured(function, family, device, workers)))
        except Exception as error:
            log.warning("%s: room for several at once can't be told (%s); one by one", family[0].name, error)
            known[key] = 1
        log.info("%s: room for %d of %d units at once", family[0].name, known[key], len(family))
        write_atomic(path, json.dumps(known, indent=1, sort_keys=True).encode())
    return known[key]


@dataclass(frozen=True)
class _Measured:
    """A call that another process can be given."""

    function: Batches
    family: list[Unit]
    device: str
    workers: int

    def __call__(self) -> int:
        return self.function.measure(self.family, self.device, self.workers)


def _known(path: Path) -> dict[str, int]:
    try:
        return {str(key): int(count) for key, count in json.loads(path.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
