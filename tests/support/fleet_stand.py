"""A whole fleet on this machine: a Prefect server, an S3 server, workers in clones and work folders of their own, a scheduler's clone.

``make fleet-demo`` and ``make faults`` stand on it. Everything lies in one folder and ends with it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

from tests.support.s3_server import BUCKET, Server

REPO = Path(__file__).resolve().parents[2]
POOL = "persres-gpu"


def free_port() -> int:
    """A port of loopback that nobody holds."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Stand:
    """``workers`` clones, one worker each."""

    def __init__(self, root: Path, workers: int = 2, preload: str | None = None) -> None:
        self.root, self.processes = root, {}
        (root / "tmp").mkdir(parents=True, exist_ok=True)
        self.s3, self.port = Server(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.clock = root / "clock"
        self.clock.write_text("0\n")
        self.environment = os.environ | {
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.s3.endpoint,
            "NO_PROXY": "127.0.0.1,localhost",
            "PREFECT_HOME": str(root / "prefect"),
            "PREFECT_API_URL": f"{self.url}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "DVC_NO_ANALYTICS": "1",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PREFECT_LOGGING_LEVEL": "INFO",
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(root / "tmp"),
        }
        # tests/support/clock.c: the wall clock of workers and schedulers, not the server's, moved by writing seconds into a file
        self.faked = {"LD_PRELOAD": preload, "CLOCK_FILE": str(self.clock)} if preload else {}
        self.count = workers

    def __enter__(self) -> Stand:
        for name, value in self.environment.items():
            if name.startswith("AWS_"):
                os.environ[name] = value
        self.s3.client().create_bucket(Bucket=BUCKET)
        for name in ("scheduler", *self.workers):
            self.clone(name)
        self.start_server()
        self.run([sys.executable, "-m", "flows.setup"], "scheduler")
        for name in self.workers:
            self.start_worker(name)
        return self

    def __exit__(self, *error: object) -> None:
        for name in list(self.processes):
            self.kill(name)
        self.s3.stop()

    @property
    def workers(self) -> list[str]:
        """Their names, which are their clones' too."""
        return [f"worker{i}" for i in range(1, self.count + 1)]

    def clone(self, name: str) -> Path:
        """What is committed here, as a new machine would have it; where this is no repository of git's (an unpacked archive), its files."""
        folder = self.root / name
        if folder.exists():
            return folder
        done = subprocess.run(["git", "clone", "-q", str(REPO), str(folder)], capture_output=True, check=False)
        if done.returncode:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(REPO, folder, ignore=shutil.ignore_patterns(".venv", ".work", ".git", "cache", "tmp"))
        return folder

    def spawn(self, name: str, command: list[str], clone: str) -> subprocess.Popen:
        """In a clone, with that clone's code, in a process group of its own; output to ``<name>.log``."""
        folder = self.root / clone
        environment = self.environment | {"PYTHONPATH": f"{folder}:{folder / 'tests'}"}
        environment |= self.faked if name.startswith(("worker", "scheduler")) else {}
        with (self.root / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        self.processes[name] = process
        return process

    def run(self, command: list[str], clone: str) -> str:
        """To its end. Raises where it fails."""
        folder = self.root / clone
        environment = self.environment | {"PYTHONPATH": f"{folder}:{folder / 'tests'}"}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    def start_server(self) -> None:
        """Prefect's, on its SQLite file, and wait until it answers."""
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        self.spawn("server", command, "scheduler")
        until = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/api/health", timeout=2):
                    return
            except OSError:
                assert time.monotonic() < until, (self.root / "server.log").read_text()[-2000:]
                time.sleep(0.5)

    def start_worker(self, name: str) -> None:
        """One worker, one run at a time, as on a GPU."""
        self.spawn(name, [sys.executable, "-m", "flows.worker", "--pool", POOL, "--name", name], name)

    def worker_of(self, process: int) -> tuple[str, int]:
        """The worker below which a process runs, and the process of that worker's worker."""
        workers = {self.processes[name].pid: name for name in self.workers}
        while process > 1:
            above = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
            if above in workers:
                return workers[above], process
            process = above
        raise AssertionError("no worker's process")

    def ended(self, name: str) -> int:
        """Wait until a process has ended by itself; its code."""
        return self.processes.pop(name).wait(timeout=150)

    def kill(self, name: str, whole: bool = True) -> None:
        """kill -9, of the whole process group or of the process alone."""
        process = self.processes.pop(name)
        with suppress(ProcessLookupError):
            (os.killpg if whole else os.kill)(process.pid, signal.SIGKILL)
        process.wait()

    def states(self, store: str) -> dict[str, int]:
        """How many runs of shards of a store are in which state, by Prefect's own word."""
        ask = urllib.request.Request(
            f"{self.url}/api/flow_runs/filter", data=b"{}", headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(ask, timeout=30) as answer:
            runs = json.load(answer)
        names = [
            run["state_name"]
            for run in runs
            if "shard" in run["parameters"] and run["parameters"].get("store") == store
        ]
        return {name: names.count(name) for name in sorted(set(names))}

    def log(self, name: str) -> str:
        """What a process has said."""
        return (self.root / f"{name}.log").read_text(errors="replace")
