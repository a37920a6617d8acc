"""A folder of a user's own photos: ``<folder>/<concept>/`` with photos and, if wanted, a ``concept.json``.

``concept.json`` must hold ``macro_class`` and may hold ``category``, ``licence`` and ``prompts`` (a list of [group, text with {}]),
which default to :data:`NEUTRAL_PROMPTS`.
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
    """Check the photos and copy them below ``root``; returns the number of concepts.

    Raises PersresError that names the first missing folder, damaged photo or wrong name.
    """
    source, names = _named(settings)
    for name in names:
        concept = source / check_name(name)
        copy_concept(find_photos(concept), describe(concept), root)
    return len(names)


def size(settings: Fetch) -> tuple[int, int]:
    """Number of concepts and of all their prompts. Raises PersresError for a missing folder or a wrong ``concept.json``."""
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
    """The concept that a photo folder's ``concept.json`` describes. Raises PersresError for a missing or wrong file."""
    path = source / "concept.json"
    try:
        described = json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise PersresError(f"{path} is not valid JSON ({error})") from error
    known = ("macro_class", "category", "prompts", "licence")
    unknown = sorted(set(described) - set(known))
    if unknown:
        raise PersresError(f"{path}: unknown keys {', '.join(unknown)}; the keys are {', '.join(known)}")
    if "macro_class" not in described:
        raise PersresError(f'{path}: macro_class is missing; write {{"macro_class": "dog"}} there, naming the class')
    prompts = tuple((group, text) for group, text in described.get("prompts", NEUTRAL_PROMPTS))
    macro_class = described["macro_class"]
    category, licence = described.get("category", macro_class), described.get("licence", "")
    return check_concept(Concept(source.name, category, macro_class, prompts, licence), path)
