"""Concepts on disk: ``<root>/<concept>/concept.json``, ``images/`` and, where known, ``held_out/``."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import ConfigDict

from persres.errors import PersresError
from persres.images import list_photos
from persres.prompts import PROMPT_GROUPS
from persres.untrusted.documents import read_json
from persres.untrusted.names import identifier, is_system_name
from persres.untrusted.text import plain_text, quoted


@dataclass(frozen=True)
class Concept:
    """One concept. ``prompts`` are (group, text with ``{}``); the groups are :data:`persres.prompts.PROMPT_GROUPS`."""

    name: str
    category: str
    macro_class: str
    prompts: tuple[tuple[str, str], ...]
    licence: str = ""
    notes: dict[str, str] = field(default_factory=dict)

    __pydantic_config__ = ConfigDict(extra="forbid")


def check_name(name: str) -> str:
    """Return the name. Raises PersresError where it is not safe as a file name."""
    return identifier(name, "concept name")


def check_concept(concept: Concept, where: Path) -> Concept:
    """Return the concept. Raises PersresError for a wrong name, macro class, prompt or text."""
    check_name(concept.name)
    if not concept.macro_class.strip():
        raise PersresError(f"{where}: macro_class is empty; write the class, for example 'dog'")
    if re.search(r"[{}/\\]", plain_text(concept.macro_class, f"{where}: macro_class", 100)):
        raise PersresError(
            f"{where}: macro_class {quoted(concept.macro_class)} is no class; write it in words, for example 'dog'"
        )
    plain_text(concept.category, f"{where}: category", 100)
    for text in (concept.licence, *concept.notes, *concept.notes.values()):
        plain_text(text, f"{where}: licence or note", allowed="\n\r\t")
    for group, text in concept.prompts:
        if group not in PROMPT_GROUPS:
            raise PersresError(f"{where}: prompt group {quoted(group)} is unknown; one of {', '.join(PROMPT_GROUPS)}")
        if plain_text(text, f"{where}: prompt", allowed="\n\t").count("{}") != 1:
            raise PersresError(f"{where}: prompt {quoted(text)} must hold {{}} exactly once, where the concept goes")
    return concept


def write_concept(root: Path, concept: Concept) -> Path:
    """Write ``concept.json``; returns the concept's folder."""
    folder = root / check_name(concept.name)
    (folder / "images").mkdir(parents=True)
    (folder / "concept.json").write_text(json.dumps(asdict(concept), indent=1, ensure_ascii=False))
    return folder


def read_concept(folder: Path) -> Concept:
    """Read the concept of a folder. Raises PersresError for a missing or wrong file."""
    path = folder / "concept.json"
    concept = read_json(path, Concept, "run the fetch stage, or write it with macro_class and prompts")
    return check_concept(concept, path)


def read_concepts(root: Path) -> list[tuple[Concept, Path]]:
    """All concepts below a root with their folders, sorted by name."""
    if not root.is_dir():
        raise PersresError(f"no concepts at {root}; run the fetch stage first")
    return [(read_concept(folder), folder) for folder in concept_folders(root)]


def concept_folders(root: Path) -> list[Path]:
    """The folders below a root, sorted by name, without hidden ones and those that systems add."""
    return sorted(path for path in root.iterdir() if path.is_dir() and not is_system_name(path.name))


def reference_photos(folder: Path) -> list[Path]:
    """The concept's training photos."""
    return list_photos(folder / "images")


def spread_concepts(concepts: list[tuple[Concept, Path]], count: int | None) -> list[tuple[Concept, Path]]:
    """At most ``count`` of the concepts, spread evenly over the list."""
    if count is None or count >= len(concepts):
        return concepts
    return [concepts[i * len(concepts) // count] for i in range(count)]


def spread_prompts(prompts: tuple[tuple[str, str], ...], count: int | None) -> list[tuple[int, str, str]]:
    """At most ``count`` prompts as (number, group, text), from each group in turn."""
    numbered = [(i, group, text) for i, (group, text) in enumerate(prompts)]
    if count is None or count >= len(numbered):
        return numbered
    by_group = [[p for p in numbered if p[1] == group] for group in dict.fromkeys(p[1] for p in numbered)]
    turns = [group[i] for i in range(max(map(len, by_group))) for group in by_group if i < len(group)]
    return sorted(turns[:count])
