"""Neutral captions for Textual Inversion: they name a kind of picture and the thing, and nothing that could bind V* elsewhere.

Eighty, as in the list that its authors took over from CLIP, made from parts: every kind of picture with every way to
name the thing.
"""

from __future__ import annotations

from persres.prompt_text import fill

_PICTURES = ("a photo", "a rendering", "a rendition", "a good photo", "a bad photo", "a bright photo", "a dark photo",
             "a cropped photo", "a close-up photo", "a blurry photo")  # fmt: skip
_THINGS = ("a {}", "the {}", "one {}", "my {}", "a clean {}", "a nice {}", "the small {}", "the large {}")

NEUTRAL: tuple[str, ...] = tuple(f"{picture} of {thing}" for picture in _PICTURES for thing in _THINGS)


def captions_of(settings, token: str) -> list[str]:
    """The captions of a rival that learns a word: neutral ones, or its one prompt."""
    return [fill(template, token) for template in (NEUTRAL if settings.templates == "neutral" else (settings.prompt,))]
