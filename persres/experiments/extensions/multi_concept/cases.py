"""Pairs and triples of concepts with their prompts: of the mini world, or CustomConcept101's list of pairs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from persres.config.schema import Profile
from persres.datasets.customconcept101 import FOLDER
from persres.experiments.extensions.multi_concept.pairs import read_pairs
from persres.miniworld.concepts import CONCEPTS
from persres.miniworld.render import Scene, render
from persres.prompts import fill_each, numbered
from persres.sampling.sample import MultiConceptImage
from persres.seeding import seed_from
from persres.units.context import Context
from persres.units.outputs import read_macro_classes

PLAIN = "a photo of a {1} next to a {2}"
# Each concept is in three or four pairs; the classes of a pair differ.
PAIRS: tuple[tuple[str, str], ...] = (
    ("heart_mug", "star_robot"), ("star_robot", "rally_car"), ("banded_cat", "witch_house"), ("rally_car", "fruit_tree"),
    ("masked_fish", "team_ball"), ("witch_house", "heart_mug"), ("team_ball", "diamond_mug"), ("harlequin_robot", "banded_cat"),
    ("fruit_tree", "masked_fish"), ("diamond_mug", "rally_car"), ("star_robot", "witch_house"), ("banded_cat", "team_ball"),
    ("harlequin_robot", "fruit_tree"), ("heart_mug", "masked_fish"), ("rally_car", "harlequin_robot"), ("diamond_mug", "banded_cat"),
    ("team_ball", "star_robot"), ("witch_house", "fruit_tree"),
)  # fmt: skip
TRIPLES: tuple[tuple[str, str, str], ...] = (
    ("heart_mug", "star_robot", "banded_cat"), ("rally_car", "witch_house", "fruit_tree"),
    ("diamond_mug", "team_ball", "harlequin_robot"), ("masked_fish", "heart_mug", "rally_car"),
)  # fmt: skip
THREE = "a photo of a {1} next to a {2} and a {3}"
BACKGROUNDS = {"in the snow": "snow"}  # a background of no concept's references


@dataclass(frozen=True)
class Case:
    """One image to sample: the concepts' ``names`` and ``classes`` in prompt order, a ``template`` with {1}, {2} …, and its number."""

    names: tuple[str, ...]
    classes: tuple[str, ...]
    template: str
    image: int

    @property
    def group(self) -> str:
        """Name of the pair or triple, independent of the order."""
        return "+".join(sorted(self.names))

    @property
    def order(self) -> str:
        """The names in prompt order."""
        return "+".join(self.names)

    @property
    def plain(self) -> str:
        """The prompt without V*. It seeds the noise."""
        return fill_each(self.template, dict(zip(self.names, self.classes, strict=True)))

    def request(self, token: str, order: list[str]) -> MultiConceptImage:
        """Return the sampling request; ``order``: the concepts of the bank."""
        phrases = tuple(f"{numbered(token, i)} {kind}" for i, kind in enumerate(self.classes, 1))
        prompt = fill_each(self.template, dict(zip(self.names, phrases, strict=True)))
        rows = tuple(order.index(name) for name in self.names)
        return MultiConceptImage(prompt, phrases, rows, self.plain, self.image)


def cases_of(context: Context, count: int | None = None) -> list[Case]:
    """Return all cases of the profile's dataset, or of its first ``count`` pairs.

    The mini world's pairs come in both orders, without and with a background. The orders have different prompts, so different noise.
    """
    profile, classes = context.profile, read_macro_classes(context)
    images = range(profile.sample.images_per_prompt)
    if profile.fetch.dataset == "miniworld":
        prompts = [(names, text) for names in PAIRS[:count] for text in (PLAIN, *(f"{PLAIN} {p}" for p in BACKGROUNDS))]
        prompts = [(order, text) for names, text in prompts for order in (names, names[::-1])]
        prompts += [(names, THREE) for names in TRIPLES[:count]]
    else:
        prompts = _listed(profile, count)
    prompts = [
        (names, text) for names, text in prompts if set(names) <= set(classes)
    ]  # the profile may use fewer concepts
    return [Case(names, tuple(classes[n] for n in names), text, i) for names, text in prompts for i in images]


def _listed(profile: Profile, count: int | None) -> list[tuple[tuple[str, ...], str]]:
    """CustomConcept101's pairs with their prompts."""
    pairs = read_pairs(Path(profile.fetch.folder or FOLDER))[:count]
    return [(pair.names, text) for pair in pairs for text in pair.prompts]


def rendered_pairs(cases: list[Case]) -> np.ndarray:
    """Return the pairs as the renderer draws them, uint8 [n, 64, 64, 3]: an upper bound for the scores."""
    looks = {concept.name: concept.appearance for concept in CONCEPTS}
    images = []
    for case in cases:
        background = next((name for words, name in BACKGROUNDS.items() if case.template.endswith(words)), "city")
        scene = Scene(looks[case.names[0]], background, second=looks[case.names[1]])
        images.append(np.asarray(render(scene, np.random.default_rng(seed_from("pair", case.plain, case.image))).image))
    return np.stack(images)
