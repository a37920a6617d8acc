"""Files that ship with the package: ``package:miniworld/weights/sd`` names one wherever the package is installed."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parent
SCHEME = "package:"


def located(name: str) -> str:
    """A model's or file's name with ``package:`` made a path; any other name as it is. ``local-dir:`` may stand before it."""
    if SCHEME not in name:
        return name
    before, _, path = name.partition(SCHEME)
    return f"{before}{PACKAGE / path}"
