"""Concepts on disk: ``<root>/<concept>/concept.json``, ``images/`` and, where known, ``held_out/``."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

from persres.errors import PersresError
from persres.images import list_photos
from persres.prompts import PROMPT_GROUPS

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")


@dataclass(frozen=True)
class Concept:
    """One concept. ``prompts`` are (group, text with ``{}``); the groups are :data:`persres.prompts.PROMPT_GROUPS`."""

    name: str
    category: str
    macro_class: str
    prompts: tuple[tuple[str, str], ...]
    licence: str = ""
    notes: dict[str, str] = field(default_factory=dict)


def check_name(name: str) -> str:
    """Return the name. Raises PersresError where it is not safe as a file name."""
    if not _NAME.match(name):
        raise PersresError(
            f"concept name {name!r} is not usable: letters, digits, _ and - only, at most 64, starting with a letter or digit; rename it"
        )
    return name


def check_concept(concept: Concept, where: Path) -> Concept:
    """Return the concept. Raises PersresError for a wrong name, macro class or prompt."""
    check_name(concept.name)
    if not concept.macro_class.strip():
        raise PersresError(f"{where}: macro_class is empty; write the class, for example 'dog'")
    for group, text in concept.prompts:
        if group not in PROMPT_GROUPS:
            raise PersresError(f"{where}: prompt group {group!r} is unknown; one of {', '.join(PROMPT_GROUPS)}")
        if text.count("{}") != 1:
            raise PersresError(f"{where}: prompt {text!r} must hold {{}} exactly once, where the concept goes")
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
    try:
        raw = json.loads(path.read_text())
        raw["prompts"] = tuple((group, text) for group, text in raw["prompts"])
        concept = Concept(**raw)
    except FileNotFoundError as error:
        raise PersresError(f"no {path}; run the fetch stage, or write it with macro_class and prompts") from error
    except (ValueError, TypeError, KeyError) as error:
        raise PersresError(f"{path} is not a concept file ({error})") from error
    return check_concept(concept, path)


def read_concepts(root: Path) -> list[tuple[Concept, Path]]:
    """All concepts below a root with their folders, sorted by name."""
    if not root.is_dir():
        raise PersresError(f"no concepts at {root}; run the fetch stage first")
    return [(read_concept(folder), folder) for folder in sorted(p for p in root.iterdir() if p.is_dir())]


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
