"""What every stage is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from persres.config import Profile
from persres.runs.pool import Work, run_units
from persres.runs.units import Unit

Place = Callable[[list[Unit], Path, Work, int, str], None]  # as run_units


@dataclass(frozen=True)
class Context:
    """Settings, the published folder and the scratch folder. ``place`` says where units run: here, or on a fleet
    (:class:`persres.fleet.parent.Fleet`)."""

    profile: Profile
    data: Path = Path("data")
    work: Path = Path(".work")
    place: Place = run_units
