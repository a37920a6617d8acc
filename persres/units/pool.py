"""Runs units in parallel: every one finishes or fails, then the failures are raised once."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import forkserver, get_context, parent_process
from multiprocessing.synchronize import Event
from pathlib import Path

from persres.errors import PersresError, UnitFailures
from persres.logging import remaining, show_logs
from persres.units.batches import Job, Run, UnitFunction, WorkerStartError, plan_batches
from persres.units.main_module import PRELOAD, is_unguarded, no_worker_began, refuse_repeated_script
from persres.units.oom_retry import run_batch
from persres.units.unit import Unit, finish_interrupted, is_done

log = logging.getLogger(__name__)


def run_units(units: list[Unit], work: Path, job: Job | UnitFunction, workers: int, device: str) -> None:
    """Run the units that are not done, as a job or by a plain function; every unit finishes or fails.

    ``workers`` processes, 0 for one per core. Raises UnitFailures once, with the reasons of all units that failed, and
    WorkerStartError where no process can begin: in a script whose calls are not guarded.
    """
    refuse_repeated_script()
    if not units:
        return
    stage = units[0].stage
    finish_interrupted(stage, work)
    todo = [unit for unit in units if not is_done(unit, work)]
    log.info("%s: %d units, %d already done", stage, len(units), len(units) - len(todo))
    cores = _cores()
    count = min(workers or cores, len(units))
    # Threads follow from all units, not from those that are left: sums over another number of threads
    # differ in their last bits, and a resumed run must give the same results.
    run = Run(job if isinstance(job, Job) else Job(job), work, device, count, max(1, cores // count))
    batches = plan_batches(units, todo, run, partial(_measure, run))
    failures, report = {}, _Report(batches)
    if min(count, len(batches)) > 1:
        failures = _run_in_processes(run, batches, report)
    elif batches:
        _set_threads(run.threads)
        for batch in batches:
            failures |= report(batch, _attempt(run, batch))
    if failures:
        raise UnitFailures(stage, failures, len(units))


def warm_up(module: str) -> None:
    """Start the process that workers are forked from, once. It imports ``module`` meanwhile, which takes seconds with diffusers.

    It is a clean process: a fork of this one could inherit CUDA or a lock that another thread holds.
    """
    refuse_repeated_script()
    get_context("forkserver").set_forkserver_preload([PRELOAD, module])
    forkserver.ensure_running()


def check_script(workers: int, module: str) -> None:
    """Start one worker process, if the script does not look guarded and ``workers`` will be several; it imports ``module``.

    Raises WorkerStartError if the process cannot begin: before the work instead of in its midst.
    """
    refuse_repeated_script()
    if workers == 1 or _cores() == 1 or not is_unguarded():
        return
    warm_up(module)
    process = get_context("forkserver").Process(target=abs, args=(0,))
    process.start()
    process.join()
    if process.exitcode:
        raise WorkerStartError(no_worker_began())


def _cores() -> int:
    """The cores that this process may use, in a container fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _measure(run: Run, group: list[Unit]) -> int:
    """The batch size of a group, measured where its units run: here, or in a process that frees the GPU when it ends."""
    if run.workers == 1:
        _set_threads(run.threads)
        return run.job.batch_size(group, run.device, run.workers)
    with _worker_pool(1, run) as (pool, _):
        return pool.submit(run.job.batch_size, group, run.device, run.workers).result()


def _run_in_processes(run: Run, batches: list[list[Unit]], report: _Report) -> dict[str, str]:
    failures: dict[str, str] = {}
    with _worker_pool(min(run.workers, len(batches)), run) as (pool, began):
        pending = {_submit(pool, run, batch): batch for batch in batches}
        while pending:
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                batch = pending.pop(future)
                try:
                    failed = future.result()
                except BrokenProcessPool:
                    if not began.is_set():
                        raise
                    failed = {unit.name: _died(batch) for unit in batch if not is_done(unit, run.work)}
                failures |= report(batch, failed)
    return failures


def _submit(pool: ProcessPoolExecutor, run: Run, batch: list[Unit]) -> Future:
    """A future of the batch; a failed one if the pool is broken already."""
    try:
        return pool.submit(_attempt, run, batch)
    except BrokenProcessPool as error:
        future: Future = Future()
        future.set_exception(error)
        return future


def _attempt(run: Run, batch: list[Unit]) -> dict[str, str]:
    return _reasons(run_batch(run.job, batch, run.work, run.device), batch, run.work)


def _died(batch: list[Unit]) -> str:
    hint = f"; it ran {len(batch)} units in one batch: if memory was too small, lower runtime.concepts_per_batch"
    return f"its worker process died (killed, or out of memory){hint if len(batch) > 1 else ''}"


@contextmanager
def _worker_pool(processes: int, run: Run) -> Iterator[tuple[ProcessPoolExecutor, Event]]:
    """A pool of processes, and whether one has begun; an error inside the block kills them, so that Ctrl-C does not wait for a unit to end.

    Raises WorkerStartError if all end before they begin.
    """
    warm_up(getattr(run.job.run, "func", run.job.run).__module__)
    context = get_context("forkserver")
    began = context.Event()
    # workers are forked from a process with the environment of its own start
    start = (began, run.threads, dict(os.environ))
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker, initargs=start)
    try:
        yield pool, began
        pool.shutdown()
    except BaseException as error:
        for process in list((pool._processes or {}).values()):
            process.kill()
        pool.shutdown(wait=False, cancel_futures=True)
        if isinstance(error, BrokenProcessPool) and not began.is_set():
            raise WorkerStartError(no_worker_began()) from None
        raise


def _reasons(errors: dict[str, Exception], batch: list[Unit], work: Path) -> dict[str, str]:
    """One-line reasons by unit name."""
    folders = {unit.name: unit.folder(work) for unit in batch}
    return {name: _reason(error, folders[name]) for name, error in errors.items()}


def _reason(error: Exception, folder: Path) -> str:
    if isinstance(error, PersresError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.strerror or error}: {error.filename or folder}"
    return f"{type(error).__name__}: {error} (see {_keep_trace(error, folder)})"


def _keep_trace(error: Exception, folder: Path) -> str:
    """Where the traceback is: in a file of the unit's folder, or on standard error if that cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "traceback.txt").write_text("".join(traceback.format_exception(error)))
        return str(folder / "traceback.txt")
    except OSError:
        traceback.print_exception(error)
        return "the traceback above"


class _Report:
    """Logs a line for each unit that ended, with the time that the others will take."""

    def __init__(self, batches: list[list[Unit]]) -> None:
        self.total, self.ended, self.started = sum(map(len, batches)), 0, time.monotonic()

    def __call__(self, batch: list[Unit], failed: dict[str, str]) -> dict[str, str]:
        seconds, before = time.monotonic() - self.started, self.ended
        self.ended += len(batch)
        left = remaining(self.ended, self.total, seconds)
        for number, unit in enumerate(batch, before + 1):
            state = f"FAILED: {failed[unit.name]}" if unit.name in failed else "done"
            log.info("%s %d/%d %s %s (%.0f s%s)", unit.stage, number, self.total, unit.name, state, seconds, left)
        return failed


def _set_threads(threads: int) -> None:
    """Use at most OMP_NUM_THREADS threads: on shared cores more threads wait for each other."""
    import torch

    most = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    torch.set_num_threads(min(threads, int(most)) if most.isdigit() and int(most) else threads)


def _start_worker(began: Event, threads: int, environment: dict[str, str]) -> None:
    """Give a worker its share of the cores, and end it when its parent is gone (kill -9 does not reach children)."""
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
    began.set()
