"""How concepts lie on disk: ``<root>/<concept>/concept.json``, ``images/`` and, where known, ``held_out/``."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

from persres.errors import PersresError
from persres.images import list_photos

GROUPS = ("background", "object", "style", "property")
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")


@dataclass(frozen=True)
class Concept:
    """One thing to learn. ``prompts`` are (group, text with ``{}``); groups are the paper's figure 4."""

    name: str
    category: str
    macro_class: str
    prompts: tuple[tuple[str, str], ...]
    licence: str = ""
    notes: dict[str, str] = field(default_factory=dict)


def check_name(name: str) -> str:
    """The name, where it is safe as a file name. Raises PersresError."""
    if not _NAME.match(name):
        raise PersresError(
            f"concept name {name!r} is not usable: letters, digits, _ and - only, at most 64, starting with a letter or digit; rename it"
        )
    return name


def check_concept(concept: Concept, where: Path) -> Concept:
    """The concept, where its prompts and names hold. Raises PersresError."""
    check_name(concept.name)
    if not concept.macro_class.strip():
        raise PersresError(f"{where}: macro_class is empty; name what the thing is, e.g. 'dog'")
    for group, text in concept.prompts:
        if group not in GROUPS:
            raise PersresError(f"{where}: prompt group {group!r} is unknown; one of {', '.join(GROUPS)}")
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
    """The concept of a folder. Raises PersresError where the file is missing or wrong."""
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
    """All concepts below a root with their folders, by name."""
    if not root.is_dir():
        raise PersresError(f"no concepts at {root}; run the fetch stage first")
    return [(read_concept(folder), folder) for folder in sorted(p for p in root.iterdir() if p.is_dir())]


def reference_photos(folder: Path) -> list[Path]:
    """The photos to learn from."""
    return list_photos(folder / "images")


def spread_concepts(found: list[tuple[Concept, Path]], count: int | None) -> list[tuple[Concept, Path]]:
    """At most ``count`` of the concepts, evenly over the names: for rows of a table that a quick run shortens."""
    if count is None or count >= len(found):
        return found
    return [found[i * len(found) // count] for i in range(count)]


def spread_prompts(prompts: tuple[tuple[str, str], ...], count: int | None) -> list[tuple[int, str, str]]:
    """At most ``count`` prompts as (number, group, text), taken from the groups in turn."""
    numbered = [(i, group, text) for i, (group, text) in enumerate(prompts)]
    if count is None or count >= len(numbered):
        return numbered
    by_group = [[p for p in numbered if p[1] == group] for group in dict.fromkeys(p[1] for p in numbered)]
    turns = [group[i] for i in range(max(map(len, by_group))) for group in by_group if i < len(group)]
    return sorted(turns[:count])
