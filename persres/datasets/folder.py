"""A folder of a user's own photos: ``<folder>/<concept>/`` with photos and, if wanted, a ``concept.json``.

``concept.json`` may hold ``macro_class``, ``category`` and ``prompts`` (a list of [group, text with {}]). Without
prompts a neutral set of eight is used; without a macro class the folder must say so itself.
"""

from __future__ import annotations

import json
from pathlib import Path

from persres.config.schema import Fetch
from persres.datasets.layout import Concept, check_concept, check_name
from persres.datasets.photos import copy_concept, find_photos
from persres.errors import PersresError

NEUTRAL_PROMPTS = (
    ("background", "a photo of a {} on the beach"),
    ("background", "a photo of a {} in the snow"),
    ("object", "a photo of a {} next to a red ball"),
    ("object", "a photo of a {} with a cup"),
    ("style", "a watercolor painting of a {}"),
    ("style", "a pencil sketch of a {}"),
    ("property", "a photo of a red {}"),
    ("property", "a photo of a wooden {}"),
)


def fetch(settings: Fetch, root: Path) -> int:
    """Copy checked photos below ``root``; returns the number of concepts.

    Raises PersresError naming the first missing folder, broken photo or wrong name.
    """
    source, names = _named(settings)
    for name in names:
        concept = source / check_name(name)
        copy_concept(find_photos(concept), describe(concept), root)
    return len(names)


def size(settings: Fetch) -> tuple[int, int]:
    """Concepts, and all their prompts. Raises PersresError where the folder is not there or a ``concept.json`` is wrong."""
    source, names = _named(settings)
    return len(names), sum(len(describe(source / name).prompts) for name in names)


def _named(settings: Fetch) -> tuple[Path, tuple[str, ...]]:
    """The folder and its concepts."""
    source = Path(settings.folder or "")
    if not source.is_dir():
        raise PersresError(f"fetch.folder: no folder {source}; create it with one folder of photos per concept")
    names = settings.concepts or tuple(
        sorted(p.name for p in source.iterdir() if p.is_dir() and not p.name.startswith("."))
    )
    if not names:
        raise PersresError(f"fetch.folder: {source} holds no concept; put one folder of photos per concept in it")
    return source, names


def describe(source: Path) -> Concept:
    """What a photo folder's ``concept.json`` says. Raises PersresError where it is missing or wrong."""
    path = source / "concept.json"
    try:
        described = json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise PersresError(f"{path} is not valid JSON ({error})") from error
    odd = set(described) - {"macro_class", "category", "prompts", "licence"}
    if odd:
        raise PersresError(
            f"{path}: unknown keys {', '.join(sorted(odd))}; macro_class, category, prompts and licence are known"
        )
    if "macro_class" not in described:
        raise PersresError(
            f'{path}: macro_class is missing; write {{"macro_class": "dog"}} there, saying what the thing is'
        )
    prompts = tuple((group, text) for group, text in described.get("prompts", NEUTRAL_PROMPTS))
    concept = Concept(
        source.name,
        described.get("category", described["macro_class"]),
        described["macro_class"],
        prompts,
        described.get("licence", ""),
    )
    return check_concept(concept, path)
