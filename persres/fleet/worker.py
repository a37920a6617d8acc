"""What a worker does with a shard: it fetches, runs and uploads each unit by itself, so that a crash costs the units at hand alone.

A mark in the store names the units that a worker is running. It is removed when the unit ends, however it ends: a mark that is left
names a unit that the worker died with.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import shutil
import signal
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from persres.errors import PersresError, UnitFailures
from persres.fleet.cache import CACHE_GB, INPUTS, in_use, make_room, trim
from persres.fleet.content_store import Damaged, fetch_inputs, input_path, manifest_key, put_unit, references
from persres.fleet.serialization import UnfitWorkerError, check_worker, unit_from_json
from persres.fleet.shards import Shard
from persres.fleet.store import Store, StoreError, open_store
from persres.stages.jobs import job_type
from persres.units.batches import Job
from persres.units.files import write_atomic
from persres.units.main_module import refuse_repeated_script
from persres.units.oom_retry import run_batch
from persres.units.pool import run_units
from persres.units.unit import Unit, finish_interrupted, is_done
from persres.untrusted.documents import parse_json, read_json
from persres.untrusted.fields import UnitHash
from persres.untrusted.names import identifier
from persres.untrusted.text import redacted

log = logging.getLogger(__name__)
Note = tuple[Literal["failed", "unfinished"], str]  # whose fault an error is, and the reason
GRACE = 120.0  # seconds that a worker may still use for the units at hand when told to stop


@dataclass(frozen=True)
class WorkerSettings:
    """Processes of a worker, seconds for the units at hand after SIGTERM, and GB of unused files that stay in its work folder."""

    workers: int = 1
    grace: float = GRACE
    cache_gb: float = CACHE_GB


class ShardReport(BaseModel):
    """Reasons by unit hash: ``failed`` by the unit's own fault, ``unfinished`` by the worker's or the store's."""

    model_config = ConfigDict(frozen=True)

    failed: dict[UnitHash, str] = {}
    unfinished: dict[UnitHash, str] = {}

    def as_json(self) -> bytes:
        """The report as the store holds it."""
        return json.dumps(self.model_dump()).encode()


def report_key(shard: str) -> str:
    """The key of a shard's report."""
    return f"reports/{shard}.json"


def mark_key(unit: Unit, shard: str) -> str:
    """The key of the mark that a worker is running a unit."""
    return f"started/{unit.stage}/{unit.hash}/{shard}"


def read_shard(store_url: str, shard_id: str) -> Shard:
    """A shard from the store. Raises PersresError if it is missing, malformed or another."""
    key = f"shards/{identifier(shard_id, 'shard')}.json"
    data = open_store(store_url).read(key)
    if data is None:
        raise PersresError(f"{redacted(store_url)} holds no shard {shard_id}; pass the store that the scheduler uses")
    shard = parse_json(data, Shard, key, "run the stage again")
    if shard.id != shard_id:
        raise PersresError(f"{key} is shard {shard.id}; run the stage again")
    return shard


def run_shard(store_url: str, shard_id: str, work: Path, settings: WorkerSettings = WorkerSettings()) -> ShardReport:
    """Run a shard's units, except those that another worker finished, and write the report.

    Every unit ends or fails. After SIGTERM no unit starts, and those at hand have ``settings.grace`` seconds. If the disk is full,
    none starts.
    """
    refuse_repeated_script()
    store, shard = open_store(store_url), read_shard(store_url, shard_id)
    stored = StoredJob(store_url, shard.id, work, int(settings.cache_gb * 1e9))
    try:
        make_room(shard.stage, work, stored.cache_bytes)
    except PersresError as error:
        report = _unfinished(shard, error)
    else:
        report = _run_units(stored, shard, settings)
    store.write(report_key(shard.id), report.as_json())
    return report


def _unfinished(shard: Shard, error: PersresError) -> ShardReport:
    """The report of a shard of which nothing is run."""
    return ShardReport(unfinished={raw["hash"]: str(error) for raw in shard.units})


def _run_units(stored: StoredJob, shard: Shard, settings: WorkerSettings) -> ShardReport:
    with suppress(NotADirectoryError):
        shutil.rmtree(stored.notes, ignore_errors=True)
        stored.notes.unlink(missing_ok=True)  # a stray file, or a link
    stored.notes.mkdir(parents=True)
    report, units = ShardReport(), []
    for raw in shard.units:
        try:
            units.append(unit_from_json(raw))
        except UnfitWorkerError as error:
            report.unfinished[raw["hash"]] = str(error)
    if not units:  # another commit's units; the options of its jobs may have other names
        return report
    finish_interrupted(shard.stage, stored.work)
    for unit in units:  # finished here by a shard that died before it could upload: run_units skips these
        if is_done(unit, stored.work):
            put_unit(stored.store, unit, stored.work)
    try:
        job = stored.wrap(_job(shard, units))
    except UnfitWorkerError as error:
        return _unfinished(shard, error)
    with _drained_by_sigterm(stored.notes, settings.grace):
        try:
            run_units(units, stored.work, job, settings.workers, shard.device)
        except UnitFailures as error:
            for unit in [unit for unit in units if unit.name in error.failures]:
                kind, reason = stored.read_note(unit) or ("unfinished", error.failures[unit.name])
                getattr(report, kind)[unit.hash] = reason
    return report


