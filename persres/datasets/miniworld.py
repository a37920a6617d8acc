"""The mini world's concepts, drawn when fetched."""

from __future__ import annotations

from pathlib import Path

from persres.config.schema import Fetch
from persres.datasets.layout import Concept, write_concept
from persres.errors import PersresError
from persres.miniworld import concepts as drawn
from persres.miniworld.captions import concept_prompts
from persres.miniworld.vocabulary import KINDS


def fetch(settings: Fetch, root: Path) -> int:
    """Draw the chosen concepts below ``root``; returns how many. Raises PersresError for an unknown name."""
    known = {concept.name: concept for concept in drawn.CONCEPTS}
    unknown = [name for name in settings.concepts if name not in known]
    if unknown:
        raise PersresError(f"fetch.concepts: the mini world has no {', '.join(unknown)}; it has {', '.join(known)}")
    for name in settings.concepts or known:
        _write(known[name], settings, root)
    return len(settings.concepts or known)


def size(settings: Fetch) -> tuple[int, int]:
    """Concepts, and all their prompts."""
    chosen = [c for c in drawn.CONCEPTS if c.name in settings.concepts or not settings.concepts]
    return len(chosen), sum(len(concept_prompts(c.look.kind, c.backgrounds)) for c in chosen)


def _write(concept: drawn.Concept, settings: Fetch, root: Path) -> None:
    kind = concept.look.kind
    record = Concept(
        concept.name,
        KINDS[kind],
        kind,
        tuple(concept_prompts(kind, concept.backgrounds)),
        "Apache-2.0: drawn by persres",
    )
    folder = write_concept(root, record)
    for split, place, count in (
        ("reference", "images", settings.references),
        ("held_out", "held_out", settings.held_out),
    ):
        (folder / place).mkdir(exist_ok=True)
        for index, picture in enumerate(drawn.views(concept, split, count, settings.seed)):
            picture.image.save(folder / place / f"{index:03d}.png")
