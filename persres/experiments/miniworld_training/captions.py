"""The caption grammar: ``<style> a [colour] [pattern] [rare] <class> [next to …] [background]``.

The rare word stands before the class, as V* does.
"""

from __future__ import annotations

import numpy as np

from persres.miniworld.identities import marks_of
from persres.miniworld.render import Appearance, Scene
from persres.miniworld.vocabulary import BACKGROUNDS, RARE_TOKENS, STYLES


def noun_phrase(appearance: Appearance, colour: bool = True, pattern: bool = True, rare: str = "") -> str:
    """``a red striped sks mug``; plain patterns are omitted."""
    colour_word = appearance.colour if colour else ""
    pattern_word = appearance.pattern if pattern and appearance.pattern != "plain" else ""
    return " ".join(word for word in ("a", colour_word, pattern_word, rare, appearance.kind) if word)


def full_caption(scene: Scene) -> str:
    """A caption with every attribute of a scene."""
    return _caption(scene, noun_phrase(scene.subject), background=True)


def _caption(scene: Scene, subject: str, background: bool, second: str = "") -> str:
    parts = [STYLES[scene.style], subject]
    if scene.second is not None:
        parts += ["next to", second or noun_phrase(scene.second)]
    if background:
        parts.append(BACKGROUNDS[scene.background])
    return " ".join(parts)


def random_caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption that omits some attributes at random, so that the model learns prompts with few or many."""
    return random_mention(scene, rng)[0]


def nameless_caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption in which rare tokens stand for parts and marks, as V* does; colour and pattern of the body are named in a quarter each."""
    background, *named = rng.random(5) < (0.85, 0.25, 0.25, 0.25, 0.25)
    rare = rng.permutation(RARE_TOKENS)
    subject = noun_phrase(scene.subject, colour=named[0], pattern=named[1], rare=str(rare[0]))
    if scene.second is not None and is_nameless(scene.second):
        second = noun_phrase(scene.second, colour=named[2], pattern=named[3], rare=str(rare[1]))
        return _caption(scene, subject, background, second)
    return _caption(scene, subject, background)


def is_nameless(appearance: Appearance) -> bool:
    """Whether the appearance has something that no caption can describe."""
    return bool(marks_of(appearance))


def random_mention(
    scene: Scene, rng: np.random.Generator, colour: float = 0.8, background: float = 0.85
) -> tuple[str, dict]:
    """A random caption, and the attributes of the scene, None for those that it omits.

    ``colour`` and ``background`` are the probabilities that the caption names them.
    """
    with_colour, with_background, with_rare = (bool(x) for x in rng.random(3) < (colour, background, 0.15))
    rare = RARE_TOKENS[rng.integers(len(RARE_TOKENS))] if with_rare else ""
    caption = _caption(scene, noun_phrase(scene.subject, colour=with_colour, rare=rare), with_background)
    omitted = {
        "colour": not with_colour,
        "background": not with_background,
        "pattern": scene.subject.pattern == "plain",
    }
    return caption, {key: None if omitted.get(key) else value for key, value in attributes(scene).items()}


def attributes(scene: Scene) -> dict:
    """The attributes of a scene that a caption can name."""
    subject, second = scene.subject, scene.second
    return {
        "kind": subject.kind,
        "colour": subject.colour,
        "pattern": subject.pattern,
        "background": scene.background,
        "style": scene.style,
        "second": noun_phrase(second) if second is not None else "none",
    }


def true_of(captions: list[dict], images: list[dict]) -> np.ndarray:
    """Whether each caption is true of each image, bool [captions, images]: every named attribute is the image's."""
    true = np.ones((len(captions), len(images)), dtype=bool)
    for key in images[0]:
        words, facts = (np.array([str(row[key]) for row in rows]) for rows in (captions, images))
        true &= (words[:, None] == facts[None, :]) | (words == "None")[:, None]
    return true
