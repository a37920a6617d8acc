"""Log lines and progress of a run: a bar in a terminal, a line every half minute in a log file."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

from tqdm import tqdm

from persres.untrusted.text import printable, redacted

log = logging.getLogger(__name__)
LONGEST = 20_000  # characters of one message
EVERY = 30.0  # seconds between two lines of a log file


class _Stderr(logging.Handler):
    """Writes to standard error, above a progress bar: standard output has the results, which scripts read."""

    def emit(self, record: logging.LogRecord) -> None:
        text = printable(redacted(self.format(record)), LONGEST, lines=True)
        tqdm.write(text, file=sys.stderr)
        sys.stderr.flush()


def show_logs(level: int = logging.INFO) -> None:
    """Send this library's log lines to standard error; another call only changes the level.

    It is for the entry point of a program and its worker processes: as a library persres leaves logging to its caller.
    """
    logger = logging.getLogger("persres")
    logger.setLevel(level)
    if not any(isinstance(handler, _Stderr) for handler in logger.handlers):
        handler = _Stderr()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.propagate = False  # the root logger would repeat every line


def remaining(done: int, total: int, seconds: float) -> str:
    """``, about 3 min left`` at the rate so far; empty at the beginning and at the end."""
    if not done or done >= total:
        return ""
    left = seconds / done * (total - done)
    return f", about {left / 60:.0f} min left" if left >= 90 else f", about {left:.0f} s left"


@contextmanager
def progress(what: str, total: int, unit: str = "step", start: int = 0) -> Iterator[Callable[..., None]]:
    """Show progress by the ``advance(by=1, note="")`` that it yields; ``start`` of ``total`` are already done."""
    begun = logged = time.monotonic()
    done = start
    with tqdm(
        total=total, initial=start, desc=what, unit=unit, mininterval=2, leave=False, disable=not sys.stderr.isatty()
    ) as bar:

        def advance(by: int = 1, note: str = "") -> None:
            nonlocal done, logged
            done += by
            bar.update(by)
            bar.set_postfix_str(note, refresh=False)
            now = time.monotonic()
            if bar.disable and now - logged > EVERY and done < total:
                logged = now
                left = remaining(done - start, total - start, now - begun)
                log.info("%s: %s %d of %d%s", what, unit, done, total, left)

        yield advance


def relay(stream: BinaryIO, what: str = "") -> str:
    """Read and return everything that a program writes to its standard error.

    ``what`` names long work: its progress bars are then copied to the terminal, or logged every half minute. Its errors are not, since
    the caller reports them.
    """
    pieces, rest, logged = [], "", time.monotonic()
    if what:
        log.info("%s", what)
    while piece := stream.read1(4096):  # what is available
        pieces.append(piece)
        *whole, rest = re.split(r"(?<=[\r\n])", rest + piece.decode(errors="replace"))
        if what and sys.stderr.isatty():
            sys.stderr.write("".join(part for part in whole if not plain(part).startswith("ERROR")))
            sys.stderr.flush()
        elif what and time.monotonic() - logged > EVERY:
            bars = [plain(part).strip() for part in (*whole, rest) if "%" in part]
            logged = time.monotonic()
            log.info("%s: %s", what, bars[-1] if bars else "goes on")
    if what and sys.stderr.isatty() and not plain(rest).startswith("ERROR"):
        sys.stderr.write(rest)  # the last movement, which puts the cursor back
        sys.stderr.flush()
    return b"".join(pieces).decode(errors="replace")


def plain(text: str) -> str:
    """Text without a terminal's escape sequences."""
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
