"""Processes for the tests: forks, and what Ctrl-C needs."""

from __future__ import annotations

import os
import signal
from multiprocessing import get_context


def hears_ctrl_c() -> None:
    """For ``preexec_fn``: a shell's background job, and all that it starts, would ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def seconds_to_stop(started_in: float) -> float:
    """What a run may take to stop that took so long to start: machines are of many speeds, and a unit here would train for far longer."""
    return max(5.0, started_in / 2)


def in_a_fork(function, *arguments):
    """A process of its own group that does this and ends; it has what is imported here, where a new Python would import for many
    seconds. ``.pid``, ``.join()``, ``.exitcode`` as multiprocessing has them."""

    def act() -> None:
        os.setsid()
        function(*arguments)

    process = get_context("fork").Process(target=act)
    process.start()
    return process
