"""LAG or not, by itself: what a prompt asks for, and whether the attention has found the thing.

The paper's figure 4 says that masks help prompts which name a background or an added object and hurt those which give the thing another
style or property, because there the whole picture must change. :func:`asks` reads that from the prompt's words; the attention's own
confidence (persres.sampling.masking) says whether there is a place to keep to.
"""

from __future__ import annotations

import re
from typing import Literal

SURE = 0.35  # the least confidence of the best block; chosen on nameable scenes (data/beyond/choosing)
# What may stand before the thing without saying how it looks.
NEUTRAL = frozenset(
    ("a", "an", "the", "my", "this", "one", "of", "photo", "photograph", "photography", "picture", "image", "shot", "view", "snapshot", "close", "up", "closeup")
)  # fmt: skip
LOOKS = re.compile(
    r"\b(styles?|painting|painted|paint|watercolou?r|oil|sketch|drawing|drawn|art|artwork|illustration|cartoon|comic|anime|engraving"
    r"|render(ing|ed)?|pixel|mosaic|graffiti|origami|made (of|from|out of)|built (of|from)|carved|crochet|knitted|woven|material|texture"
    r"|colou?red|shaped|colou?r|transparent|glass|wooden|metal|golden|plastic|leather|marble|ceramic|stained|patterned|lego)\b",
    re.IGNORECASE,
)


def asks(prompt: str, phrase: str) -> Literal["scene", "look"]:
    """``look`` where a prompt asks for another style or property of what ``phrase`` names, else ``scene``: words of its own before the
    thing (adjectives, a way to paint), or a style, material or colour after it."""
    before, _, after = prompt.partition(phrase)
    words = re.findall(r"[a-z]+", before.lower())
    own = [word for word in words if word not in NEUTRAL]
    return "look" if own or LOOKS.search(_own_part(after)) else "scene"


def _own_part(after: str) -> str:
    """What still speaks of the thing: up to the first word of place, but for ``in the style of``."""
    if re.search(r"\b(style|made|painted|drawn|carved) (of|from|in|out)\b", after):
        return after
    return re.split(
        r"\b(next to|beside|on|in|at|under|near|with|behind|among|over|inside|wearing|and)\b", after, maxsplit=1
    )[0]
