"""Prompt templates: ``{}`` or names in braces stand for concepts."""

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
    """The template with the concept's phrase for ``{}``. Raises PersresError unless it has exactly one ``{}``."""
    if template.count("{}") != 1:
        raise PersresError(f"prompt {template!r} must contain {{}} exactly once, for the concept")
    return template.replace("{}", phrase)


def numbered(token: str, number: int) -> str:
    """V* of concept ``number`` in a multi-concept prompt: ``<v*>`` -> ``<v1*>``. The tokens may share one embedding; separate tokens
    have separate positions in the attention."""
    end = re.match(r"(?:.*\w)?", token, re.DOTALL).end()  # a search for \W*$ takes quadratic time
    return f"{token[:end]}{number}{token[end:]}"


def fill_each(template: str, phrases: dict[str, str]) -> str:
    """The template with each concept's phrase for ``{1}``, ``{2}`` (its number in ``phrases``) or for its name in braces.

    Raises PersresError if a concept is missing, or braces name no concept.
    """
    names = {str(i): name for i, name in enumerate(phrases, 1)} | {name: name for name in phrases}
    fields = re.findall(r"\{([^{}]*)\}", template)
    known = ", ".join(f"{{{i}}} or {{{name}}}" for i, name in enumerate(phrases, 1))
    unknown = [field for field in fields if field not in names]
    if unknown:
        raise PersresError(f"prompt {template!r}: {{{unknown[0]}}} is no concept; use {known}")
    missing = [name for name in phrases if name not in {names[field] for field in fields}]
    if missing:
        raise PersresError(f"prompt {template!r} does not name {', '.join(missing)}; use {known}")
    return re.sub(r"\{([^{}]*)\}", lambda match: phrases[names[match[1]]], template)


# Plurals that no rule makes, by the last letters of the singular.
_IRREGULAR = {
    "man": "men", "person": "people", "child": "children", "mouse": "mice", "louse": "lice", "goose": "geese", "foot": "feet",
    "tooth": "teeth", "ox": "oxen", "die": "dice", "cactus": "cacti", "fungus": "fungi",
}  # fmt: skip


def plurals(noun: str) -> set[str]:
    """The ways to write a noun's plural. A wrong one occurs in no prompt."""
    forms = {f"{noun}s", f"{noun}es"}
    for singular, plural in _IRREGULAR.items():
        if noun.lower().endswith(singular):
            forms.add(noun[: -len(singular)] + plural)
    if noun.endswith("y"):
        forms.add(f"{noun[:-1]}ies")
    if noun.endswith(("f", "fe")):
        forms.add(f"{noun.rstrip('e')[:-1]}ves")
    if noun.endswith("z") or noun.endswith("s"):
        forms.add(f"{noun}{noun[-1]}es")
    return forms


def mentions(prompt: str, phrase: str) -> list[tuple[int, int]]:
    """Where a prompt has the phrase, as whole words, singular or plural: (start, end) of each place, in characters.

    Case counts in words with other signs than letters, such as V*, and nowhere else. "car" is not in "cartoon".
    """
    *words, last = phrase.split() or [""]
    ends = {last} | (plurals(last) if last.isalpha() else set())
    pattern = r"\s+".join(
        [*map(_word, words), f"(?:{'|'.join(_word(end) for end in sorted(ends, key=len, reverse=True))})"]
    )
    before, after = (r"(?<!\w)" if phrase[:1].isalnum() else ""), (r"(?!\w)" if last[-1:].isalnum() else "")
    return [match.span() for match in re.finditer(before + pattern + after, prompt)] if last else []


def _word(word: str) -> str:
    return f"(?i:{re.escape(word)})" if word.isalpha() else re.escape(word)
