"""Imports of a stage's own process, without what no stage uses.

diffusers and transformers import a library that they can do without wherever it is installed: scipy (schedules and losses of other
models), peft (adapters), boto3 (by way of accelerate's SageMaker settings). That is up to half of the seconds
that their import takes, in every process of every stage. Python's own way to say that a module is not there, None in ``sys.modules``
(docs.python.org, "The import system"), says so while they are imported; afterwards each can be imported as ever.

Only for processes that do one stage and end: what was imported so stays without these libraries (a diffusers without peft loads
no LoRA), which would surprise in somebody's own session.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

UNUSED = ("boto3", "peft", "scipy")
VARIABLE = "PERSRES_LEAN"  # inherited by the processes that this one starts


def be_lean() -> None:
    """From now on :func:`lean_imports` does what it says, in this process and those that it starts."""
    os.environ[VARIABLE] = "1"


@contextmanager
def lean_imports() -> Iterator[None]:
    """Within, diffusers and transformers are imported without what no stage uses, if :func:`be_lean` was called; else as ever."""
    hide()
    try:
        yield
    finally:
        show()


def hide() -> None:
    """The first half of :func:`lean_imports`, for a list of modules to import."""
    if os.environ.get(VARIABLE):
        for name in UNUSED:
            sys.modules.setdefault(name, None)


def show() -> None:
    """The second half."""
    for name in UNUSED:
        if name in sys.modules and sys.modules[name] is None:
            del sys.modules[name]
