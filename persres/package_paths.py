"""Files that ship with the package: ``package:miniworld/weights/sd`` is a path relative to the installed package."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parent
SCHEME = "package:"


def located(name: str) -> str:
    """The name of a model or file with ``package:`` replaced by the package's path. ``local-dir:`` may come before it."""
    if SCHEME not in name:
        return name
    before, _, path = name.partition(SCHEME)
    return f"{before}{PACKAGE / path}"
