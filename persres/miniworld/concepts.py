"""The concepts: appearances that no caption can describe, each in one or two backgrounds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from persres.miniworld.render import Appearance, Rendered, Scene, render
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
