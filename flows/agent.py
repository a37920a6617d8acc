"""One GPU's agent: ``python -m flows.agent --pool persres-gpu``. Prefect's worker, and a stop that lets the unit at hand end.

Told to stop, Prefect's worker (3.8.8) kills its runs within milliseconds. So it is never told: on SIGTERM or Ctrl-C the agent kills the worker
alone, which its runs outlive, then tells the runs themselves; a shard ends the unit at hand and begins no other. A worker that dies
by itself leaves its runs to end as if it were there, for another worker would put a second run on the GPU; then the agent ends with
the worker's code, so that systemd starts both again.

Linux only: it reads /proc, and a dead worker's runs become the agent's own children, for which Linux has a name.
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

from persres.logging import show_logs

log = logging.getLogger("persres.fleet.stop")  # as a program this module has another name
GRACE = 120.0  # what flows/shard.py gives the units at hand: a shard that is told ends by itself before the agent's patience does
MARGIN = 10.0  # to write the report and tell Prefect
LOOKS_EVERY = 0.2  # seconds
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
RUN = b"PREFECT__FLOW_RUN_ID="  # the worker gives it to each run, and to no other process


class Runs:
    """A worker's runs, by process. Once it is gone they are our children, and no other process takes their numbers."""

    def __init__(self) -> None:
        self.left: set[int] = set()
        self.told: set[int] = set()
        self.readers: dict[int, list[threading.Thread]] = {}

    def find(self, parent: int) -> None:
        """Those below a process. From now on we read what they print, as their worker did: a print to a pipe without a reader is an
        error, and would fail the unit."""
        self.left = set(_runs_below(parent))
        for process in self.left - set(self.readers):
            self.readers[process] = _read(process)

    def end(self, told: list[int], patience: float) -> bool:
        """Wait until they have; whether all did by themselves. Told to stop, before or meanwhile, they have ``patience`` seconds."""
        until: float | None = None
        while self._look():
            if told:
                until = until or time.monotonic() + patience
                self._tell()
                if time.monotonic() > until:
                    break
            time.sleep(LOOKS_EVERY)
        self._kill()
        for reader in (reader for readers in self.readers.values() for reader in readers):
            reader.join(1.0)
        return not self.left

    def _look(self) -> bool:
        """Take away those that have ended; whether others have not."""
        for process in list(self.left):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                self.left.remove(process)
                log.info("agent: run in process %d ended with %d", process, os.waitstatus_to_exitcode(status))
        return bool(self.left)

    def _tell(self) -> None:
        """SIGTERM, once. A run that still imports would die of it and stay Pending at the server: it is told as soon as it listens."""
        for process in self.left - self.told:
            if _listens(process):
                os.kill(process, signal.SIGTERM)
                self.told.add(process)

    def _kill(self) -> None:
        for process in self.left:
            log.warning("agent: run in process %d took too long to end: killed", process)
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)


def run_agent(command: list[str], patience: float) -> int:
    """The worker's ``command`` until it ends or SIGTERM or SIGINT come. Told to stop: 0 where every run ended by itself within
    ``patience`` seconds, else 1. Not told: what the worker ended with, never 0. To be called once, in a process's main thread."""
    told, runs = _signals(), Runs()
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    with tempfile.TemporaryDirectory(prefix="persres-agent-", ignore_cleanup_errors=True) as temporary:
        worker = _start(command, temporary)
        _stay_with(worker, told)
        if told:
            runs.find(worker.pid)  # before their reader is gone
        worker.kill()
        code = worker.wait()
        runs.find(os.getpid())
        log.info(
            "agent: %s; runs to end: %d", "told to stop" if told else f"the worker ended with {code}", len(runs.left)
        )
        whole = runs.end(told, patience)
    if told:
        return int(not whole)
    return 128 - code if code < 0 else code or 1


def _signals() -> list[int]:
    """Those that have come, by and by. With a handler of our own Ctrl-C counts too where a shell's ``&`` had it ignored."""
    told: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: told.append(number))
    return told


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def _start(command: list[str], temporary: str) -> subprocess.Popen:
    """Out of Ctrl-C's reach; kill -9 of the agent is its end as well. What it would tidy up and can't, files with its runs'
    environment and so with keys, lies in ``temporary``."""
    return subprocess.Popen(
        command,
        env=os.environ | {"TMPDIR": temporary},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=partial(_prctl, PR_SET_PDEATHSIG, signal.SIGKILL),
    )


def _stay_with(worker: subprocess.Popen, told: list[int]) -> None:
    """Until it ends or we are told to stop. What a run leaves when it ends comes to us, and would be a zombie for as long as we live."""
    while not told and worker.poll() is None:
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and ended.si_pid != worker.pid:
            os.waitpid(ended.si_pid, 0)
        time.sleep(LOOKS_EVERY)


def _runs_below(parent: int) -> list[int]:
    """The runs among a process's children. On Linux Prefect's process for a run prepares it, then becomes ``python -m prefect.engine``
    in place, so there is nothing between worker and run; what a run starts has the same environment and another parent."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            above = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if above == parent and any(line.startswith(RUN) for line in (folder / "environ").read_bytes().split(b"\0")):
                found.append(int(folder.name))
    return found


def _listens(process: int) -> bool:
    """Whether SIGTERM would come to a handler."""
    status = Path(f"/proc/{process}/status").read_text()
    caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "0")
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def _read(process: int) -> list[threading.Thread]:
    """A thread for each of its two outputs that is a pipe, which goes where ours does."""
    threads = []
    for number in (1, 2):
        source = Path(f"/proc/{process}/fd/{number}")
        with suppress(OSError):  # it has ended meanwhile
            if source.is_fifo():
                threads.append(threading.Thread(target=_copy, args=(os.open(source, os.O_RDONLY), number), daemon=True))
                threads[-1].start()
    return threads


def _copy(source: int, to: int) -> None:
    while said := os.read(source, 1 << 16):
        with suppress(OSError):  # our own reader is gone; the run must not wait for it
            os.write(to, said)


def _arguments(given: list[str] | None) -> Any:
    parser = argparse.ArgumentParser(
        prog="python -m flows.agent", description="One GPU's agent, to be stopped by SIGTERM."
    )
    parser.add_argument("--pool", required=True, help="work pool, of type process")
    parser.add_argument("--limit", type=int, default=1, help="runs at a time (1)")
    parser.add_argument("--name", help="the worker's name at the server")
    parser.add_argument(
        "--grace", type=float, default=GRACE, help=f"seconds that runs have when told to stop ({GRACE:.0f})"
    )
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> int:
    """Command line. Its code is run_agent's."""
    arguments = _arguments(given)
    if sys.platform != "linux":
        print(
            "flows.agent: Linux only; elsewhere start prefect worker start, which kills its runs when stopped",
            file=sys.stderr,
        )
        return 1
    show_logs()
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", arguments.pool, "--type", "process"]
    command += ["--limit", str(arguments.limit), *(["--name", arguments.name] if arguments.name else [])]
    return run_agent(command, arguments.grace + MARGIN)


if __name__ == "__main__":
    sys.exit(main())
