"""The unit: one concept × one variant, a frozen spec whose hash names its folder.

A unit is done when its manifest carries the spec's hash and every file it lists is there with
its recorded digest. The manifest is written last, by an atomic rename.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from persres.errors import PersresError, UnitFailures

MANIFEST = "manifest.json"


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_files(paths: list[Path], root: Path) -> dict[str, str]:
    """Digests by path relative to ``root``, sorted."""
    return {str(path.relative_to(root)): digest_file(path) for path in sorted(paths)}


def digest_folder(root: Path) -> str:
    """One digest for all files below a folder, names included."""
    files = digest_files([p for p in root.rglob("*") if p.is_file()], root)
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Unit:
    """``spec`` is canonical JSON of everything that the result depends on."""

    stage: str
    name: str
    spec: str

    @classmethod
    def of(cls, stage: str, name: str, spec: dict[str, Any]) -> Unit:
        """A unit whose spec is the given mapping."""
        return cls(stage, name, json.dumps(spec, sort_keys=True))

    @property
    def settings(self) -> dict[str, Any]:
        """The spec as a mapping."""
        return json.loads(self.spec)

    @property
    def hash(self) -> str:
        """Names the unit's folder: 16 hex digits of the spec's SHA-256."""
        return hashlib.sha256(f"{self.stage}\n{self.name}\n{self.spec}".encode()).hexdigest()[:16]

    def folder(self, work: Path) -> Path:
        """Where the unit works and keeps what it made."""
        return work / self.stage / self.hash


def is_done(unit: Unit, work: Path) -> bool:
    """Whether the manifest matches the spec and the files match the manifest."""
    folder = unit.folder(work)
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["spec_hash"] != unit.hash:
            return False
        return all(digest_file(folder / name) == digest for name, digest in manifest["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def finish(unit: Unit, work: Path, files: list[Path], facts: dict[str, Any] | None = None) -> None:
    """Write the manifest: after this the unit is done."""
    folder = unit.folder(work)
    manifest = {"spec_hash": unit.hash, "name": unit.name, "stage": unit.stage, "spec": unit.settings,
                "files": digest_files(files, folder), "facts": facts or {}}  # fmt: skip
    write_atomic(folder / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())


def facts(unit: Unit, work: Path) -> dict[str, Any]:
    """What a finished unit recorded about its run (seconds, memory, versions)."""
    return json.loads((unit.folder(work) / MANIFEST).read_text())["facts"]


def write_atomic(path: Path, data: bytes) -> None:
    """Write beside the place and rename: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def publishing(target: Path) -> Iterator[Path]:
    """A fresh folder to fill; on success it takes the target's place, on failure nothing changes."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_name(f".{target.name}.publishing")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
    except OSError as error:
        raise PersresError(
            f"cannot write to {target.parent}: {error.strerror}; make it writable or free some space"
        ) from error
    try:
        yield fresh
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        fresh.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


@contextmanager
def stage_lock(work: Path, stage: str) -> Iterator[None]:
    """One run of a stage at a time. A killed ``dvc`` leaves its child running: the next run waits for it."""
    try:
        work.mkdir(parents=True, exist_ok=True)
        handle = (work / f"{stage}.lock").open("a+")
    except OSError as error:
        raise PersresError(
            f"cannot write to the work folder {work}: {error.strerror}; make it writable or free some space"
        ) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            print(f"{stage}: process {handle.read().strip()} is running this stage; waiting for it to end", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        handle.seek(0)
        handle.truncate()
        handle.write(str(os.getpid()))
        handle.flush()
        yield


Work = Callable[[Unit, Path, str], None]  # unit, work folder, device


def run_units(units: list[Unit], work: Path, function: Work, workers: int, device: str) -> None:
    """Run what is not done, let every unit finish or fail, then raise UnitFailures once if any failed."""
    if not units:
        return
    stage = units[0].stage
    todo = [unit for unit in units if not is_done(unit, work)]
    print(f"{stage}: {len(units)} units, {len(units) - len(todo)} already done", flush=True)
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


def _cores() -> int:
    """Processors this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run_here(todo: list[Unit], work: Path, function: Work, device: str, threads: int) -> dict[str, str]:
    failures = {}
    if todo:
        _set_threads(threads)
    for number, unit in enumerate(todo, 1):
        started = time.monotonic()
        reason = _attempt(unit, work, function, device)
        if reason:
            failures[unit.name] = reason
        _report(unit, reason, number, len(todo), time.monotonic() - started)
    return failures


def _run_in_processes(
    todo: list[Unit], work: Path, function: Work, device: str, processes: int, threads: int
) -> dict[str, str]:
    failures: dict[str, str] = {}
    context = get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker, initargs=(threads,))
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
        function(unit, work, device)
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
    state = f"FAILED: {reason}" if reason else "done"
    print(f"{unit.stage} {number}/{total} {unit.name} {state} ({seconds:.0f} s)", flush=True)


def _set_threads(threads: int) -> None:
    """At most as many as OMP_NUM_THREADS says: where other work shares the cores, more threads wait for one another."""
    import torch

    most = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    torch.set_num_threads(min(threads, int(most)) if most.isdigit() and int(most) else threads)


def _start_worker(threads: int) -> None:
    """In a worker: its share of the cores, and an end when its parent is gone (kill -9 tells no child)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers
    _set_threads(threads)
    parent = parent_process()

    def watch() -> None:
        while parent is not None and parent.is_alive():
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
