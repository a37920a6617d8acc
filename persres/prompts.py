"""Prompts as text."""

from __future__ import annotations

import re

from persres.errors import PersresError

PROMPT_GROUPS = (
    "background",
    "object",
    "style",
    "property",
)  # the paper's figure 4; an object is added next to the concept
SCENE_GROUPS, APPEARANCE_GROUPS = (
    PROMPT_GROUPS[:2],
    PROMPT_GROUPS[2:],
)  # LAG should help the first (figure 4a) and hurt the second (4b)


def fill(template: str, phrase: str) -> str:
    """Put the concept's phrase in the place of ``{}``. Raises PersresError without exactly one place."""
    if template.count("{}") != 1:
        raise PersresError(f"prompt {template!r} must hold {{}} exactly once, where the concept goes")
    return template.replace("{}", phrase)


def numbered(token: str, number: int) -> str:
    """V* of the concept ``number`` of a prompt that holds several: ``<v*>`` -> ``<v1*>``. All of them may hold one embedding; what tells
    them apart is that each is a token of its own, with its own place in the attention."""
    return re.sub(r"(\W*)$", rf"{number}\1", token, count=1)


def fill_each(template: str, phrases: dict[str, str]) -> str:
    """Put each concept's phrase in the place of ``{1}``, ``{2}`` (its place in ``phrases``) or of its name in braces.

    Raises PersresError where a concept is not in the prompt, or braces name none.
    """
    places = {str(i): name for i, name in enumerate(phrases, 1)} | {name: name for name in phrases}
    found = re.findall(r"\{([^{}]*)\}", template)
    known = ", ".join(f"{{{i}}} or {{{name}}}" for i, name in enumerate(phrases, 1))
    unknown = [name for name in found if name not in places]
    if unknown:
        raise PersresError(f"prompt {template!r}: {{{unknown[0]}}} is no concept; write {known}")
    missing = [name for name in phrases if name not in {places[f] for f in found}]
    if missing:
        raise PersresError(f"prompt {template!r} does not name {', '.join(missing)}; write {known}")
    return re.sub(r"\{([^{}]*)\}", lambda match: phrases[places[match[1]]], template)
