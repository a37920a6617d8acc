"""Errors that a user can act on: each names the object and the fix, and is shown without a traceback."""

from __future__ import annotations


class PersresError(Exception):
    """Something outside of the code is wrong: a photo, a setting, a file, the disk."""


class ModelError(PersresError, OSError, ValueError):
    """A base model can't be loaded; also an OSError and a ValueError, which diffusers raises for the same."""


class UnitFailures(PersresError):
    """Raised once after all units of a stage have run; names every failed unit."""

    def __init__(self, stage: str, failures: dict[str, str], total: int) -> None:
        lines = [f"  {name}: {reason}" for name, reason in sorted(failures.items())]
        finished = total - len(failures)
        head = (
            f"{stage}: {len(failures)} of {total} units failed ({finished} finished and are saved; run again to retry)"
        )
        super().__init__("\n".join([head, *lines]))
        self.stage, self.failures = stage, failures
