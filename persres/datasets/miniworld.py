"""The mini world's concepts, rendered by the fetch stage."""

from __future__ import annotations

from pathlib import Path

from persres.config.schema import Fetch
from persres.datasets.layout import Concept, write_concept
from persres.errors import PersresError
from persres.miniworld import concepts as world
from persres.miniworld.concepts import concept_prompts
from persres.miniworld.vocabulary import KINDS

LICENCE = "Apache-2.0: drawn by persres"


def fetch(settings: Fetch, root: Path) -> int:
    """Render the selected concepts below ``root``; returns their number. Raises PersresError for an unknown name."""
    known = {concept.name: concept for concept in world.CONCEPTS}
    unknown = [name for name in settings.concepts if name not in known]
    if unknown:
        raise PersresError(f"fetch.concepts: the mini world has no {', '.join(unknown)}; it has {', '.join(known)}")
    for name in settings.concepts or known:
        _write(known[name], settings, root)
    return len(settings.concepts or known)


def size(settings: Fetch) -> tuple[int, int]:
    """Number of concepts and of all their prompts."""
    selected = [c for c in world.CONCEPTS if c.name in settings.concepts or not settings.concepts]
    return len(selected), sum(len(concept_prompts(c.appearance.kind, c.backgrounds)) for c in selected)


def _write(concept: world.Concept, settings: Fetch, root: Path) -> None:
    kind = concept.appearance.kind
    prompts = tuple(concept_prompts(kind, concept.backgrounds))
    folder = write_concept(root, Concept(concept.name, KINDS[kind], kind, prompts, LICENCE))
    for split, name, count in (
        ("reference", "images", settings.references),
        ("held_out", "held_out", settings.held_out),
    ):
        (folder / name).mkdir(exist_ok=True)
        for index, view in enumerate(world.views(concept, split, count, settings.seed)):
            view.image.save(folder / name / f"{index:03d}.png")
