"""Run units side by side: every one finishes or fails, then the failures are raised once."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import forkserver, get_context, parent_process
from pathlib import Path

from persres.errors import PersresError, UnitFailures
from persres.logging import remaining, show_logs
from persres.units.batches import Batches, Work, plan_batches
from persres.units.oom_retry import run_batch, with_memory_guard
from persres.units.unit import Unit, finish_interrupted, is_done

log = logging.getLogger(__name__)
WARM = "persres.units.worker_start"  # imported first by the process that workers are forked from


def run_units(units: list[Unit], work: Path, function: Work, workers: int, device: str) -> None:
    """Run what is not done, let every unit finish or fail, then raise UnitFailures once if any failed. Where the function can do several
    at once (:class:`persres.units.batches.Batches`), they run in batches."""
    if not units:
        return
    stage = units[0].stage
    finish_interrupted(stage, work)
    todo = [unit for unit in units if not is_done(unit, work)]
    log.info("%s: %d units, %d already done", stage, len(units), len(units) - len(todo))
    cores = _cores()
    count = min(workers or cores, len(units))
    # Threads follow from the plan, not from what is left to do: sums over another number of threads
    # differ in their last bits, and a resumed run should not.
    threads = max(1, cores // count)
    measure = partial(_measure, function=function, threads=threads, here=count == 1)
    batches = plan_batches(units, todo, function, work, count, device, measure)
    processes = min(count, len(batches))
    if processes > 1:
        failures = _run_in_processes(batches, work, function, device, processes, threads)
    else:
        failures = _run_here(batches, work, function, device, threads)
    if failures:
        raise UnitFailures(stage, failures, len(units))


def warm_up(module: str) -> None:
    """Start the process that workers are forked from, once: it imports ``module`` meanwhile, which with diffusers takes seconds. A
    clean process, since a fork of this one could inherit CUDA or a lock that another thread holds."""
    get_context("forkserver").set_forkserver_preload([WARM, module])
    forkserver.ensure_running()


def _cores() -> int:
    """Processors this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _measure(measured: Callable[[], int], function: Work, threads: int, here: bool) -> int:
    """Where units will run: in this process, or in one that ends with it, since what it holds of a GPU it would hold for good."""
    if here:
        _set_threads(threads)
        return measured()
    with _workers(1, function, threads) as pool:
        return pool.submit(measured).result()


def _run_here(batches: list[list[Unit]], work: Path, function: Work, device: str, threads: int) -> dict[str, str]:
    failures: dict[str, str] = {}
    if batches:
        _set_threads(threads)
    report = _Report(batches)
    for some in batches:
        failed = _attempt(some, work, function, device)
        failures |= failed
        report(some, failed)
    return failures


def _run_in_processes(
    batches: list[list[Unit]], work: Path, function: Work, device: str, processes: int, threads: int
) -> dict[str, str]:
    failures: dict[str, str] = {}
    with _workers(processes, function, threads) as pool:
        report = _Report(batches)
        pending: dict[Future, list[Unit]] = {
            pool.submit(_attempt, some, work, function, device): some for some in batches
        }
        while pending:
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                some = pending.pop(future)
                try:
                    failed = future.result()
                except BrokenProcessPool:
                    failed = {unit.name: _died(some) for unit in some if not is_done(unit, work)}
                failures |= failed
                report(some, failed)
    return failures


def _died(some: list[Unit]) -> str:
    mend = (
        ""
        if len(some) == 1
        else f"; {len(some)} ran together: where memory was too little lower runtime.concepts_per_batch"
    )
    return f"its worker process died (killed, or out of memory){mend}"


@contextmanager
def _workers(processes: int, function: Work, threads: int) -> Iterator[ProcessPoolExecutor]:
    """So many processes; where the block is left by an error they are killed: Ctrl-C must not wait for a unit to end."""
    function = function.one if isinstance(function, Batches) else function
    warm_up(getattr(function, "func", function).__module__)
    start = (threads, dict(os.environ))  # the process that workers are forked from has the environment of its own start
    pool = ProcessPoolExecutor(
        processes, mp_context=get_context("forkserver"), initializer=_start_worker, initargs=start
    )
    try:
        yield pool
        pool.shutdown()
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.kill()
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def _attempt(some: list[Unit], work: Path, function: Work, device: str) -> dict[str, str]:
    """One-line reasons by name of the units that failed."""
    errors: dict[str, Exception] = {}
    try:
        if len(some) > 1:
            errors = run_batch(function, some, work, device)
        else:
            with_memory_guard(function, some[0], work, device)
    except Exception as error:
        # One by itself has failed whatever lies in its folder: what an agent does after its manifest, the put, is its work too.
        errors = {unit.name: error for unit in some if len(some) == 1 or not is_done(unit, work)}
    folders = {unit.name: unit.folder(work) for unit in some}
    return {name: _reason(error, folders[name]) for name, error in errors.items()}


def _reason(error: Exception, folder: Path) -> str:
    if isinstance(error, PersresError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.strerror or error}: {error.filename or folder}"
    return f"{type(error).__name__}: {error} (see {_keep_trace(error, folder)})"


def _keep_trace(error: Exception, folder: Path) -> str:
    """Where the traceback went: a file of the unit's folder, or, where none can be written, the output."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "traceback.txt").write_text("".join(traceback.format_exception(error)))
        return str(folder / "traceback.txt")
    except OSError:
        traceback.print_exception(error)
        return "the traceback above"


class _Report:
    """A line for each unit that ended, and the time that the others will take."""

    def __init__(self, batches: list[list[Unit]]) -> None:
        self.total, self.ended, self.started = sum(map(len, batches)), 0, time.monotonic()

    def __call__(self, some: list[Unit], failed: dict[str, str]) -> None:
        seconds, before = time.monotonic() - self.started, self.ended
        self.ended += len(some)
        left = remaining(self.ended, self.total, seconds)
        for number, unit in enumerate(some, before + 1):
            state = f"FAILED: {failed[unit.name]}" if unit.name in failed else "done"
            log.info("%s %d/%d %s %s (%.0f s%s)", unit.stage, number, self.total, unit.name, state, seconds, left)


def _set_threads(threads: int) -> None:
    """At most as many as OMP_NUM_THREADS says: where other work shares the cores, more threads wait for one another."""
    import torch

    most = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    torch.set_num_threads(min(threads, int(most)) if most.isdigit() and int(most) else threads)


def _start_worker(threads: int, environment: dict[str, str]) -> None:
    """In a worker: its share of the cores, and an end when its parent is gone (kill -9 tells no child)."""
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers
    show_logs()
    _set_threads(threads)
    parent = parent_process()

    def watch() -> None:
        while parent is not None and parent.is_alive():
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
