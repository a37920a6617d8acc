"""What every stage is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from persres.config.schema import Profile
from persres.units.pool import Work, run_units
from persres.units.unit import Unit

RunUnits = Callable[[list[Unit], Path, Work, int, str], None]  # as run_units


@dataclass(frozen=True)
class Context:
    """Settings, the published folder and the scratch folder. ``place`` says where units run: here, or on a fleet
    (:class:`persres.fleet.scheduler.Fleet`)."""

    profile: Profile
    data: Path = Path("data")
    work: Path = Path(".work")
    place: RunUnits = run_units
