"""The scheduler of a fleet: sends the units that are not done, gathers results, and reports once what failed.

``send`` decides who runs a shard and where (Prefect in flows/fleet.py, this process in a test). The scheduler relies only on manifests
and digests: it sends a shard again if it reports success without results, and not if its worker died after the last unit.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from persres.errors import PersresError, UnitFailures
from persres.fleet.content_store import Damaged, get_unit, put_input, references
from persres.fleet.serialization import unit_to_json
from persres.fleet.shards import Shard, estimate_seconds, group_by_cost, make_shard
from persres.fleet.store import StoreError, open_store
from persres.fleet.worker import ShardReport, mark_key, report_key
from persres.planning.estimate import read_measured_seconds
from persres.units.batches import Job
from persres.units.unit import Unit, is_done
from persres.untrusted.documents import parse_json
from persres.untrusted.text import printable, redacted

log = logging.getLogger(__name__)
MAX_CRASHES = 2  # of a unit's worker, after which the unit is set aside


@dataclass(frozen=True)
class Progress:
    """The progress of a stage. ``seconds`` since it began, ``before`` units that were done then."""

    stage: str
    done: int
    total: int
    seconds: float
    before: int

    @property
    def per_hour(self) -> float:
        """Units per hour so far; 0 if not known yet."""
        return (self.done - self.before) / self.seconds * 3600 if self.seconds > 0 else 0.0

    @property
    def left(self) -> float | None:
        """Seconds that are left at that rate; None if not known yet."""
        return (self.total - self.done) / self.per_hour * 3600 if self.per_hour else None


@dataclass(frozen=True)
class ShardOutcome:
    """The end of a shard's run. ``crash``: why it did not end by itself; ``log``: where its log is; ``message``: its error."""

    crash: str | None = None
    log: str = ""
    message: str = ""


# Runs shards, calls ``tick`` repeatedly, returns when all have ended, by shard id.
Send = Callable[[list[Shard], Callable[[], None]], dict[str, ShardOutcome]]


@dataclass(frozen=True)
class Fleet:
    """Runs units on workers; takes the place of :func:`persres.units.pool.run_units` in ``Context.run_units``."""

    store: str
    send: Send
    shards: int = 8
    attempts: int = 3
    report: Callable[[Progress], None] = lambda progress: None
    data: Path = Path("data")  # has the measured rates

    def __call__(self, units: list[Unit], work: Path, job: Job, workers: int, device: str) -> None:
        """Run the units and gather their results in ``work``. Raises UnitFailures once, with reasons and log locations."""
        if units:
            failures = _StageRun(self, units, work, job, device).until_done()
            if failures:
                raise UnitFailures(units[0].stage, failures, len(units))


class _StageRun:
    """The units of one stage on the fleet."""

    def __init__(self, fleet: Fleet, units: list[Unit], work: Path, job: Job, device: str) -> None:
        self.fleet, self.store, self.units, self.work = fleet, open_store(fleet.store), units, work
        self.options, self.device, self.stage = job.options, device, units[0].stage
        self.crashes: dict[str, int] = {}
        self.reasons: dict[str, str] = {}  # by hash, of the last attempt
        self.todo = {unit.hash: unit for unit in units if not is_done(unit, work)}
        self.started = time.monotonic()
        self.gather()
        self.before = len(units) - len(self.todo)
        self.tick()

    def until_done(self) -> dict[str, str]:
        """Reasons by name of the units that failed; empty if all are done."""
        failed: dict[str, str] = {}
        log.info("%s: %d units, %d already done", self.stage, len(self.units), self.before)
        for attempt in range(self.fleet.attempts):
            todo = [unit for key, unit in self.todo.items() if key not in failed]
            if not todo:
                break
            self.reasons.clear()
            shards = self.prepare(todo, attempt)
            outcomes = self.fleet.send(shards, self.tick)
            self.tick()
            for shard in shards:
                failed |= self.classify_outcome(shard, outcomes.get(shard.id, ShardOutcome("nobody ran it")))
        unfinished = f"not finished after {self.fleet.attempts} attempts"
        return {
            unit.name: failed.get(key) or f"{unfinished}: {self.reasons.get(key, 'no message')}"
            for key, unit in self.todo.items()
        }

    def prepare(self, units: list[Unit], attempt: int) -> list[Shard]:
        """Upload inputs and shards. A unit whose worker crashed goes alone, so that another crash is its own."""
        for reference in {ref.digest: ref for unit in units for ref in references(unit.spec)}.values():
            put_input(self.store, reference)
        suspects = [[unit] for unit in units if self.crashes.get(unit.hash)]
        others = [unit for unit in units if not self.crashes.get(unit.hash)]
        defaults = read_measured_seconds(self.fleet.data / "bench" / "gpu.json")
        groups = (
            group_by_cost(others, estimate_seconds(others, self.work, defaults), self.fleet.shards) if others else []
        )
        shards = [
            make_shard([unit_to_json(unit) for unit in group], attempt, self.device, self.options)
            for group in [*groups, *suspects]
        ]
        for shard in shards:
            self.store.remove(report_key(shard.id))
            self.store.write(shard.key, shard.model_dump_json().encode())
        return shards

    def gather(self) -> None:
        """Download the finished units, every digest checked."""
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
        """Gather results and report the progress."""
        self.gather()
        done, seconds = len(self.units) - len(self.todo), time.monotonic() - self.started
        self.fleet.report(Progress(self.stage, done, len(self.units), seconds, self.before))

    def classify_outcome(self, shard: Shard, outcome: ShardOutcome) -> dict[str, str]:
        """The units of a shard that failed for good, with reasons by hash; the others that are not done are sent again."""
        report, failed, log_link = self.read_report(shard), {}, f" (log: {outcome.log})" if outcome.log else ""
        for key in [raw["hash"] for raw in shard.units if raw["hash"] in self.todo]:
            if key in report.failed:
                failed[key] = _clean(report.failed[key]) + log_link
                continue
            silent = f"its worker ended without it{f': {outcome.message}' if outcome.message else ''}"
            reason = _clean(outcome.crash or report.unfinished.get(key) or silent)
            self.reasons[key] = self.reasons.get(key) or reason + log_link
            if self.count_crashes(shard, key) >= MAX_CRASHES:
                failed[key] = f"set aside: its worker died {MAX_CRASHES} times while running it: {reason}{log_link}"
        return failed

    def count_crashes(self, shard: Shard, key: str) -> int:
        """The number of workers that died while running a unit, including this shard's."""
        mark = mark_key(self.todo[key], shard.id)
        if self.store.has(mark):
            self.store.remove(mark)
            self.crashes[key] = self.crashes.get(key, 0) + 1
        return self.crashes.get(key, 0)

    def read_report(self, shard: Shard) -> ShardReport:
        """A shard's report; empty if its worker died before it wrote one, or if it is damaged: only reasons are lost."""
        try:
            data = self.store.read(report_key(shard.id))
            return parse_json(data, ShardReport, report_key(shard.id)) if data else ShardReport()
        except StoreError:
            raise
        except PersresError as error:
            log.warning("%s", error)
            return ShardReport(unfinished={raw["hash"]: str(error) for raw in shard.units})


def _clean(reason: str) -> str:
    """A worker's reason, safe to print: it goes into the flow's message, which Prefect's pages show."""
    return printable(redacted(reason), 2000, lines=True)
