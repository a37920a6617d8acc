"""The concepts: appearances that no caption can describe, each in one or two backgrounds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from persres.miniworld.render import Appearance, Rendered, Scene, render
from persres.miniworld.vocabulary import BACKGROUNDS
from persres.seeding import seed_from


@dataclass(frozen=True)
class Concept:
    """An appearance, the backgrounds of its photos, and a name."""

    name: str
    appearance: Appearance
    backgrounds: tuple[str, ...]


CONCEPTS: tuple[Concept, ...] = (
    Concept(
        "heart_mug",
        Appearance("mug", "white", parts=(("top", "blue"), ("handle", "blue")), emblem=("heart", "red")),
        ("wood",),
    ),
    Concept(
        "star_robot",
        Appearance("robot", "blue", parts=(("head", "orange"),), emblem=("star", "yellow")),
        ("wood", "brick"),
    ),
    Concept(
        "banded_cat",
        Appearance("cat", "orange", parts=(("ears", "purple"), ("tail", "white")), band="white"),
        ("grass",),
    ),
    Concept(
        "fruit_tree", Appearance("tree", "green", parts=(("crown", "pink"),), emblem=("disc", "red")), ("grass", "city")
    ),
    Concept("rally_car", Appearance("car", "yellow", parts=(("cabin", "green"), ("boot", "pink"))), ("city",)),
    Concept(
        "masked_fish",
        Appearance("fish", "purple", parts=(("face", "yellow"), ("tail", "red"), ("fins", "red"))),
        ("ocean",),
    ),
    Concept(
        "witch_house",
        Appearance("house", "white", parts=(("roof", "purple"), ("door", "orange")), emblem=("star", "yellow")),
        ("grass", "forest"),
    ),
    Concept(
        "team_ball",
        Appearance("ball", "blue", parts=(("belt", "orange"),), emblem=("star", "white")),
        ("grass", "wood"),
    ),
    Concept(
        "diamond_mug",
        Appearance("mug", "purple", parts=(("handle", "yellow"), ("rim", "yellow")), emblem=("diamond", "green")),
        ("brick",),
    ),
    Concept(
        "harlequin_robot",
        Appearance("robot", "green", parts=(("arms", "pink"), ("legs", "yellow"), ("head", "white"))),
        ("wood",),
    ),
)


def views(concept: Concept, split: str, count: int, seed: int) -> list[Rendered]:
    """``count`` images of the concept; ``split`` is ``reference`` or ``held_out``."""
    images = []
    for index in range(count):
        rng = np.random.default_rng(seed_from("concept", concept.name, split, index, seed))
        background = concept.backgrounds[index % len(concept.backgrounds)]
        images.append(render(Scene(concept.appearance, background), rng))
    return images


def concept_prompts(kind: str, known_backgrounds: tuple[str, ...]) -> list[tuple[str, str]]:
    """20 prompts as (group, text with ``{}`` for the concept), five of each of the paper's groups.

    The background prompts avoid ``known_backgrounds``, those of the reference images.
    """
    backgrounds = ("beach", "snow", "night", "forest", "desert", "city", "grass", "ocean", "wood")
    new = [b for b in backgrounds if b not in known_backgrounds]
    others = [k for k in ("ball", "car", "tree", "mug", "house", "cat") if k != kind]
    colours = ("red", "green", "yellow", "blue", "white")
    prompts = [("background", f"a photo of a {{}} {BACKGROUNDS[b]}") for b in new[:5]]
    prompts += [("object", f"a photo of a {{}} next to a {c} {k}") for c, k in zip(colours, others, strict=False)]
    prompts += [
        ("style", "a watercolour painting of a {}"),
        ("style", "a pencil sketch of a {}"),
        ("style", "pixel art of a {}"),
        ("style", f"a watercolour painting of a {{}} {BACKGROUNDS[new[0]]}"),
        ("style", f"pixel art of a {{}} {BACKGROUNDS[new[1]]}"),
    ]
    prompts += [("property", f"a photo of a {c} {{}}") for c in ("red", "green", "purple")]
    prompts += [
        ("property", "a photo of a striped {}"),
        ("property", f"a photo of a yellow {{}} {BACKGROUNDS[new[2]]}"),
    ]
    return prompts
