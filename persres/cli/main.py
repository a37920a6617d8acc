"""The command line ``persres``: registers the commands and turns errors into one line and an exit code.

Commands import what they need when they run, so that ``persres --help`` is quick.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Annotated

import typer
from typer.exceptions import TyperException

from persres.cli import concept, run, versions
from persres.cli.command import add_commands
from persres.errors import PersresError
from persres.logging import show_logs
from persres.untrusted.text import printable, redacted

app = typer.Typer(
    help="Personalized residuals and localized attention-guided sampling for Stable Diffusion.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
COMMANDS = run.COMMANDS | concept.COMMANDS | versions.COMMANDS
add_commands(app, COMMANDS)


def dev_without_checkout(command: Annotated[list[str] | None, typer.Argument()] = None) -> None:
    """Experiments and development; needs a checkout."""
    raise PersresError("persres dev needs a checkout: git clone the repository, and run make setup-dev there")


if find_spec("persres.experiments") is None:  # in a wheel
    app.command("dev", context_settings={"ignore_unknown_options": True})(dev_without_checkout)
else:
    from persres.experiments.cli import app as dev

    app.add_typer(dev, name="dev")

LONGEST_MESSAGE = 20_000  # a line for every failed unit
INTERRUPTED = 130  # the shells' exit code after Ctrl-C
MOVED = ("evidence", "tables", "sweep", "real-classes", "pages", "bench", "miniworld", "deps")
RENAMED = {
    "chain": "run",
    "use": "profile",
    "plan": "estimate",
    "housekeep": "gc",
    "beyond": "dev extensions",
    "rates": "dev full-size",
    "same": "dev golden",
} | {name: f"dev {name}" for name in MOVED}


def main(arguments: list[str] | None = None) -> int:
    """Entry point. Returns 0 on success, 1 after an error, 2 if the call is wrong, 130 after Ctrl-C."""
    show_logs()
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in RENAMED:
        return _fail(f"persres {arguments[0]} is now persres {RENAMED[arguments[0]]}", 2)
    try:
        code = app(args=arguments, prog_name="persres", standalone_mode=False) or 0
        if code == INTERRUPTED:  # typer returns it after Ctrl-C
            raise KeyboardInterrupt
        return code
    except TyperException as error:
        message = error.format_message()  # empty after the help of a call without arguments
        return _fail(f"{message} (persres --help lists the commands)", error.exit_code) if message else error.exit_code
    except PersresError as error:
        return _fail(str(error), 1)
    except OSError as error:
        fix = "free some space, or make the folder writable"
        return _fail(f"{error.strerror or error}: {error.filename}; {fix}", 1)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("stopped; finished units are saved, run the command again to continue", INTERRUPTED)


def _fail(message: str, code: int) -> int:
    print(f"persres: {printable(redacted(message), LONGEST_MESSAGE, lines=True)}", file=sys.stderr)
    return code
