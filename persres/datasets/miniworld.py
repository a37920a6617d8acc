"""The mini world's concepts, rendered by the fetch stage."""

from __future__ import annotations

from pathlib import Path

from persres.config.schema import Fetch
from persres.datasets import layout
from persres.errors import PersresError
from persres.miniworld.concepts import CONCEPTS, Concept, concept_prompts, views
from persres.miniworld.identities import concept_named
from persres.miniworld.vocabulary import KINDS

LICENCE = "Apache-2.0: drawn by persres"


def fetch(settings: Fetch, root: Path) -> int:
    """Render the selected concepts below ``root``; returns their number. Raises PersresError for an unknown name."""
    concepts = _selected(settings)
    for concept in concepts:
        _write(concept, settings, root)
    return len(concepts)


def size(settings: Fetch) -> tuple[int, int]:
    """Number of concepts and of all their prompts."""
    selected = _selected(settings)
    return len(selected), sum(len(concept_prompts(c.appearance.kind, c.backgrounds)) for c in selected)


def _selected(settings: Fetch) -> tuple[Concept, ...]:
    """The concepts by name, or all ten. Raises PersresError for an unknown name."""
    try:
        return tuple(concept_named(name) for name in settings.concepts) or CONCEPTS
    except ValueError as error:
        raise PersresError(f"fetch.concepts: {error}") from error


def _write(concept: Concept, settings: Fetch, root: Path) -> None:
    kind = concept.appearance.kind
    prompts = tuple(concept_prompts(kind, concept.backgrounds))
    folder = layout.write_concept(root, layout.Concept(concept.name, KINDS[kind], kind, prompts, LICENCE))
    for split, name, count in (
        ("reference", "images", settings.references),
        ("held_out", "held_out", settings.held_out),
    ):
        (folder / name).mkdir(exist_ok=True)
        for index, view in enumerate(views(concept, split, count, settings.seed)):
            view.image.save(folder / name / f"{index:03d}.png")
