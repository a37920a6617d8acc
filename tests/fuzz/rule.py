"""The rule for input from outside: it is read, or refused in one clear message; nothing is written elsewhere, nothing half."""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

from persres.errors import PersresError
from persres.untrusted.text import printable, redacted
from tests.fuzz.inputs import OUTSIDE

CORPUS = Path(__file__).parent / "corpus"


@dataclass(frozen=True)
class FuzzTarget:
    """A reader. ``read(folder, data)`` puts the data into the folder as it likes, reads it, and writes only below ``folder / "out"``."""

    name: str
    inputs: st.SearchStrategy[bytes]
    read: Callable[[Path, bytes], object]


def check(target: FuzzTarget, data: bytes) -> bool:
    """Return whether the reader accepts the data. Raises AssertionError, or what the reader raises, where the rule is broken."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name) / "a" / "b"
        folder.mkdir(parents=True)
        accepted = _read(target, folder, data)
        outside = [path for path in Path(name).rglob("*") if path.is_file() and not path.is_relative_to(folder)]
        outside += [Path(OUTSIDE)] * Path(OUTSIDE).exists()
        shutil.rmtree(OUTSIDE, ignore_errors=True)
        assert not outside, f"written outside: {outside}"
    return accepted


def _read(target: FuzzTarget, folder: Path, data: bytes) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.read(folder, data)
        return True
    except PersresError as error:
        _check_message(str(error))
        written = [path for path in (folder / "out").rglob("*") if path.is_file()]
        assert not written, f"half-written: {written}"
        return False


def _check_message(message: str) -> None:
    assert message.strip() and len(message) < 20_000, f"{len(message)} characters: {message[:200]}"
    assert "Traceback" not in message
    shown = printable(redacted(message), 20_000, lines=True)  # as the command line prints it
    assert all(c.isprintable() or c == "\n" for c in shown)


def saved(target: FuzzTarget) -> list[Path]:
    """Inputs of a target that once failed."""
    return sorted((CORPUS / target.name).glob("*"))


def save(target: FuzzTarget, data: bytes) -> Path:
    """Add an input to the corpus."""
    path = CORPUS / target.name / hashlib.sha256(data).hexdigest()[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def quiet() -> None:
    """Drop log lines and warnings; remove what an earlier failure left outside."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    shutil.rmtree(OUTSIDE, ignore_errors=True)
