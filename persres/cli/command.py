"""A command of the command line: its function and the examples in its help."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import typer


class Command(NamedTuple):
    """``function`` declares arguments, options and help; ``examples`` are calls, each with an optional note in parentheses."""

    function: Callable[..., Any]
    examples: tuple[str, ...] = ()


def add_commands(app: typer.Typer, commands: dict[str, Command]) -> None:
    """Register commands by name; the help of each ends with its examples."""
    for name, (function, examples) in commands.items():
        epilog = "\n\n".join(["Examples:", *examples]) if examples else None
        app.command(name, epilog=epilog)(function)
