"""The four image styles, applied to a finished scene at the supersampled size."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter


def _photo(canvas: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    return canvas.resize((size, size), Image.BOX)


def _watercolour(canvas: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """Pale washes: colours blur and fade towards the paper."""
    small = canvas.resize((size, size), Image.BOX).filter(ImageFilter.MedianFilter(3))
    pixels = np.asarray(small, dtype=np.float32)
    wash = rng.normal(0, 1, (size // 8, size // 8)).astype(np.float32)
    wash = np.asarray(Image.fromarray(wash).resize((size, size), Image.BICUBIC))
    paper = np.array([250, 246, 236], dtype=np.float32)
    blend = np.clip(0.42 + 0.06 * wash, 0.25, 0.6)[..., None]
    return Image.fromarray(np.clip(pixels * (1 - blend) + paper * blend, 0, 255).astype(np.uint8))


def _sketch(canvas: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """Grey edges and light tones on white paper."""
    grey = np.asarray(canvas.resize((2 * size, 2 * size), Image.BOX).convert("L"), dtype=np.float32)
    gy, gx = np.gradient(grey)
    tone = 205 + 0.18 * grey
    edges = Image.fromarray(np.clip(tone - 3.2 * np.hypot(gx, gy), 20, 255).astype(np.uint8))
    return edges.resize((size, size), Image.BOX).convert("RGB")


def _pixel(canvas: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """Blocks of about 3×3 pixels in few tones."""
    blocks = canvas.resize((size // 3 + 1, size // 3 + 1), Image.BOX)
    pixels = (np.asarray(blocks, dtype=np.float32) / 51.0).round() * 51.0
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).resize((size, size), Image.NEAREST)


_STYLES = {"photo": _photo, "watercolour": _watercolour, "sketch": _sketch, "pixel": _pixel}


def apply(style: str, canvas: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """The canvas in the style, RGB [size, size]. Raises ValueError for an unknown style."""
    if style not in _STYLES:
        raise ValueError(f"unknown style {style!r}; one of {', '.join(_STYLES)}")
    return _STYLES[style](canvas, size, rng)
