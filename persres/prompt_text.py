"""Prompts as text."""

from __future__ import annotations

from persres.errors import PersresError


def fill(template: str, phrase: str) -> str:
    """Put the concept's phrase in the place of ``{}``. Raises PersresError without exactly one place."""
    if template.count("{}") != 1:
        raise PersresError(f"prompt {template!r} must hold {{}} exactly once, where the concept goes")
    return template.replace("{}", phrase)
