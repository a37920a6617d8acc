"""flows/worker.py with a worker of our own in Prefect's place: one that, signals to stop, kills its run at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(sys.platform != "linux", reason="flows.worker is for Linux"),
]

PREFECT_WORKER = """
import os, signal, subprocess, sys
run = subprocess.Popen([sys.executable, "-c", sys.argv[1], *sys.argv[2:]], stdout=subprocess.PIPE,
                       start_new_session=True, env=os.environ | {"PREFECT__FLOW_RUN_ID": "1"})
signal.signal(signal.SIGTERM, lambda *_: (run.kill(), os._exit(0)))
open("worker", "w").write(str(os.getpid()))
for line in run.stdout:
    print(line.decode(), end="", flush=True)
signal.pause()
"""
RUN = """
import os, signal, sys, time
started, ends_after = time.monotonic(), float(sys.argv[1])
time.sleep(float(sys.argv[2]))  # imports
signals = []
signal.signal(signal.SIGTERM, lambda *_: signals.append(1))
open("run", "w").write(str(os.getpid()))
while not (signals if ends_after < 0 else time.monotonic() > started + ends_after):
    time.sleep(0.02)
time.sleep(0.4)  # the unit at hand
print("signals", len(signals), flush=True)
"""
PROGRAM = (
    "import sys; from flows.worker import run_worker; from persres.logging import show_logs; show_logs(); "
    "sys.exit(run_worker(sys.argv[2:], float(sys.argv[1])))"
)


class StoppableWorker:
    """With one run, which ends when signals to, or after so many seconds whatever it is signals. ``worker``, ``run``: their processes."""

    def __init__(
        self, repo: Path, folder: Path, patience: float, ends_after: float = -1.0, imports: float = 0.0
    ) -> None:
        self.folder = folder
        command = [sys.executable, "-c", PROGRAM, str(patience), sys.executable, "-c", PREFECT_WORKER, RUN]
        self.process = subprocess.Popen(
            [*command, str(ends_after), str(imports)], cwd=folder, env=os.environ | {"PYTHONPATH": str(repo), "TMPDIR": str(folder)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        )  # fmt: skip

    def pid(self, name: str) -> int:
        until = time.monotonic() + 20
        while not (path := self.folder / name).exists() or not path.read_text():
            assert time.monotonic() < until
            time.sleep(0.01)
        return int(path.read_text())

    def end(self) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=20)
        return self.process.returncode, output


def gone(process: int) -> bool:
    """Or a zombie, which is another's to take away."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def until_gone(process: int) -> None:
    until = time.monotonic() + 10
    while not gone(process):
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture
def start(repo, tmp_path):
    started = []

    def process(*arguments, **options) -> StoppableWorker:
        started.append(StoppableWorker(repo, tmp_path, *arguments, **options))
        return started[-1]

    yield process
    for one in started:
        for process in [one.process.pid, *(one.pid(name) for name in ("worker", "run") if (tmp_path / name).exists())]:
            if not gone(process):
                os.kill(process, signal.SIGKILL)
        one.process.communicate()


def test_after_a_signal_the_run_ends_and_no_other_starts(start):
    """By SIGINT, though the process was started with it ignored. A second signal changes nothing."""
    process = start(10.0)
    worker, run = process.pid("worker"), process.pid("run")
    process.process.send_signal(signal.SIGINT)
    until_gone(worker)
    assert not gone(run)
    process.process.terminate()
    code, output = process.end()
    assert code == 0 and "signals 1\n" in output, "what a run prints after its worker is gone is still read"
    assert gone(run)


def test_a_run_without_a_handler_is_signalled_when_it_has_one(start):
    process = start(10.0, imports=0.5)
    process.pid("worker")
    process.process.terminate()
    code, output = process.end()
    assert code == 0 and "signals 1\n" in output


def test_past_its_time_a_run_is_killed(start):
    process = start(0.3, ends_after=60.0)
    run = process.pid("run")
    process.process.terminate()
    code, output = process.end()
    assert code == 1 and "killed" in output and gone(run)


def test_a_worker_that_dies_leaves_its_run_to_end_and_a_code_to_restart_for(start):
    process = start(10.0, ends_after=0.3)
    process.pid("run")
    os.kill(process.pid("worker"), signal.SIGKILL)
    code, output = process.end()
    assert code == 137 and "signals 0\n" in output


def test_killed_itself_the_agent_leaves_no_worker(start):
    process = start(10.0, ends_after=1.0)
    worker = process.pid("worker")
    process.pid("run")
    process.process.kill()
    process.end()
    until_gone(worker)
