"""A worker for one GPU that can be stopped: ``python -m flows.worker --pool persres-gpu``.

Prefect's worker (3.8.8) kills its runs within milliseconds when it is told to stop. This one starts Prefect's worker as a child. On
SIGTERM or Ctrl-C it kills that child, which its runs survive, and passes the signal on to the runs: a shard finishes the unit at hand
and starts no other. If Prefect's worker dies by itself, its runs may end first, since another worker would put a second run on the
GPU; then this one exits with the worker's code, so that systemd restarts it.

Linux only: it reads /proc and makes orphaned runs its own children (PR_SET_CHILD_SUBREAPER).
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from persres.fleet.worker import GRACE
from persres.logging import show_logs

log = logging.getLogger("persres.fleet.worker")  # as a program this module has another name
MARGIN = 10.0  # seconds after the grace time, to write the report and tell Prefect
POLL = 0.2  # seconds
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
RUN_VARIABLE = "PREFECT__FLOW_RUN_ID"  # in the environment of each run, and of no other child


class Runs:
    """The runs of Prefect's worker, by process id. Once it is dead they are our children, and their ids are not reused."""

    def __init__(self) -> None:
        self.left: set[int] = set()
        self.signalled: set[int] = set()
        self.readers: dict[int, list[threading.Thread]] = {}

    def find(self, parent: int) -> None:
        """Find the runs below a process, and read what they print: a print to a pipe without a reader would fail the unit."""
        self.left = set(_runs_below(parent))
        for process in self.left - set(self.readers):
            self.readers[process] = _read_outputs(process)

    def wait(self, signals: list[int], patience: float) -> bool:
        """Wait until all runs ended; returns whether they did by themselves. After a signal they have ``patience`` seconds."""
        deadline: float | None = None
        while self._reap():
            if signals:
                deadline = deadline or time.monotonic() + patience
                self._terminate()
                if time.monotonic() > deadline:
                    break
            time.sleep(POLL)
        self._kill()
        for reader in (reader for readers in self.readers.values() for reader in readers):
            reader.join(1.0)
        return not self.left

    def _reap(self) -> bool:
        """Remove the runs that ended; returns whether others are left."""
        for process in list(self.left):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                self.left.remove(process)
                log.info("worker: run in process %d ended with %d", process, os.waitstatus_to_exitcode(status))
        return bool(self.left)

    def _terminate(self) -> None:
        """Send SIGTERM, once. A run that still imports would die of it and stay Pending at the server, so wait for its handler."""
        for process in self.left - self.signalled:
            if _handles_sigterm(process):
                os.kill(process, signal.SIGTERM)
                self.signalled.add(process)

    def _kill(self) -> None:
        for process in self.left:
            log.warning("worker: run in process %d took too long to end: killed", process)
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)


def run_worker(command: list[str], patience: float) -> int:
    """Run Prefect's worker by its ``command`` until it ends or a signal arrives; returns the exit code.

    After SIGTERM or SIGINT: 0 if every run ended by itself within ``patience`` seconds, else 1. Otherwise the worker's code, never 0.
    Call it once, in the main thread.
    """
    signals, runs = _collect_signals(), Runs()
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    with tempfile.TemporaryDirectory(prefix="persres-worker-", ignore_cleanup_errors=True) as temporary:
        child = _start(command, temporary)
        _wait_for(child, signals)
        if signals:
            runs.find(child.pid)  # before the reader of their output is gone
        child.kill()
        code = child.wait()
        runs.find(os.getpid())
        reason = "told to stop" if signals else f"Prefect's worker ended with {code}"
        log.info("worker: %s; %d runs left", reason, len(runs.left))
        by_themselves = runs.wait(signals, patience)
    if signals:
        return int(not by_themselves)
    return 128 - code if code < 0 else code or 1


def _collect_signals() -> list[int]:
    """A list that grows by each SIGTERM and SIGINT, even where a shell's ``&`` ignores SIGINT."""
    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: signals.append(number))
    return signals


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def _start(command: list[str], temporary: str) -> subprocess.Popen:
    """Start Prefect's worker in a session of its own; it dies with us. What it cannot clean up (files with its runs' environment, and so
    with keys) is in ``temporary``."""
    return subprocess.Popen(
        command,
        env=os.environ | {"TMPDIR": temporary},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=partial(_prctl, PR_SET_PDEATHSIG, signal.SIGKILL),
    )


def _wait_for(child: subprocess.Popen, signals: list[int]) -> None:
    """Wait until it ends or a signal arrives, and reap orphans of ended runs, which would stay zombies."""
    while not signals and child.poll() is None:
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and ended.si_pid != child.pid:
            os.waitpid(ended.si_pid, 0)
        time.sleep(POLL)


def _runs_below(parent: int) -> list[int]:
    """The runs among a process's children. On Linux a run is a direct child of the worker (``python -m prefect.engine``)."""
    runs = []
    for child in psutil.Process(parent).children():
        with suppress(psutil.Error):  # it has ended
            if RUN_VARIABLE in child.environ():
                runs.append(child.pid)
    return runs


def _handles_sigterm(process: int) -> bool:
    """Whether the process has installed a handler of SIGTERM."""
    status = Path(f"/proc/{process}/status").read_text()
    caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "0")
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def _read_outputs(process: int) -> list[threading.Thread]:
    """Threads that copy those of its two outputs that are pipes to ours."""
    threads = []
    for number in (1, 2):
        source = Path(f"/proc/{process}/fd/{number}")
        with suppress(OSError):  # it has ended
            if source.is_fifo():
                threads.append(threading.Thread(target=_copy, args=(os.open(source, os.O_RDONLY), number), daemon=True))
                threads[-1].start()
    return threads


def _copy(source: int, to: int) -> None:
    while data := os.read(source, 1 << 16):
        with suppress(OSError):  # our own reader is gone; the run must not wait for it
            os.write(to, data)


def _parse(arguments: list[str] | None) -> Any:
    parser = argparse.ArgumentParser(
        prog="python -m flows.worker", description="A worker for one GPU; stop it by SIGTERM."
    )
    parser.add_argument("--pool", required=True, help="work pool, of type process")
    parser.add_argument("--limit", type=int, default=1, help="runs at a time (1)")
    parser.add_argument("--name", help="the worker's name at the server")
    parser.add_argument(
        "--grace", type=float, default=GRACE, help=f"seconds that runs have to end after a signal ({GRACE:.0f})"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the code of :func:`run_worker`."""
    options = _parse(arguments)
    if sys.platform != "linux":
        print("flows.worker: Linux only; elsewhere use prefect worker start, which kills its runs when stopped", file=sys.stderr)  # fmt: skip
        return 1
    show_logs()
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", options.pool, "--type", "process"]
    command += ["--limit", str(options.limit), *(["--name", options.name] if options.name else [])]
    return run_worker(command, options.grace + MARGIN)


if __name__ == "__main__":
    sys.exit(main())
