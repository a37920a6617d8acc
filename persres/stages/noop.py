"""A unit that computes nothing: it measures the costs of the fleet itself, in tests and ``make faults``."""

from __future__ import annotations

import time
from pathlib import Path

from persres.units.files import write_atomic
from persres.units.specs import Spec
from persres.units.unit import Unit, finish


class NoopSpec(Spec):
    """A number, and the seconds to sleep."""

    number: int
    seconds: float = 0.0
    code: str = ""  # none computes it


def noop_unit(unit: Unit[NoopSpec], work: Path, device: str) -> None:
    """Sleep, then write the number to a file."""
    time.sleep(unit.spec.seconds)
    path = unit.folder(work) / "number.txt"
    write_atomic(path, f"{unit.spec.number}\n".encode())
    finish(unit, work, [path], {"seconds": unit.spec.seconds})
