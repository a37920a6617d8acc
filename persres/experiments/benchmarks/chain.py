"""The overhead of the pipeline: in one process, by DVC, by Prefect.

The work of a stage is what its units took, shared by its workers. The rest of the wall-clock time is imports, loading of models,
estimates, hashing, publishing, and the orchestrator. Each runner is compared with the seconds of its units, so that a busy machine,
which slows both, does not count as overhead.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from persres.config.load import read_setting
from persres.errors import PersresError
from persres.units.code_digest import PACKAGE
from persres.units.unit import MANIFEST

ROOT = PACKAGE.parent
RUNNERS = ("chain", "dvc", "prefect")


@dataclass(frozen=True)
class FinishedUnit:
    """A finished unit: its share of its batch's seconds, when it ended (seconds since the epoch), and the batch's number of units."""

    stage: str
    seconds: float
    ended: float
    batch_size: int = 1

    @property
    def batch_seconds(self) -> float:
        """Seconds of its batch."""
        return self.seconds * self.batch_size


def finished_units(work: Path) -> list[FinishedUnit]:
    """Return the units below a work folder whose manifest records their seconds, by end."""
    return sorted(_read_units(work), key=lambda unit: unit.ended)


def _read_units(work: Path) -> Iterator[FinishedUnit]:
    for path in work.glob(f"*/*/{MANIFEST}"):
        manifest = json.loads(path.read_text())
        facts = manifest["facts"]
        if "seconds" in facts:
            size = facts.get("units_per_batch", 1)
            yield FinishedUnit(manifest["stage"], facts["seconds"], path.stat().st_mtime, size)


def accounts(units: list[FinishedUnit], started: float, ended: float, workers: int) -> dict:
    """Return how the time from ``started`` to ``ended`` was spent, in seconds. Raises PersresError without units.

    ``work_s`` by stage: its units' seconds over its workers, at least its longest batch. ``rest_s``: before a stage's first unit, within
    the stage in addition to its work, and after the last unit; the sum is ``wall_s`` minus ``bare_s``. ``overhead``: rest over work.
    """
    if not units:
        raise PersresError("no unit was finished; use an empty work folder and a profile that samples images")
    work: dict[str, float] = {}
    rest: dict[str, float] = {}
    last = started
    for stage in dict.fromkeys(unit.stage for unit in units):
        members = [unit for unit in units if unit.stage == stage]
        first, final = min(unit.ended - unit.batch_seconds for unit in members), max(unit.ended for unit in members)
        shared = sum(unit.seconds for unit in members) / min(workers, len(members))
        work[stage] = max(max(unit.batch_seconds for unit in members), shared)
        rest[f"before {stage}"] = first - last
        rest[f"within {stage}"] = final - first - work[stage]
        last = final
    rest["after"] = ended - last
    bare, wall = sum(work.values()), ended - started
    totals = {"wall_s": wall, "bare_s": bare, "overhead": (wall - bare) / bare}
    return totals | {"work_s": work, "rest_s": rest, "workers": workers}


def chain_overhead(params: Path, profile: str | None, work: Path, runners: tuple[str, ...] = RUNNERS) -> dict:
    """Return :func:`accounts` by runner, one after another, each in an empty folder below ``work``; None for a missing package.

    DVC runs in a clone of the checkout's commit. Raises PersresError outside of a checkout, and if a run fails.
    """
    if not (ROOT / "dvc.yaml").is_file():
        raise PersresError(f"no dvc.yaml in {ROOT}; run the benchmark in a checkout")
    workers = read_setting(params, profile, "runtime", "workers") or len(os.sched_getaffinity(0))
    overheads: dict = {"profile": profile, "workers": workers}
    for runner in runners:
        folder = work / runner
        if folder.exists() and any(folder.iterdir()):
            raise PersresError(f"{folder} is not empty; its finished units would not run again")
        if runner != "chain" and find_spec(runner) is None:
            overheads[runner] = None
            continue
        started, ended = RUN[runner](params, profile, folder)
        units = finished_units(folder / "repo" / ".work" if runner == "dvc" else folder / "work")
        overheads[runner] = accounts(units, started, ended, workers)
    return overheads


def timed(command: list[str], folder: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Run a command in the folder; return its start and end. Raises PersresError with its last lines if it fails."""
    started = time.time()
    result = subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    if result.returncode:
        output = "\n".join((result.stdout + result.stderr).splitlines()[-15:])
        raise PersresError(f"{' '.join(command)} failed:\n{output}")
    return started, time.time()


def _options(params: Path, profile: str | None, folder: Path) -> list[str]:
    options = ["--params", str(params.absolute()), *(["--profile", profile] if profile else [])]
    return [*options, "--data", str(folder.absolute() / "data"), "--work", str(folder.absolute() / "work")]


def _by_chain(params: Path, profile: str | None, folder: Path) -> tuple[float, float]:
    command = [sys.executable, "-m", "persres", "chain", *_options(params, profile, folder)]
    return timed(command, ROOT, {"PYTHONPATH": str(ROOT)})


def _by_prefect(params: Path, profile: str | None, folder: Path) -> tuple[float, float]:
    """With an ephemeral server whose files lie below ``folder``."""
    home = {"PREFECT_HOME": str(folder.absolute() / "prefect"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    home["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"] = "300"  # the default of 20 is too short on a busy machine
    (folder / "prefect").mkdir(
        parents=True, exist_ok=True
    )  # without this folder the server waits for its database forever
    command = [sys.executable, "-m", "flows.pipeline", *_options(params, profile, folder)]
    return timed(command, ROOT, {"PYTHONPATH": str(ROOT), "PREFECT_API_URL": "", **home})


def _by_dvc(params: Path, profile: str | None, folder: Path) -> tuple[float, float]:
    """In a clone whose params.yaml is the given one with the profile selected."""
    clone = folder.absolute() / "repo"
    folder.mkdir(parents=True, exist_ok=True)
    timed(["git", "clone", "--quiet", str(ROOT), str(clone)], folder, {})
    text = params.read_text()
    text = re.sub(r"^profile:.*$", f"profile: {profile}", text, count=1, flags=re.MULTILINE) if profile else text
    (clone / "params.yaml").write_text(text)
    return timed([sys.executable, "-m", "dvc", "repro"], clone, {"PYTHONPATH": str(clone), "DVC_NO_ANALYTICS": "1"})


RUN = {"chain": _by_chain, "dvc": _by_dvc, "prefect": _by_prefect}
