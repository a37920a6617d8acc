"""Objects that no caption can describe: random ones, the ten concepts, and nameless concepts to choose settings on."""

from __future__ import annotations

import numpy as np

from persres.miniworld.concepts import CONCEPTS, Concept
from persres.miniworld.render import Appearance
from persres.miniworld.shapes import SHAPES
from persres.miniworld.vocabulary import BACKGROUNDS, COLOURS, EMBLEMS, TRAINED_KINDS, TRAINED_PATTERNS
from persres.seeding import seed_from

NAMELESS = "nameless"  # nameless concepts are nameless_0, nameless_1, …
LEAST_MARKS = 2  # of a nameless concept; the ten have two to four


def random_identity(rng: np.random.Generator, most_parts: int = 2, dark: bool = False) -> Appearance:
    """An appearance with up to ``most_parts`` recoloured parts (with ``dark``, dark ones too), an emblem in half of the cases and a band in a
    quarter. Never one of the concepts."""
    kind = _choice(rng, TRAINED_KINDS)
    names = [name for name, role, _ in SHAPES[kind] if dark or role != "dark"]
    recoloured = rng.permutation(names)[: rng.integers(0, most_parts + 1)]
    parts = tuple((str(name), _choice(rng, tuple(COLOURS))) for name in recoloured)
    emblem = (_choice(rng, EMBLEMS), _choice(rng, tuple(COLOURS))) if rng.random() < 0.5 else None
    band = _choice(rng, tuple(COLOURS)) if rng.random() < 0.25 else None
    pattern = (_choice(rng, tuple(COLOURS)), _choice(rng, TRAINED_PATTERNS))
    appearance = Appearance(kind, *pattern, parts, emblem, band)
    known = {concept.appearance for concept in CONCEPTS}
    return random_identity(rng, most_parts, dark) if appearance in known else appearance


def _choice(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[rng.integers(len(options))]


def marks_of(appearance: Appearance) -> dict[str, str]:
    """What no caption can describe: the recoloured parts, shape and colour of the emblem, the band."""
    emblem = dict(zip(("emblem", "emblem_colour"), appearance.emblem or (), strict=False))
    return dict(appearance.parts) | emblem | ({"band": appearance.band} if appearance.band else {})


def nameless_concept(index: int) -> Concept:
    """A concept to choose settings on, so that the ten stay unseen: as many marks as they have, on one background or two."""
    rng = np.random.default_rng(seed_from("nameless concept", index))
    appearance = random_identity(rng, most_parts=3, dark=True)
    while not _distinct(appearance):
        appearance = random_identity(rng, most_parts=3, dark=True)
    backgrounds = tuple(map(str, rng.permutation(list(BACKGROUNDS))[: 1 + index % 2]))
    return Concept(f"{NAMELESS}_{index}", appearance, backgrounds)


def _distinct(appearance: Appearance) -> bool:
    """Whether it has enough marks, all of another colour than the body."""
    marks = marks_of(appearance)
    return len(marks) >= LEAST_MARKS and appearance.colour not in marks.values()


def concept_named(name: str) -> Concept:
    """A concept by name, also ``nameless_<number>``. Raises ValueError for an unknown one."""
    number = name.removeprefix(f"{NAMELESS}_")
    if name != number and number.isascii() and number.isdigit() and str(int(number)) == number:
        return nameless_concept(int(number))
    for concept in CONCEPTS:
        if concept.name == name:
            return concept
    known = ", ".join(concept.name for concept in CONCEPTS)
    raise ValueError(f"the mini world has no {name}; it has {known}, and {NAMELESS}_0, {NAMELESS}_1, …")
