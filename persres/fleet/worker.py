"""What an agent does with a shard: every unit fetched, done, put back one by one, so that a death costs the unit at hand alone.

A mark in the store says which unit an agent is at. It is taken away when the unit ends, however it ends, so what is left after a death
names the unit that the agent died of, or with.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from persres.errors import PersresError, UnitFailures
from persres.fleet.cache import CACHE_GB, INPUTS, in_use, make_room, trim
from persres.fleet.content_store import Damaged, fetch_inputs, input_place, manifest_key, put_unit, references
from persres.fleet.jobs import Unfit, check_worker, job_type, unit_from_json
from persres.fleet.shards import Shard
from persres.fleet.store import Store, StoreError, open_store
from persres.units.batches import Batches, Work
from persres.units.files import write_atomic
from persres.units.oom_retry import run_batch, with_memory_guard
from persres.units.pool import run_units
from persres.units.unit import Unit, finish_interrupted, is_done

log = logging.getLogger(__name__)
GRACE = 120.0  # seconds that a drained agent may still use for the units at hand


@dataclass(frozen=True)
class ShardReport:
    """How a shard ended: ``failed`` by a unit's own fault, ``unfinished`` by its agent's or the store's; reasons by unit hash."""

    failed: dict[str, str] = field(default_factory=dict)
    unfinished: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> bytes:
        """For the store."""
        return json.dumps({"failed": self.failed, "unfinished": self.unfinished}).encode()


def report_key(shard: str) -> str:
    """Where a shard's report lies."""
    return f"reports/{shard}.json"


def mark_key(unit: Unit, shard: str) -> str:
    """Where the mark lies that says that an agent is at a unit."""
    return f"started/{unit.stage}/{unit.hash}/{shard}"


def read_shard(store_url: str, shard_id: str) -> Shard:
    """From the store. Raises PersresError where it is not there."""
    data = open_store(store_url).read(f"shards/{shard_id}.json")
    if data is None:
        raise PersresError(f"{store_url} holds no shard {shard_id}; give the store that the parent flow was given")
    return Shard.model_validate_json(data)


def run_shard(
    store_url: str, shard_id: str, work: Path, workers: int = 1, grace: float = GRACE, kept_gb: float = CACHE_GB
) -> ShardReport:
    """Do a shard's units; those that another agent finished are left. Every unit ends or fails, then the report is written. On SIGTERM no
    further unit is begun, and those at hand have ``grace`` seconds. At most ``kept_gb`` of what is not in use stay in ``work``; where its
    disk is full none is begun."""
    store, shard, notes = open_store(store_url), read_shard(store_url, shard_id), work / "shards" / shard_id
    keep = int(kept_gb * 1e9)
    try:
        make_room(shard.stage, work, keep)
    except PersresError as error:
        return _reported(store, shard, ShardReport({}, {raw["hash"]: str(error) for raw in shard.units}))
    shutil.rmtree(notes, ignore_errors=True)
    notes.mkdir(parents=True)
    failed, unfinished, units = {}, {}, []
    for raw in shard.units:
        try:
            units.append(unit_from_json(raw))
        except Unfit as error:
            unfinished[raw["hash"]] = str(error)
    if not units:  # of other code, whose options may have other names
        return _reported(store, shard, ShardReport(failed, unfinished))
    finish_interrupted(shard.stage, work)
    for unit in units:  # done here before, by a shard that died before it could say so: run_units leaves them out
        if is_done(unit, work):
            put_unit(store, unit, work)
    function = _work(store_url, shard, work, notes, keep)
    with _drained_by_sigterm(notes, grace):
        try:
            run_units(units, work, function, workers, shard.device)
        except UnitFailures as error:
            for unit in units:
                if unit.name in error.failures:
                    kind, reason = _note(notes, unit) or ("unfinished", error.failures[unit.name])
                    (failed if kind == "failed" else unfinished)[unit.hash] = reason
    return _reported(store, shard, ShardReport(failed, unfinished))


def _reported(store: Store, shard: Shard, report: ShardReport) -> ShardReport:
    store.write(report_key(shard.id), report.as_json())
    return report


def _work(url: str, shard: Shard, work: Path, notes: Path, keep: int) -> Work:
    """What does the shard's units, several at once where something can and the shard allows it."""
    said = {"store": url, "shard": shard.id, "notes": notes, "keep": keep}
    one = partial(run_stored_unit, options=shard.options, **said)
    own = job_type(shard.stage).batches(shard.options, shard.together) if shard.together != 1 else None
    if own is None:
        return one
    many = partial(run_stored_units, batches=own, **said)
    return replace(own, one=one, many=many, measure=partial(_measure, measure=own.measure, store=url, work=work))


def _measure(
    units: Iterable[Unit], device: str, workers: int, *, measure: Callable[..., int], store: str, work: Path
) -> int:
    """Of the unit that is read first; its files are fetched when it is."""
    with ExitStack() as using:
        return measure((_localised(unit, open_store(store), work, using) for unit in units), device, workers)


