"""A script whose calls are not guarded runs again in each worker process, which imports it; there the calls are refused."""

from __future__ import annotations

import os
import sys
from multiprocessing import current_process

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


def no_worker_began() -> str:
    """The message of worker processes that all ended before their first unit."""
    script = getattr(sys.modules.get("__main__"), "__file__", None) or "this program"
    return (
        f"the worker processes ended before they began, since each first imports {script} (or memory was too small); put its calls below"
        f" {GUARD}, or run one worker at a time (runtime.workers: 1)"
    )
