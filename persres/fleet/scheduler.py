"""The parent of a fleet: sends what is not done, gathers what was, and says once what is not.

Who runs a shard and where is ``send``'s business (Prefect's in flows/fleet.py, this process's in a test). The parent trusts manifests
and digests alone: a shard that says it is finished and isn't is sent again, one that died after its last unit is not.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from persres.errors import PersresError, UnitFailures
from persres.estimate import read_measured_seconds
from persres.fleet.content_store import Damaged, get_unit, put_input, references
from persres.fleet.jobs import job_type, unit_to_json
from persres.fleet.shards import Shard, estimates, group, make_shard
from persres.fleet.store import Store, open_store
from persres.fleet.worker import ShardReport, mark_key, report_key
from persres.units.batches import Batches, Work
from persres.units.unit import Unit, is_done

log = logging.getLogger(__name__)
DEATHS = 2  # of its worker, after which a unit is set aside


@dataclass(frozen=True)
class Progress:
    """Where a stage stands. ``seconds`` since it began here, ``before`` units that were done then."""

    stage: str
    done: int
    total: int
    seconds: float
    before: int

    @property
    def per_hour(self) -> float:
        """Units an hour at the pace so far; 0 where there is none yet."""
        return (self.done - self.before) / self.seconds * 3600 if self.seconds > 0 else 0.0

    @property
    def left(self) -> float | None:
        """Seconds that are left at that pace; None where there is none yet."""
        return (self.total - self.done) / self.per_hour * 3600 if self.per_hour else None


@dataclass(frozen=True)
class ShardOutcome:
    """How a shard's run ended: ``died`` says why where it did not end by itself; ``log`` is where its log is; ``said`` is its own last
    word where it failed, which counts where it left no report."""

    died: str | None = None
    log: str = ""
    said: str = ""


# Runs shards, calls ``tick`` now and then, returns when all have ended, by shard id.
Send = Callable[[list[Shard], Callable[[], None]], dict[str, ShardOutcome]]


@dataclass(frozen=True)
class Fleet:
    """Has the signature of :func:`persres.units.pool.run_units` and takes its place (``Context.place``)."""

    store: str
    send: Send
    shards: int = 8
    attempts: int = 3
    report: Callable[[Progress], None] = lambda progress: None
    data: Path = Path("data")  # where measured rates lie

    def __call__(self, units: list[Unit], work: Path, function: Work, workers: int, device: str) -> None:
        """Every unit done here in ``work``, or UnitFailures once, naming units, reasons and where their logs are."""
        if not units:
            return
        together = function.most if isinstance(function, Batches) else 1
        run = _Run(self, open_store(self.store), units, work, _options(units[0].stage, function), together, device)
        failures = run.until_done()
        if failures:
            raise UnitFailures(units[0].stage, failures, len(units))


def _options(stage: str, function: Work) -> dict[str, Any]:
    """What the stage would have called its function with. Raises PersresError where that is not the one agents call."""
    function = function.one if isinstance(function, Batches) else function
    inner, options = (function.func, function.keywords) if isinstance(function, partial) else (function, {})
    if inner is not job_type(stage).function:
        raise PersresError(
            f"{stage}: agents do its units by {job_type(stage).work}; register what does them in fleet/kinds.py"
        )
    return options


class _Run:
    """One stage's way through the fleet."""

    def __init__(
        self,
        fleet: Fleet,
        store: Store,
        units: list[Unit],
        work: Path,
        options: dict[str, Any],
        together: int | None,
        device: str,
    ) -> None:
        self.fleet, self.store, self.units, self.work = fleet, store, units, work
        self.options, self.together, self.device, self.stage = options, together, device, units[0].stage
        self.deaths: dict[str, int] = {}
        self.reasons: dict[str, str] = {}  # by hash, of the last attempt
        self.todo = {unit.hash: unit for unit in units if not is_done(unit, work)}
        self.started = time.monotonic()
        self.gather()
        self.before = len(units) - len(self.todo)
        self.tick()

    def until_done(self) -> dict[str, str]:
        """Reasons by name of the units that failed; empty where all are done."""
        failed: dict[str, str] = {}
        log.info("%s: %d units, %d already done", self.stage, len(self.units), self.before)
        for attempt in range(self.fleet.attempts):
            open_units = [unit for key, unit in self.todo.items() if key not in failed]
            if not open_units:
                break
            self.reasons.clear()
            shards = self.prepare(open_units, attempt)
            ended = self.fleet.send(shards, self.tick)
            self.tick()
            for shard in shards:
                failed |= self.judge(shard, ended.get(shard.id, ShardOutcome("nobody ran it")))
        aside = f"not finished after {self.fleet.attempts} attempts"
        return {
            u.name: failed.get(key) or f"{aside}: {self.reasons.get(key, 'no word')}" for key, u in self.todo.items()
        }

    def prepare(self, units: list[Unit], attempt: int) -> list[Shard]:
        """Inputs into the store, then the shards. A unit that was at hand when its worker died goes alone, so that a second death is its
        own."""
        for reference in {ref.digest: ref for unit in units for ref in references(unit.spec)}.values():
            put_input(self.store, reference)
        suspects = [[unit] for unit in units if self.deaths.get(unit.hash)]
        others = [unit for unit in units if not self.deaths.get(unit.hash)]
        rates = read_measured_seconds(self.fleet.data / "bench" / "gpu.json")
        groups = group(others, estimates(others, self.work, rates), self.fleet.shards) if others else []
        shards = [
            make_shard([unit_to_json(unit) for unit in some], attempt, self.device, self.options, self.together)
            for some in [*groups, *suspects]
        ]
        for shard in shards:
            self.store.remove(report_key(shard.id))
            self.store.write(shard.key, shard.model_dump_json().encode())
        return shards

    def gather(self) -> None:
        """Bring here what is finished, every digest checked."""
        if not self.todo:
            return
        finished = {key.rpartition("/")[2] for key in self.store.keys(f"units/{self.stage}/")}
        for key in [key for key in self.todo if f"{key}.json" in finished]:
            try:
                if get_unit(self.store, self.todo[key], self.work):
                    del self.todo[key]
            except Damaged as error:
                self.reasons[key] = str(error)
                log.warning("%s", error)

    def tick(self) -> None:
        """Gather, and say how far it is."""
        self.gather()
        done, seconds = len(self.units) - len(self.todo), time.monotonic() - self.started
        self.fleet.report(Progress(self.stage, done, len(self.units), seconds, self.before))

    def judge(self, shard: Shard, ended: ShardOutcome) -> dict[str, str]:
        """What a shard left undone: failed for good, or to be sent again. By hash."""
        report, failed, log_line = self.read_report(shard), {}, f" (log: {ended.log})" if ended.log else ""
        for key in [raw["hash"] for raw in shard.units if raw["hash"] in self.todo]:
            if key in report.failed:
                failed[key] = report.failed[key] + log_line
                continue
            reason = ended.died or report.unfinished.get(key) or _without(ended)
            self.reasons[key] = self.reasons.get(key) or reason + log_line
            if self.was_at(shard, key) >= DEATHS:
                failed[key] = f"set aside: its worker died {DEATHS} times while at it: {reason}{log_line}"
        return failed

    def was_at(self, shard: Shard, key: str) -> int:
        """How often workers have died while at a unit, the death of this shard's counted in."""
        mark = mark_key(self.todo[key], shard.id)
        if self.store.has(mark):
            self.store.remove(mark)
            self.deaths[key] = self.deaths.get(key, 0) + 1
        return self.deaths.get(key, 0)

    def read_report(self, shard: Shard) -> ShardReport:
        """Empty where the agent died before it wrote one."""
        data = self.store.read(report_key(shard.id))
        return ShardReport(**json.loads(data)) if data else ShardReport()


def _without(ended: ShardOutcome) -> str:
    return f"its agent ended without it: {ended.said}" if ended.said else "its agent ended without it"
