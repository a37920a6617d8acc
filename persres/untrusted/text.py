"""Text from outside, made safe to print, to log and to put on a page."""

from __future__ import annotations

import html
import json
import re
import unicodedata

from persres.errors import PersresError

LONGEST = 300
# user:password@ of an address. A password may hold unescaped slashes; digits and a slash after the colon are a port.
_USER = re.compile(r"(?P<scheme>\b[A-Za-z][\w+.-]*://)(?:[^\s/:'\"<>]*:(?!\d{1,5}/)[^\s'\"<>]*|[^\s/?#'\"<>]*)@")
_SECRET = re.compile(
    r"(?P<key>[\w.%-]*(?:signature|token|passw(?:or)?d|passwd|secret|credential|api_?key|access_?key|sig|auth)[\w.%-]*\s*=\s*)"
    r"(?P<quote>['\"]?)[^\s&;'\"<>]+",
    re.IGNORECASE,
)
_MARKS = re.compile(r"[\\`*\[\]|#!~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")  # an underscore inside a word is literal
_BEARER = re.compile(r"\b(?P<scheme>Bearer|Basic)\s+[\w+/=.~-]{8,}")


def redacted(text: object) -> str:
    """Return the text without users, passwords, signatures and tokens of the addresses in it."""
    text = _USER.sub(lambda match: match["scheme"], str(text))
    text = _SECRET.sub(lambda match: f"{match['key']}{match['quote']}***", text)
    return _BEARER.sub(lambda match: f"{match['scheme']} ***", text)


def printable(text: object, longest: int = LONGEST, lines: bool = False) -> str:
    """Return the text with control characters, terminal escapes and invisible marks as backslash escapes, at most ``longest`` characters.

    ``lines``: line breaks stay.
    """
    text = str(text)
    if len(text) > longest:
        text = f"{text[: longest - 1]}…"
    allowed = "\n" if lines else ""
    return "".join(c if c.isprintable() or c in allowed else c.encode("unicode_escape").decode() for c in text)


def quoted(text: object, longest: int = 100) -> str:
    """Return a name from outside in quotes, for an error message, at most ``longest`` characters."""
    return printable(repr(text), longest)


def plain_text(text: object, what: str, longest: int = 5000, allowed: str = "") -> str:
    """Return text of at most ``longest`` characters without control characters (except ``allowed``) and broken Unicode.

    Raises PersresError, which calls it a ``what``.
    """
    if not isinstance(text, str):
        raise PersresError(f"{what} {printable(repr(text), 100)} is no text; write it in quotes")
    if len(text) > longest:
        raise PersresError(f"{what} {printable(text, 60)!r} is longer than {longest} characters; shorten it")
    wrong = [c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c not in allowed]
    if wrong:
        raise PersresError(f"{what} {printable(text, 100)!r} has a character that is no text, {wrong[0]!a}; remove it")
    return text


def markdown(text: object, longest: int = LONGEST) -> str:
    """Return the text as one line of literal text for a Markdown page: no HTML, links, tables or emphasis of its own."""
    escaped = html.escape(printable(text, longest), quote=False)
    return _MARKS.sub(r"\\\g<0>", escaped)


def code_span(text: object, longest: int = LONGEST) -> str:
    """Return the text as a code span of a Markdown page, one line."""
    return f"`{printable(text, longest).replace('`', chr(39))}`"


def as_literal(text: str, longest: int = 1000) -> str:
    """Returns the text as a string of Python code, on one line of a fenced block."""
    return json.dumps(printable(text, longest), ensure_ascii=False)
