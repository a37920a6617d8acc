"""A folder of a user's own photos: ``<folder>/<concept>/`` with photos and, if wanted, a ``concept.json``.

``concept.json`` must hold ``macro_class`` and may hold ``category``, ``licence`` and ``prompts`` (a list of [group, text with {}]),
which default to :data:`NEUTRAL_PROMPTS`.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from persres.config.schema import Fetch
from persres.datasets.layout import Concept, check_concept, check_name, concept_folders
from persres.datasets.photos import copy_concept, find_photos
from persres.errors import PersresError
from persres.untrusted.documents import read_json
from persres.untrusted.text import printable

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


FIX = 'write it as {"macro_class": "dog", "prompts": [["background", "a photo of a {} on the beach"]]}'


class Description(BaseModel):
    """A user's ``concept.json``."""

    model_config = ConfigDict(extra="allow")  # unknown keys are named with the known ones

    macro_class: str | None = None
    category: str | None = None
    licence: str = ""
    prompts: tuple[tuple[str, str], ...] = NEUTRAL_PROMPTS


def fetch(settings: Fetch, root: Path) -> int:
    """Check the photos and copy them below ``root``; returns the number of concepts.

    Raises PersresError that names the first missing folder, damaged photo or wrong name.
    """
    source, names = _named(settings)
    for name in names:
        concept = source / name
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
    names = settings.concepts or tuple(folder.name for folder in concept_folders(source))
    if not names:
        raise PersresError(f"fetch.folder: {source} holds no concept; put one folder of photos per concept in it")
    return source, tuple(check_name(name) for name in names)


def describe(source: Path) -> Concept:
    """The concept that a photo folder's ``concept.json`` describes. Raises PersresError for a missing or wrong file."""
    path = source / "concept.json"
    described = read_json(path, Description, FIX) if path.exists() else Description()
    if described.model_extra:
        known = ", ".join(Description.model_fields)
        raise PersresError(
            f"{path}: unknown keys {printable(', '.join(sorted(described.model_extra)))}; the keys are {known}"
        )
    if described.macro_class is None:
        raise PersresError(f'{path}: macro_class is missing; write {{"macro_class": "dog"}} there, naming the class')
    if not described.prompts:
        raise PersresError(f"{path}: prompts is empty; leave it out for neutral ones, or {FIX}")
    category = described.macro_class if described.category is None else described.category
    return check_concept(
        Concept(source.name, category, described.macro_class, described.prompts, described.licence), path
    )
