"""Settings and captions of rivals that train the embedding of V*.

Textual Inversion's neutral captions name a kind of image and the object, and nothing else that V* could bind to. There are eighty, as
in the authors' list, which is CLIP's. Here they combine every kind of image with every phrase for the object.
"""

from __future__ import annotations

from typing import Literal

import torch

from persres.errors import PersresError
from persres.methods.common.rival import RivalSettings
from persres.models.diffusion import Diffusion
from persres.prompts import fill

_IMAGES = (
    "a photo",
    "a rendering",
    "a rendition",
    "a good photo",
    "a bad photo",
    "a bright photo",
    "a dark photo",
    "a cropped photo",
    "a close-up photo",
    "a blurry photo",
)
_OBJECTS = ("a {}", "the {}", "one {}", "my {}", "a clean {}", "a nice {}", "the small {}", "the large {}")

NEUTRAL: tuple[str, ...] = tuple(f"{image} of {phrase}" for image in _IMAGES for phrase in _OBJECTS)


class WordEmbeddingSettings(RivalSettings):
    """Settings of a rival that trains the embedding of V*."""

    init_word: str | None = None  # one token; the default is the last word of the macro class
    templates: Literal["neutral", "prompt"] = "neutral"
    prompt: str = "a photo of a {}"  # for templates: prompt


def captions_of(settings: WordEmbeddingSettings, token: str) -> list[str]:
    """The training captions: the neutral ones, or the variant's prompt."""
    return [fill(template, token) for template in (NEUTRAL if settings.templates == "neutral" else (settings.prompt,))]


def token_alone(token: str, rare_token: str, macro_class: str) -> str:
    """V* only: its embedding starts as the class's and describes the whole object."""
    return token


def start_vector(diffusion: Diffusion, word: str) -> torch.Tensor:
    """The embedding of a word. Raises PersresError if the word is not exactly one token."""
    ids = diffusion.tokenizer(word, add_special_tokens=False).input_ids
    if len(ids) != 1:
        raise PersresError(
            f"init_word {word!r} is {len(ids)} tokens for this tokenizer; set a similar word that is exactly one"
        )
    return diffusion.text_encoder.get_input_embeddings().weight[ids[0]].detach().float()
