"""The settings and folders that every stage is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from persres.config.schema import Profile
from persres.units.batches import Job
from persres.units.pool import run_units
from persres.units.unit import Unit

RunUnits = Callable[[list[Unit], Path, Job, int, str], None]  # as run_units


@dataclass(frozen=True)
class Context:
    """Settings, the published folder and the work folder. ``run_units`` runs units: here, or on a fleet
    (:class:`persres.fleet.scheduler.Fleet`)."""

    profile: Profile
    data: Path = Path("data")
    work: Path = Path(".work")
    run_units: RunUnits = run_units
