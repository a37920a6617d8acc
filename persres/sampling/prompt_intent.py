"""What a prompt asks for: the concept in a scene, or another appearance of the concept.

In the paper's figure 4 masks help prompts with a background or an added object and hurt prompts with another style or property, because
there the whole image must change. :func:`prompt_intent` reads that from the words. The confidence of the attention
(persres.sampling.mask_config) tells whether a mask has a place.
"""

from __future__ import annotations

import re
from typing import Literal

from persres.prompts import mentions

# The least confidence of the best block; chosen on nameable scenes. The data of this search was not saved.
MIN_CONFIDENCE = 0.35
# Words before the concept that do not describe its appearance.
NEUTRAL = frozenset(
    ("a", "an", "the", "my", "this", "one", "of", "photo", "photograph", "photography", "pair", "picture", "image", "shot", "view", "snapshot", "close", "up", "closeup")
)  # fmt: skip
APPEARANCE = re.compile(
    r"\b(styles?|painting|painted|paint|watercolou?r|oil|sketch|drawing|drawn|art|artwork|illustration|cartoon|comic|anime|engraving"
    r"|render(ing|ed)?|pixel|mosaic|graffiti|origami|made|formed|crafted|built (of|from)|carved|sculpture|crochet|knitted|woven|material|texture"
    r"|colou?red|shaped|colou?r|transparent|glass|wooden|metal|golden|plastic|leather|marble|ceramic|stained|patterned|lego)\b",
    re.IGNORECASE,
)
LINKS = re.compile(
    r"\b(of|next to|beside|besides|on|in|inside|into|at|by|from|under|near|with|behind|among|around|over|above|against|wearing|holding|and)\b",
    re.IGNORECASE,
)
DESCRIBES = re.compile(
    r"\bstyle\b|\b(made|formed|crafted|painted|drawn|carved) (of|from|in|out|entirely)\b", re.IGNORECASE
)


def prompt_intent(prompt: str, phrase: str) -> Literal["scene", "look"]:
    """``look`` where the prompt asks for another style or property of ``phrase``, else ``scene``.

    That is an adjective before the phrase, a medium (``a painting of a …``), or a style, material or colour after it.
    """
    start, end = next(iter(mentions(prompt, phrase)), (len(prompt), len(prompt)))
    before, after = prompt[:start], prompt[end:]
    *context, adjacent = LINKS.split(before)
    adjectives = [word for word in re.findall(r"[a-z]+", adjacent.lower()) if word not in NEUTRAL]
    # the medium of the image, not an object next to the concept
    medium = context[-2] if context and context[-1].lower() == "of" else ""
    description = after if DESCRIBES.search(after) else LINKS.split(after, maxsplit=1)[0]
    return "look" if adjectives or APPEARANCE.search(medium) or APPEARANCE.search(description) else "scene"