def _localised(unit: Unit, store: Store, work: Path, using: ExitStack, keep: int | None = None) -> Unit:
    """The unit with its inputs here, held with its own folder until ``using`` ends. ``keep``: bytes that may stay of what nobody uses."""
    places = [input_place(reference, work / INPUTS) for reference in references(unit.spec)]
    for entry in [unit.folder(work), *(place.parent for place in places)]:
        using.enter_context(in_use(entry))
    new = not all(place.exists() for place in places)
    here = Unit(unit.stage, unit.name, fetch_inputs(store, unit.spec, work / INPUTS))
    if new and keep is not None:
        trim(work, keep)
    return here


def run_stored_unit(
    unit: Unit,
    work: Path,
    device: str,
    *,
    store: str,
    shard: str,
    options: dict[str, Any],
    notes: Path,
    keep: int | None = None,
) -> None:
    """Fetch, do, put back. Raises what the unit raises, having noted whose fault it was."""
    try:
        _check_drain(unit, notes)
        with ExitStack() as using:
            _fetch_do_put(unit, work, device, store, shard, options, using, keep)
    except BaseException as error:
        _take_note(error, unit, work, notes)
        raise


def run_stored_units(
    units: list[Unit],
    work: Path,
    device: str,
    *,
    store: str,
    shard: str,
    batches: Batches,
    notes: Path,
    keep: int | None = None,
) -> dict[str, Exception]:
    """As :func:`shared_unit`, of several done at once: each is marked, and put back by itself. Returns errors by name, noted too."""
    open_, errors = open_store(store), {}
    here: dict[str, Unit] = {}
    with ExitStack() as using:
        for unit in units:
            try:
                _check_drain(unit, notes)
                if not open_.has(manifest_key(unit)):
                    check_worker(unit)
                    here[unit.name] = _localised(unit, open_, work, using, keep)
            except Exception as error:
                errors[unit.name] = error
        errors |= _do_put_together(here, open_, shard, batches, work, device)
    for unit in [unit for unit in units if unit.name in errors]:
        _take_note(errors[unit.name], unit, work, notes)
    return errors


def _do_put_together(
    here: dict[str, Unit], store: Store, shard: str, batches: Batches, work: Path, device: str
) -> dict[str, Exception]:
    """Those that were fetched, by name; errors by name."""
    todo = [unit for unit in here.values() if not is_done(unit, work)]
    with _marked(todo, store, shard):
        errors = run_batch(batches, todo, work, device) if todo else {}
    for unit in [unit for name, unit in here.items() if name not in errors]:
        try:
            put_unit(store, unit, work)
        except Exception as error:
            errors[unit.name] = error
    return errors


def _check_drain(unit: Unit, notes: Path) -> None:
    if (notes / "drain").exists():
        raise Unfit(f"{unit.name}: not begun, the agent was told to stop")


def _take_note(error: BaseException, unit: Unit, work: Path, notes: Path) -> None:
    """Whose fault it was, for the report."""
    kind = "unfinished" if isinstance(error, Unfit | StoreError | Damaged | OSError) else "failed"
    write_atomic(notes / f"{unit.hash}.json", json.dumps([kind, _said(error, unit, work)]).encode())


def _said(error: BaseException, unit: Unit, work: Path) -> str:
    """In the words of the parent's machine: its own names of files, not those of a cache here."""
    text = str(error) if isinstance(error, PersresError) else f"{type(error).__name__}: {error}"
    for reference in references(unit.spec):
        text = text.replace(str(input_place(reference, work / INPUTS)), reference.path)
    return text


def _fetch_do_put(
    unit: Unit,
    work: Path,
    device: str,
    url: str,
    shard: str,
    options: dict[str, Any],
    using: ExitStack,
    keep: int | None,
) -> None:
    store, kind = open_store(url), job_type(unit.stage)
    if store.has(manifest_key(unit)):  # another agent's; whether it can be trusted is the parent's to see
        return
    check_worker(unit)
    local = _localised(unit, store, work, using, keep)
    if not is_done(local, work):
        with _marked([unit], store, shard):
            with_memory_guard(partial(kind.function, **options), local, work, device)
    put_unit(store, local, work)


@contextmanager
def _marked(units: list[Unit], store: Store, shard: str) -> Iterator[None]:
    """Marks that stay only where the process dies."""
    said = json.dumps({"host": socket.gethostname(), "process": os.getpid()}).encode()
    try:
        for unit in units:
            store.write(mark_key(unit, shard), said)
        yield
    finally:
        for unit in units:
            store.remove(mark_key(unit, shard))


def _note(notes: Path, unit: Unit) -> tuple[str, str] | None:
    """What the unit's process noted before it ended; None where it was killed, or never began."""
    try:
        kind, reason = json.loads((notes / f"{unit.hash}.json").read_text())
    except (OSError, ValueError):
        return None
    return kind, reason


@contextmanager
def _drained_by_sigterm(notes: Path, grace: float) -> Iterator[None]:
    """SIGTERM leaves a file that units look for before they begin; after the grace time the process ends, checkpoints kept."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def drain(number: int, frame: Any) -> None:
        log.info("shard: told to stop; the units at hand have %.0f s", grace)
        (notes / "drain").touch()
        if not timer.is_alive():  # told twice, the time still counts from the first
            timer.start()

    timer = threading.Timer(grace, os._exit, (128 + signal.SIGTERM,))
    timer.daemon = True
    before = signal.signal(signal.SIGTERM, drain)
    try:
        yield
    finally:
        timer.cancel()
        signal.signal(signal.SIGTERM, before)
