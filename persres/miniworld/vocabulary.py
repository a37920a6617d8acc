"""The vocabulary of the mini world: every caption consists of these words.

The renderer can draw all of them; the training recipe (:mod:`persres.experiments.miniworld_training.recipe`) selects
those that the shipped U-Net was trained on, as its model card states.
"""

from __future__ import annotations

KINDS: dict[str, str] = {  # class -> category
    "mug": "tableware",
    "robot": "toy",
    "cat": "pet",
    "tree": "plant",
    "car": "transport",
    "fish": "pet",
    "house": "building",
    "ball": "toy",
    "chair": "furniture",
    "lamp": "furniture",
    "boat": "transport",
    "teapot": "tableware",
}

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (244, 140, 30),
    "yellow": (246, 214, 50),
    "green": (48, 160, 72),
    "blue": (44, 96, 214),
    "purple": (142, 62, 178),
    "pink": (244, 130, 180),
    "white": (240, 240, 236),
}

# of the shipped models
TRAINED_KINDS, TRAINED_PATTERNS = tuple(KINDS)[:8], ("plain", "striped")

EMBLEMS = ("heart", "star", "diamond", "cross", "disc")  # no caption names them

PATTERNS = ("plain", "striped", "dotted", "checkered")

BACKGROUNDS: dict[str, str] = {  # name -> phrase in a caption
    "beach": "on the beach",
    "grass": "on the grass",
    "snow": "in the snow",
    "desert": "in the desert",
    "night": "under the night sky",
    "brick": "in front of a brick wall",
    "wood": "on a wooden floor",
    "ocean": "in the ocean",
    "forest": "in the forest",
    "city": "in the city",
}

STYLES: dict[str, str] = {  # name -> start of a caption
    "photo": "a photo of",
    "watercolour": "a watercolour painting of",
    "sketch": "a pencil sketch of",
    "pixel": "pixel art of",
}

# Meaningless words in a few captions, so that V* with the embedding of such a token is not out of
# distribution for the text encoder and the U-Net.
RARE_TOKENS = ("sks", "olis", "ktn", "zwx")

JOINERS = ("next", "to", "and", "with")


def words() -> list[str]:
    """Every word that a caption or a prompt may hold, sorted."""
    phrases = [*BACKGROUNDS.values(), *STYLES.values()]
    split = {word for phrase in phrases for word in phrase.split()}
    return sorted(split | set(KINDS) | set(COLOURS) | set(PATTERNS) | set(RARE_TOKENS) | set(JOINERS))
