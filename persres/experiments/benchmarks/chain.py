"""What running the chain costs beside its work: in one process, by DVC, by Prefect.

The bare work of a stage is what its units took, shared by its workers; the rest of the wall-clock is imports, models loaded, plans,
hashing, publishing and whoever orders the stages. Each way is compared with its own units' seconds, so that a busy machine, which
slows both, does not pass for overhead.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
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
    """A finished unit: its share of what its batch took, when it ended (seconds since the epoch), and how many the batch held."""

    stage: str
    seconds: float
    ended: float
    together: int = 1

    @property
    def whole(self) -> float:
        """Seconds of its batch."""
        return self.seconds * self.together


def finished_units(work: Path) -> list[FinishedUnit]:
    """The units below a work folder that say what they took, by their end."""
    found = []
    for path in work.glob(f"*/*/{MANIFEST}"):
        manifest = json.loads(path.read_text())
        if "seconds" in manifest["facts"]:
            facts = manifest["facts"]
            found.append(
                FinishedUnit(manifest["stage"], facts["seconds"], path.stat().st_mtime, facts.get("units_per_batch", 1))
            )
    return sorted(found, key=lambda done: done.ended)


def accounts(done: list[FinishedUnit], started: float, ended: float, workers: int) -> dict:
    """Where the time from ``started`` to ``ended`` went, in seconds.

    ``work_s`` by stage: all its units' seconds over its workers, at least its longest unit's. ``rest_s``: before a stage's first unit,
    within the stage beside its work, and after the last unit; all of it together is ``wall_s`` less ``bare_s``. ``overhead``: that
    rest as a share of the bare work. Raises PersresError where nothing was done.
    """
    if not done:
        raise PersresError("no unit was done; give an empty work folder and a profile that draws something")
    work: dict[str, float] = {}
    rest: dict[str, float] = {}
    last = started
    for stage in dict.fromkeys(unit.stage for unit in done):
        seconds = [unit.seconds for unit in done if unit.stage == stage]
        first = min(unit.ended - unit.whole for unit in done if unit.stage == stage)
        final = max(unit.ended for unit in done if unit.stage == stage)
        longest = max(unit.whole for unit in done if unit.stage == stage)
        work[stage] = max(longest, sum(seconds) / min(workers, len(seconds)))
        rest[f"before {stage}"] = first - last
        rest[f"within {stage}"] = final - first - work[stage]
        last = final
    rest["after"] = ended - last
    bare, wall = sum(work.values()), ended - started
    told = {"wall_s": wall, "bare_s": bare, "overhead": (wall - bare) / bare}
    return told | {"work_s": work, "rest_s": rest, "workers": workers}


def chain_overhead(params: Path, profile: str | None, work: Path, ways: tuple[str, ...] = RUNNERS) -> dict:
    """The whole chain of a profile by each way, one after another, each in an empty folder below ``work``; :func:`accounts` by way, None
    where DVC or Prefect is not installed.

    DVC runs in a clone of the checkout's commit. Raises PersresError outside of a checkout, and where a run fails.
    """
    if not (ROOT / "dvc.yaml").is_file():
        raise PersresError(f"no dvc.yaml in {ROOT}; measure the chain in a checkout")
    workers = read_setting(params, profile, "runtime", "workers") or len(os.sched_getaffinity(0))
    found: dict = {"profile": profile, "workers": workers}
    for way in ways:
        place = work / way
        if place.exists() and any(place.iterdir()):
            raise PersresError(f"{place} is not empty; finished units there would not run again")
        if way != "chain" and find_spec(way) is None:
            found[way] = None
            continue
        begun, ended = RUN[way](params, profile, place)
        done = finished_units(place / "repo" / ".work" if way == "dvc" else place / "work")
        found[way] = accounts(done, begun, ended, workers)
    return found


def timed(command: list[str], folder: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Run it in the folder; its start and end. Raises PersresError with the end of what it said where it fails."""
    begun = time.time()
    done = subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise PersresError(f"{' '.join(command)} failed:\n{said}")
    return begun, time.time()


def _options(params: Path, profile: str | None, place: Path) -> list[str]:
    chosen = ["--profile", profile] if profile else []
    return ["--params", str(params.absolute()), *chosen, "--data", str(place.absolute() / "data"), "--work", str(place.absolute() / "work")]  # fmt: skip


def _by_chain(params: Path, profile: str | None, place: Path) -> tuple[float, float]:
    command = [sys.executable, "-m", "persres", "run", *_options(params, profile, place)]
    return timed(command, ROOT, {"PYTHONPATH": str(ROOT)})


def _by_prefect(params: Path, profile: str | None, place: Path) -> tuple[float, float]:
    """With a server of its own for the run, which keeps its things below ``place``."""
    home = {"PREFECT_HOME": str(place.absolute() / "prefect"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    home["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"] = "300"  # the 20 that it has are too few on a busy machine
    (place / "prefect").mkdir(
        parents=True, exist_ok=True
    )  # the server makes no parents: it would wait for its database in vain
    command = [sys.executable, "-m", "flows.pipeline", *_options(params, profile, place)]
    return timed(command, ROOT, {"PYTHONPATH": str(ROOT), "PREFECT_API_URL": "", **home})


def _by_dvc(params: Path, profile: str | None, place: Path) -> tuple[float, float]:
    """In a clone whose params.yaml is the given one with the profile chosen."""
    clone = place.absolute() / "repo"
    place.mkdir(parents=True, exist_ok=True)
    timed(["git", "clone", "--quiet", str(ROOT), str(clone)], place, {})
    text = params.read_text()
    chosen = re.sub(r"^profile:.*$", f"profile: {profile}", text, count=1, flags=re.MULTILINE) if profile else text
    (clone / "params.yaml").write_text(chosen)
    return timed([sys.executable, "-m", "dvc", "repro"], clone, {"PYTHONPATH": str(clone), "DVC_NO_ANALYTICS": "1"})


RUN = {"chain": _by_chain, "dvc": _by_dvc, "prefect": _by_prefect}
