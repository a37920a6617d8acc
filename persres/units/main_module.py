"""A script whose calls are not guarded runs again in each worker process, which imports it; there the calls are refused."""

from __future__ import annotations

import ast
import os
import sys
from multiprocessing import current_process
from pathlib import Path

from persres.errors import PersresError

PRELOAD = "persres.units.worker_start"  # the first import of the process that our workers are forked from
GUARD = 'if __name__ == "__main__":'


def refuse_repeated_script() -> None:
    """Refuse a call while a worker process imports the script that started it: the script would do all its work again, or wait for
    itself at a stage's lock.

    A worker of ours ends at once and silently, since its parent reports it (:func:`no_worker_began`); in another's worker it raises
    PersresError.
    """
    if not getattr(
        current_process(), "_inheriting", False
    ):  # multiprocessing's mark, which its check for new processes reads too
        return
    if PRELOAD in sys.modules:
        os._exit(1)
    raise PersresError(f"a worker process imports this script and so runs it again; put its calls below {GUARD}")


def is_unguarded() -> bool:
    """Whether the running script called us from a statement outside of every ``if`` about ``__name__``, as far as its text says."""
    frame = sys._getframe()
    while frame and (frame.f_code.co_name, frame.f_globals.get("__name__")) != ("<module>", "__main__"):
        frame = frame.f_back
    if frame is None:  # another thread's
        return False
    try:
        statements = ast.parse(Path(frame.f_code.co_filename).read_bytes()).body
    except (OSError, ValueError, SyntaxError):  # from standard input: nothing to import again
        return False
    (here,) = [node for node in statements if node.lineno <= frame.f_lineno <= (node.end_lineno or 0)][:1] or [None]
    names = ast.walk(here.test) if isinstance(here, ast.If) else ()
    return not any(isinstance(node, ast.Name) and node.id == "__name__" for node in names)


def no_worker_began() -> str:
    """The message of worker processes that all ended before their first unit."""
    script = getattr(sys.modules.get("__main__"), "__file__", None) or "this program"
    return (
        f"the worker processes ended before they began, since each first imports {script} (or memory was too small); put its calls below"
        f" {GUARD}, or run one worker at a time (runtime.workers: 1)"
    )
