"""Errors that a user can act on: each names the thing and the mend, and is shown without a traceback."""

from __future__ import annotations


class PersresError(Exception):
    """Something outside the code is wrong: a photo, a parameter, a file, the disk."""


class UnitFailures(PersresError):
    """Raised once, after a fan-out has finished, naming every failed unit."""

    def __init__(self, stage: str, failures: dict[str, str], total: int) -> None:
        lines = [f"  {name}: {reason}" for name, reason in sorted(failures.items())]
        finished = total - len(failures)
        head = (
            f"{stage}: {len(failures)} of {total} units failed ({finished} finished and are kept; run again to retry)"
        )
        super().__init__("\n".join([head, *lines]))
        self.stage, self.failures = stage, failures
