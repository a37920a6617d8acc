"""LAG or not, by itself: what a prompt asks for, and whether the attention has found the thing.

The paper's figure 4 says that masks help prompts which name a background or an added object and hurt those which give the thing another
style or property, because there the whole picture must change. :func:`asks` reads that from the prompt's words; the attention's own
confidence (persres.sampling.mask_config) says whether there is a place to keep to.
"""

from __future__ import annotations

import re
from typing import Literal

MIN_CONFIDENCE = (
    0.35  # the least confidence of the best block; chosen on nameable scenes, by a search that was not kept
)
# What may stand before the thing without saying how it looks.
NEUTRAL = frozenset(
    ("a", "an", "the", "my", "this", "one", "of", "photo", "photograph", "photography", "pair", "picture", "image", "shot", "view", "snapshot", "close", "up", "closeup")
)  # fmt: skip
LOOKS = re.compile(
    r"\b(styles?|painting|painted|paint|watercolou?r|oil|sketch|drawing|drawn|art|artwork|illustration|cartoon|comic|anime|engraving"
    r"|render(ing|ed)?|pixel|mosaic|graffiti|origami|made|formed|crafted|built (of|from)|carved|sculpture|crochet|knitted|woven|material|texture"
    r"|colou?red|shaped|colou?r|transparent|glass|wooden|metal|golden|plastic|leather|marble|ceramic|stained|patterned|lego)\b",
    re.IGNORECASE,
)


LINKS = re.compile(
    r"\b(of|next to|beside|besides|on|in|inside|into|at|by|from|under|near|with|behind|among|around|over|above|against|wearing|holding|and)\b",
    re.IGNORECASE,
)


def prompt_intent(prompt: str, phrase: str) -> Literal["scene", "look"]:
    """``look`` where a prompt asks for another style or property of what ``phrase`` names, else ``scene``. A look is an adjective
    right before the thing, a way to picture it (``a painting of a …``), or a style, material or colour after it."""
    before, _, after = prompt.partition(phrase)
    *pictured, own = LINKS.split(before)
    adjectives = [word for word in re.findall(r"[a-z]+", own.lower()) if word not in NEUTRAL]
    way = (
        pictured[-2] if pictured and pictured[-1].lower() == "of" else ""
    )  # what it is a picture of, not what stands beside it
    return "look" if adjectives or LOOKS.search(way) or LOOKS.search(_own_part(after)) else "scene"


def _own_part(after: str) -> str:
    """What still speaks of the thing: up to the first word of place, but for ``in the style of``."""
    if re.search(
        r"\bstyle\b|\b(made|formed|crafted|painted|drawn|carved) (of|from|in|out|entirely)\b", after, re.IGNORECASE
    ):
        return after
    return LINKS.split(after, maxsplit=1)[0]
