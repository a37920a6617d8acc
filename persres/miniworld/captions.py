"""The caption grammar: ``<style> a [colour] [pattern] [rare] <class> [next to …] [background]``.

The rare word stands right before the class, where V* will stand.
"""

from __future__ import annotations

import numpy as np

from persres.miniworld.render import Appearance, Scene
from persres.miniworld.vocabulary import BACKGROUNDS, RARE_TOKENS, STYLES


def noun_phrase(look: Appearance, colour: bool = True, pattern: bool = True, rare: str = "") -> str:
    """``a red striped sks mug``: plain patterns are not said."""
    words = [
        "a",
        look.colour if colour else "",
        look.pattern if pattern and look.pattern != "plain" else "",
        rare,
        look.kind,
    ]
    return " ".join(word for word in words if word)


def full_caption(scene: Scene) -> str:
    """Everything that can be said of a scene."""
    return _caption(scene, noun_phrase(scene.subject), background=True)


def _caption(scene: Scene, subject: str, background: bool) -> str:
    parts = [STYLES[scene.style], subject]
    if scene.second is not None:
        parts += ["next to", noun_phrase(scene.second)]
    if background:
        parts.append(BACKGROUNDS[scene.background])
    return " ".join(parts)


def random_caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption that leaves some attributes out, so that the model can be asked for few or many."""
    return random_mention(scene, rng)[0]


def nameless_caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption of a look beyond words: a rare token stands for all of it, as V* will."""
    rare = RARE_TOKENS[rng.integers(len(RARE_TOKENS))]
    return _caption(scene, noun_phrase(scene.subject, colour=False, pattern=False, rare=rare), rng.random() < 0.85)


def random_mention(
    scene: Scene, rng: np.random.Generator, colour: float = 0.8, background: float = 0.85
) -> tuple[str, dict]:
    """A loose caption, and what it says: attributes of the scene, None where it is silent.

    ``colour`` and ``background`` are the chances that each is said.
    """
    say_colour, say_background, say_rare = (bool(x) for x in rng.random(3) < (colour, background, 0.15))
    rare = RARE_TOKENS[rng.integers(len(RARE_TOKENS))] if say_rare else ""
    caption = _caption(scene, noun_phrase(scene.subject, colour=say_colour, rare=rare), say_background)
    silent = {"colour": not say_colour, "background": not say_background, "pattern": scene.subject.pattern == "plain"}
    return caption, {key: None if silent.get(key) else value for key, value in attributes(scene).items()}


def attributes(scene: Scene) -> dict:
    """What a caption can say of a scene."""
    subject, second = scene.subject, scene.second
    return {
        "kind": subject.kind,
        "colour": subject.colour,
        "pattern": subject.pattern,
        "background": scene.background,
        "style": scene.style,
        "second": noun_phrase(second) if second is not None else "none",
    }


def true_of(said: list[dict], shown: list[dict]) -> np.ndarray:
    """Which caption is true of which picture, bool [captions, pictures]: nothing said differs from what is shown."""
    true = np.ones((len(said), len(shown)), dtype=bool)
    for key in shown[0]:
        words, facts = (np.array([str(row[key]) for row in rows]) for rows in (said, shown))
        true &= (words[:, None] == facts[None, :]) | (words == "None")[:, None]
    return true


def concept_prompts(kind: str, known_backgrounds: tuple[str, ...]) -> list[tuple[str, str]]:
    """20 prompts as (group, text with ``{}`` for the concept), five of each of the paper's groups.

    ``known_backgrounds`` are those of the reference images; the background prompts avoid them.
    """
    new = [
        b
        for b in ("beach", "snow", "night", "forest", "desert", "city", "grass", "ocean", "wood")
        if b not in known_backgrounds
    ]
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
