"""Names from outside, checked before they become a path, an option or a key."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from persres.errors import PersresError
from persres.untrusted.text import quoted, redacted

LONGEST_NAME = 255  # bytes; file systems allow no more
LONGEST_PATH = 1024
HEX_LENGTHS = {"md5": 32, "sha1": 40, "sha256": 64}
# What systems and programs put next to a user's files, in lower case; names with a dot in front are theirs too.
SYSTEM_NAMES = frozenset({
    "__macosx", "icon\r", "@eadir", "#recycle", "#snapshot", "lost+found", "thumbs.db", "ehthumbs.db", "desktop.ini",
    "$recycle.bin", "recycler", "system volume information", "__pycache__",
})  # fmt: skip
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def identifier(text: object, what: str = "name", longest: int = 64) -> str:
    """Return a name of ASCII letters, digits, ``_`` and ``-`` that starts with a letter or digit.

    Raises PersresError, which calls it a ``what``.
    """
    if isinstance(text, str) and len(text) <= longest and _IDENTIFIER.fullmatch(text):
        return text
    raise PersresError(
        f"{what} {quoted(text)} is not usable: letters, digits, _ and - only, at most {longest}, starting with a letter or digit; rename it"
    )


def argument(text: object, what: str = "argument") -> str:
    """Return text that a command can take as an argument: not empty, not an option, without NUL and control characters.

    Raises PersresError, which calls it a ``what``.
    """
    if isinstance(text, str) and text and text[0] != "-" and not any(c < " " or c == "\x7f" for c in text):
        return text
    raise PersresError(f"{what} {quoted(text)} is empty, begins with - or has control characters; give another")


def digest(
    text: object, algorithm: str = "sha256", what: str = "digest", fix: str = "do not trust where it comes from"
) -> str:
    """Return a digest of lower-case hexadecimal digits of exactly the algorithm's length. Raises PersresError, which calls it a ``what``."""
    length = HEX_LENGTHS[algorithm]
    if isinstance(text, str) and re.fullmatch(rf"[0-9a-f]{{{length}}}", text):
        return text
    raise PersresError(f"{what} {quoted(text)} is not {length} hexadecimal digits; {fix}")


def relative_path(text: object, what: str = "file name") -> str:
    """Return a path of plain names joined by ``/``: not absolute, without ``..``, ``.``, backslashes, drive letters and control characters.

    Raises PersresError, which calls it a ``what``.
    """
    if isinstance(text, str) and len(text) <= LONGEST_PATH and all(_is_plain(part) for part in text.split("/")):
        return text
    raise PersresError(f"{what} {quoted(text)} leads out of its folder or is no name; do not trust where it comes from")


def relative_name(text: object, root: Path, what: str = "file name") -> Path:
    """Return the path ``root / text`` of a :func:`relative_path`, links followed only where they stay below the root.

    Raises PersresError, which calls it a ``what``.
    """
    path = root / relative_path(text, what)
    if not path.resolve().is_relative_to(root.resolve()):
        raise PersresError(f"{what} {quoted(text)} is a link that leads out of {root}; remove it")
    return path


def is_system_name(name: str) -> bool:
    """Return whether a file or folder of this name is hidden, or a system's and not the user's."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def object_key(text: object, what: str = "key") -> str:
    """Return a key of a store: as a :func:`relative_path`, but its names may have every character except control characters.

    Photos keep their names: ``:``, backslashes and the narrow space in macOS' screenshots are none of our business. Raises PersresError,
    which calls it a ``what``.
    """
    if isinstance(text, str) and len(text) <= LONGEST_PATH and all(_is_name(part) for part in text.split("/")):
        return text
    raise PersresError(
        f"{what} {quoted(text)} leads out of its folder, has a control character or is no name; rename it, or do not trust where it comes from"
    )


def s3_address(text: str, what: str = "store") -> tuple[str, str]:
    """Return bucket and prefix of ``s3://BUCKET/PREFIX``. A prefix is no URL: ``#``, ``?`` and ``%`` are characters of it like others.

    Raises PersresError, which calls it a ``what``, without a password in it.
    """
    scheme, _, rest = text.partition("://")
    bucket, _, prefix = rest.partition("/")
    if scheme.lower() != "s3" or not _BUCKET.fullmatch(bucket):
        raise PersresError(f"{what} {quoted(redacted(text))} is no s3://BUCKET/PREFIX; correct it")
    return bucket, prefix


def _is_plain(part: str) -> bool:
    """Whether a part of a path names one file on every system. Zs: macOS writes a narrow space into the names of screenshots."""
    visible = all(c.isprintable() or unicodedata.category(c) == "Zs" for c in part)
    return _is_name(part) and visible and not any(c in "\\:" for c in part)


def _is_name(part: str) -> bool:
    """Whether a part of a path names one file on this system. Cc: control characters; Cs: bytes that are not UTF-8."""
    strange = any(unicodedata.category(c) in ("Cc", "Cs") for c in part)
    return part not in ("", ".", "..") and not strange and len(part.encode(errors="replace")) <= LONGEST_NAME