def _job(shard: Shard, units: list[Unit]) -> Job:
    """The job of a shard's units. Raises UnfitWorkerError for options that it does not have."""
    try:
        job = job_type(shard.stage).job(units, **shard.options)
        inspect.signature(job.run)  # of a partial: its options are checked here
        return job
    except (TypeError, ValueError) as error:
        options = ", ".join(shard.options)
        raise UnfitWorkerError(
            f"shard {shard.id}: this worker's persres does not have its options ({options}); deploy the same commit"
        ) from error


@dataclass(frozen=True)
class StoredJob:
    """Runs the units of a shard with inputs and results in a store. ``cache_bytes`` of unused files stay in the work folder."""

    store_url: str
    shard: str
    work: Path
    cache_bytes: int
    job: Job | None = None

    @property
    def store(self) -> Store:
        """The store, opened once per process."""
        return open_store(self.store_url)

    @property
    def notes(self) -> Path:
        """The folder of the reasons by unit hash, and of the file that says not to start another unit."""
        return self.work / "shards" / self.shard

    def wrap(self, job: Job) -> Job:
        """A job that fetches a unit's inputs, runs ``job`` and uploads the result."""
        stored = replace(self, job=job)
        size = job.batch_size if isinstance(job.batch_size, int) else stored.measure
        return replace(job, run=stored.run, run_many=stored.run_many, batch_size=size)

    def run(self, unit: Unit, work: Path, device: str) -> None:
        """Run one unit. Raises its error."""
        for error in self.run_many([unit], work, device).values():
            raise error

    def run_many(self, units: list[Unit], work: Path, device: str) -> dict[str, Exception]:
        """Run units in one batch, each uploaded by itself; returns errors by name, of which notes are written too."""
        errors: dict[str, Exception] = {}
        with ExitStack() as using:
            local = []
            for unit in units:
                try:
                    if (self.notes / "drain").exists():
                        raise UnfitWorkerError(f"{unit.name}: not started, the worker was told to stop")
                    if not self.store.has(manifest_key(unit)):  # else another worker's, which the scheduler checks
                        check_worker(unit)
                        local.append(self.localize(unit, using))
                except Exception as error:
                    errors[unit.name] = error
            errors |= self._run_local(local, device)
        for unit in [unit for unit in units if unit.name in errors]:
            self._write_note(unit, errors[unit.name])
        return errors

    def _run_local(self, units: list[Unit], device: str) -> dict[str, Exception]:
        todo = [unit for unit in units if not is_done(unit, self.work)]
        with self._marked(todo):
            errors = run_batch(self.job, todo, self.work, device) if todo else {}
        for unit in [unit for unit in units if unit.name not in errors]:
            try:
                put_unit(self.store, unit, self.work)
            except Exception as error:
                errors[unit.name] = error
        return errors

    def measure(self, units: Iterable[Unit], device: str, workers: int) -> int:
        """The batch size that the job measures; inputs are fetched for the units that it reads."""
        with ExitStack() as using:
            return self.job.batch_size((self.localize(unit, using) for unit in units), device, workers)

    def localize(self, unit: Unit, using: ExitStack) -> Unit:
        """The unit with its inputs here; they and its folder are not removed until ``using`` ends."""
        inputs = self.work / INPUTS
        paths = [input_path(reference, inputs) for reference in references(unit.spec)]
        for entry in [unit.folder(self.work), *(path.parent for path in paths)]:
            using.enter_context(in_use(entry))
        complete = all(path.exists() for path in paths)
        local = Unit(unit.stage, unit.name, fetch_inputs(self.store, unit.spec, inputs))
        if not complete:
            trim(self.work, self.cache_bytes)
        return local

    @contextmanager
    def _marked(self, units: list[Unit]) -> Iterator[None]:
        """Marks that stay only if the process dies."""
        mark = json.dumps({"host": socket.gethostname(), "process": os.getpid()}).encode()
        try:
            for unit in units:
                self.store.write(mark_key(unit, self.shard), mark)
            yield
        finally:
            for unit in units:
                self.store.remove(mark_key(unit, self.shard))

    def _write_note(self, unit: Unit, error: Exception) -> None:
        """Whose fault an error is, with the scheduler's names of files rather than this cache's."""
        kind = "unfinished" if isinstance(error, UnfitWorkerError | StoreError | Damaged | OSError) else "failed"
        reason = str(error) if isinstance(error, PersresError) else f"{type(error).__name__}: {error}"
        for reference in references(unit.spec):
            with suppress(PersresError):  # a forged digest has no path here
                reason = reason.replace(str(input_path(reference, self.work / INPUTS)), reference.path)
        write_atomic(self.notes / f"{unit.hash}.json", json.dumps([kind, reason]).encode())

    def read_note(self, unit: Unit) -> tuple[str, str] | None:
        """Kind and reason of a unit's error; None if its process was killed or never began."""
        try:
            return read_json(self.notes / f"{unit.hash}.json", Note)
        except PersresError:
            return None


@contextmanager
def _drained_by_sigterm(notes: Path, grace: float) -> Iterator[None]:
    """On SIGTERM no further unit starts; after the grace time the process exits, and checkpoints stay."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def drain(number: int, frame: Any) -> None:
        log.info("shard: told to stop; the units at hand have %.0f s", grace)
        (notes / "drain").touch()
        if not timer.is_alive():  # a second signal does not restart the timer
            timer.start()

    timer = threading.Timer(grace, os._exit, (128 + signal.SIGTERM,))
    timer.daemon = True
    before = signal.signal(signal.SIGTERM, drain)
    try:
        yield
    finally:
        timer.cancel()
        signal.signal(signal.SIGTERM, before)
