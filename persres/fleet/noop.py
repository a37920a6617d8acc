"""A unit that does nothing: what is left is what the fleet itself costs (make scale)."""

from __future__ import annotations

from pathlib import Path

from persres.units.files import write_atomic
from persres.units.specs import Spec
from persres.units.unit import Unit, finish


class NoopSpec(Spec):
    """Told apart by its number. ``seconds`` to sleep, for faults that need a moment to strike."""

    number: int
    seconds: float = 0.0
    code: str = ""


def noop_unit(unit: Unit[NoopSpec], work: Path, device: str) -> None:
    """Write a file that follows from the spec alone."""
    import time

    time.sleep(unit.spec.seconds)
    path = unit.folder(work) / "number.txt"
    write_atomic(path, f"{unit.spec.number}\n".encode())
    finish(unit, work, [path], {"seconds": unit.spec.seconds})
