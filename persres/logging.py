"""What a run says of itself: log lines, and progress with the time it will still take.

In a terminal progress is a bar. In a log file it is a line now and then, so that a run on an agent can be followed there too.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

from tqdm import tqdm

log = logging.getLogger(__name__)
EVERY = 30.0  # seconds between two lines of a log file


class _Stderr(logging.Handler):
    """To standard error, above a bar where one is drawn: standard output is what a command gives, and scripts read it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)
        sys.stderr.flush()


def show_logs(level: int = logging.INFO) -> None:
    """Send this library's log lines, bare, to standard error; calling it again changes nothing but the level.

    For a program's entry point, and for the processes it starts: as a library persres leaves logging to its caller.
    """
    logger = logging.getLogger("persres")
    logger.setLevel(level)
    if not any(isinstance(handler, _Stderr) for handler in logger.handlers):
        handler = _Stderr()
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


def relay(said: BinaryIO, what: str = "") -> str:
    """All that a program writes to its standard error, which may be read when it has ended.

    ``what`` names long work: then its bars are passed on to a terminal, but not its errors, which the caller tells; in a log file the
    last of them is a line every half minute.
    """
    pieces, rest, told = [], "", time.monotonic()
    if what:
        log.info("%s", what)
    while piece := said.read1(4096):  # what is there, without waiting for more
        pieces.append(piece)
        *whole, rest = re.split(r"(?<=[\r\n])", rest + piece.decode(errors="replace"))
        if what and sys.stderr.isatty():
            sys.stderr.write("".join(part for part in whole if not plain(part).startswith("ERROR")))
            sys.stderr.flush()
        elif what and time.monotonic() - told > EVERY:
            bars = [plain(part).strip() for part in (*whole, rest) if "%" in part]
            told = time.monotonic()
            log.info("%s: %s", what, bars[-1] if bars else "goes on")
    if what and sys.stderr.isatty() and not plain(rest).startswith("ERROR"):
        sys.stderr.write(rest)  # the last movement, which puts the cursor back
        sys.stderr.flush()
    return b"".join(pieces).decode(errors="replace")


def plain(text: str) -> str:
    """Without a terminal's colours and movements."""
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
