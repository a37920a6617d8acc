"""What a run says of itself: log lines, and progress with the time it will still take.

In a terminal progress is a bar. In a log file it is a line now and then, so that a run on an agent can be followed there too.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

log = logging.getLogger(__name__)
EVERY = 30.0  # seconds between two lines of a log file


class _Stdout(logging.Handler):
    """To standard output, above a bar where one is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


def show_logs(level: int = logging.INFO) -> None:
    """Send this library's log lines, bare, to standard output; calling it again changes nothing but the level.

    For a program's entry point, and for the processes it starts: as a library persres leaves logging to its caller.
    """
    logger = logging.getLogger("persres")
    logger.setLevel(level)
    if not any(isinstance(handler, _Stdout) for handler in logger.handlers):
        handler = _Stdout()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.propagate = False  # a library that sets up the root logger would say everything twice


def remaining(done: int, total: int, seconds: float) -> str:
    """``about 3 min left``, at the pace so far; nothing where there is no pace yet or nothing is left."""
    if not done or done >= total:
        return ""
    left = seconds / done * (total - done)
    return f", about {left / 60:.0f} min left" if left >= 90 else f", about {left:.0f} s left"


@contextmanager
def progress(what: str, total: int, unit: str = "step", start: int = 0) -> Iterator[Callable[..., None]]:
    """Gives ``advance(by=1, note="")``: a bar in a terminal, a line every half minute elsewhere. ``start`` were done before."""
    begun = said = time.monotonic()
    done = start
    with tqdm(
        total=total, initial=start, desc=what, unit=unit, mininterval=2, leave=False, disable=not sys.stderr.isatty()
    ) as bar:

        def advance(by: int = 1, note: str = "") -> None:
            nonlocal done, said
            done += by
            bar.update(by)
            bar.set_postfix_str(note, refresh=False)
            now = time.monotonic()
            if bar.disable and now - said > EVERY and done < total:
                said = now
                left = remaining(done - start, total - start, now - begun)
                log.info("%s: %s %d of %d%s", what, unit, done, total, left)

        yield advance
