"""Settings and captions of rivals that learn V* as a word of its own.

Textual Inversion's neutral captions name a kind of picture and the thing, and nothing that could bind V* elsewhere: eighty, as
in the list that its authors took over from CLIP, made from parts: every kind of picture with every way to name the thing.
"""

from __future__ import annotations

from typing import Literal

import torch

from persres.errors import PersresError
from persres.methods.common.rival import RivalSettings
from persres.models.diffusion import Diffusion
from persres.prompts import fill

_PICTURES = (
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
_THINGS = ("a {}", "the {}", "one {}", "my {}", "a clean {}", "a nice {}", "the small {}", "the large {}")

NEUTRAL: tuple[str, ...] = tuple(f"{picture} of {thing}" for picture in _PICTURES for thing in _THINGS)


class WordEmbeddingSettings(RivalSettings):
    """A rival that learns V* as a word of its own."""

    init_word: str | None = None  # one token; none takes the macro class's last word
    templates: Literal["neutral", "prompt"] = "neutral"
    prompt: str = "a photo of a {}"  # for templates: prompt


def captions_of(settings: WordEmbeddingSettings, token: str) -> list[str]:
    """The captions of a rival that learns a word: neutral ones, or its one prompt."""
    return [fill(template, token) for template in (NEUTRAL if settings.templates == "neutral" else (settings.prompt,))]


def token_alone(token: str, rare_token: str, macro_class: str) -> str:
    """V* alone stands for the thing: its vector starts as the class's and has to say all of it."""
    return token


def start_vector(diffusion: Diffusion, word: str) -> torch.Tensor:
    """The embedding of a word that is one token. Raises PersresError where it is several."""
    ids = diffusion.tokenizer(word, add_special_tokens=False).input_ids
    if len(ids) != 1:
        raise PersresError(
            f"init_word {word!r} is {len(ids)} tokens for this tokenizer; choose a near word that is exactly one"
        )
    return diffusion.text_encoder.get_input_embeddings().weight[ids[0]].detach().float()
