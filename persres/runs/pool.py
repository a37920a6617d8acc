"""Run units side by side: every one finishes or fails, then the failures are raised once."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver, get_context, parent_process
from pathlib import Path

from persres.errors import PersresError, UnitFailures
from persres.progress import remaining, show_logs
from persres.runs.memory import with_memory_guard
from persres.runs.units import Unit, is_done

log = logging.getLogger(__name__)

Work = Callable[[Unit, Path, str], None]  # unit, work folder, device
WARM = "persres.runs.warm"  # imported first by the process that workers are forked from


def run_units(units: list[Unit], work: Path, function: Work, workers: int, device: str) -> None:
    """Run what is not done, let every unit finish or fail, then raise UnitFailures once if any failed."""
    if not units:
        return
    stage = units[0].stage
    todo = [unit for unit in units if not is_done(unit, work)]
    log.info("%s: %d units, %d already done", stage, len(units), len(units) - len(todo))
    cores = _cores()
    count = min(workers or cores, len(units))
    # Threads follow from the plan, not from what is left to do: sums over another number of threads
    # differ in their last bits, and a resumed run should not.
    threads = max(1, cores // count)
    processes = min(count, len(todo))
    if processes > 1:
        failures = _run_in_processes(todo, work, function, device, processes, threads)
    else:
        failures = _run_here(todo, work, function, device, threads)
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


def _run_here(todo: list[Unit], work: Path, function: Work, device: str, threads: int) -> dict[str, str]:
    failures = {}
    if todo:
        _set_threads(threads)
    started = time.monotonic()
    for number, unit in enumerate(todo, 1):
        reason = _attempt(unit, work, function, device)
        if reason:
            failures[unit.name] = reason
        _report(unit, reason, number, len(todo), time.monotonic() - started)
    return failures


def _run_in_processes(
    todo: list[Unit], work: Path, function: Work, device: str, processes: int, threads: int
) -> dict[str, str]:
    failures: dict[str, str] = {}
    warm_up(getattr(function, "func", function).__module__)
    start = (threads, dict(os.environ))  # the process that workers are forked from has the environment of its own start
    pool = ProcessPoolExecutor(
        processes, mp_context=get_context("forkserver"), initializer=_start_worker, initargs=start
    )
    started = time.monotonic()
    try:
        pending: dict[Future, Unit] = {pool.submit(_attempt, unit, work, function, device): unit for unit in todo}
        finished = 0
        while pending:
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                unit, finished = pending.pop(future), finished + 1
                try:
                    reason = future.result()
                except BrokenProcessPool:
                    reason = "its worker process died (killed, or out of memory)"
                if reason:
                    failures[unit.name] = reason
                _report(unit, reason, finished, len(todo), time.monotonic() - started)
        pool.shutdown()
    except BaseException:
        for process in list((pool._processes or {}).values()):  # Ctrl-C must not wait for a unit to end
            process.kill()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    return failures


def _attempt(unit: Unit, work: Path, function: Work, device: str) -> str | None:
    """None on success, else a one-line reason."""
    try:
        with_memory_guard(function, unit, work, device)
    except PersresError as error:
        return str(error)
    except OSError as error:
        return f"{error.strerror or error}: {error.filename or unit.folder(work)}"
    except Exception as error:
        return f"{type(error).__name__}: {error} (see {_keep_trace(unit.folder(work))})"
    return None


def _keep_trace(folder: Path) -> str:
    """Where the traceback went: a file of the unit's folder, or, where none can be written, the output."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "traceback.txt").write_text(traceback.format_exc())
        return str(folder / "traceback.txt")
    except OSError:
        traceback.print_exc()
        return "the traceback above"


def _report(unit: Unit, reason: str | None, number: int, total: int, seconds: float) -> None:
    """``seconds`` since the first unit began."""
    state, left = f"FAILED: {reason}" if reason else "done", remaining(number, total, seconds)
    log.info("%s %d/%d %s %s (%.0f s%s)", unit.stage, number, total, unit.name, state, seconds, left)


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
