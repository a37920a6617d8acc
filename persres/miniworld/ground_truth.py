"""The right answer to a prompt: the concept itself, drawn in the scene that the prompt asks for.

No real dataset has it. Its scores are the ceiling of every metric: what a perfect image would get.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from persres.miniworld.identities import concept_named
from persres.miniworld.render import Appearance, Scene, render
from persres.miniworld.vocabulary import BACKGROUNDS, COLOURS, KINDS, PATTERNS, STYLES

SECOND = "next to"


def render_prompt(concept: str, template: str, seed: int) -> Image.Image:
    """The concept in the scene of ``template``, RGB 64×64; the seed sets poses and what the prompt leaves open.

    Raises ValueError for a prompt outside the grammar of :func:`persres.miniworld.concepts.concept_prompts`.
    """
    rng = np.random.default_rng(seed)
    return render(prompted_scene(concept_named(concept).appearance, template, rng), rng).image


def prompted_scene(appearance: Appearance, template: str, rng: np.random.Generator) -> Scene:
    """The scene that a template asks for, with ``{}`` for the object.

    A colour or pattern before ``{}`` changes the body; the recoloured parts, emblem and band stay, since they make the concept. A background
    that the prompt leaves open is random.
    """
    style = next((name for name, phrase in STYLES.items() if template.startswith(phrase)), None)
    if style is None or template.count("{}") != 1:
        raise ValueError(f"the mini world cannot draw {template!r}")
    before, after = template.removeprefix(STYLES[style]).split("{}")
    background = next((name for name, phrase in BACKGROUNDS.items() if after.endswith(phrase)), None)
    rest = after.removesuffix(BACKGROUNDS[background]) if background else after
    subject = _described(appearance, before.split())
    second = _object(rest.strip().removeprefix(SECOND).split()) if rest.strip().startswith(SECOND) else None
    if rest.strip() and second is None:
        raise ValueError(f"the mini world cannot draw {rest.strip()!r} of {template!r}")
    return Scene(subject, background or str(rng.choice(list(BACKGROUNDS))), style, second)


def _described(appearance: Appearance, words: list[str]) -> Appearance:
    """The object with the colour and pattern that the words name."""
    unknown = [word for word in words if word not in ("a", *COLOURS, *PATTERNS)]
    if unknown:
        raise ValueError(f"the mini world cannot draw {unknown[0]!r}")
    colour = next((word for word in words if word in COLOURS), appearance.colour)
    pattern = next((word for word in words if word in PATTERNS), appearance.pattern)
    return replace(appearance, colour=colour, pattern=pattern)


def _object(words: list[str]) -> Appearance:
    """An object by its noun phrase, as ``a red striped mug``."""
    if not words or words[-1] not in KINDS:
        raise ValueError(f"the mini world cannot draw {' '.join(words)!r}")
    return _described(Appearance(words[-1], next(iter(COLOURS))), words[:-1])
