"""The ten backgrounds, painted at the supersampled size. Each varies with the generator."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw


def _gradient(size: int, top: tuple, bottom: tuple, start: int = 0, stop: int | None = None) -> np.ndarray:
    stop = size if stop is None else stop
    ramp = np.clip((np.arange(size) - start) / max(1, stop - start), 0, 1)[:, None, None]
    return np.broadcast_to(np.array(top) * (1 - ramp) + np.array(bottom) * ramp, (size, size, 3)).copy()


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _speckle(pixels: np.ndarray, rng: np.random.Generator, amount: float, top: int, cell: int = 8) -> np.ndarray:
    """Coarse grain below row ``top``; finer grain would only burden the autoencoder."""
    size = pixels.shape[0]
    grain = rng.normal(0, amount, (size // cell, size // cell)).repeat(cell, 0).repeat(cell, 1)
    pixels[top:] += grain[: size - top, :, None]
    return pixels


def _horizon(size: int, rng: np.random.Generator, low: float = 0.42, high: float = 0.56) -> int:
    return round(size * rng.uniform(low, high))


def _two_tone(
    size: int, rng: np.random.Generator, colours: tuple[tuple, tuple, tuple], grain: float
) -> tuple[Image.Image, int]:
    """Sky (from its top to the horizon) and ground with grain; returns the image and the row of the horizon."""
    sky, far, ground = colours
    split = _horizon(size, rng)
    pixels = _gradient(size, sky, far, 0, split)
    pixels[split:] = _gradient(size, ground, tuple(0.86 * c for c in ground))[: size - split]
    return _image(_speckle(pixels, rng, grain, split)), split


def _beach(size: int, rng: np.random.Generator) -> Image.Image:
    image, split = _two_tone(size, rng, ((120, 190, 240), (190, 226, 246), (236, 214, 160)), 6)
    ImageDraw.Draw(image).rectangle([0, split - size // 9, size, split], fill=(40, 150, 190))
    return image


def _grass(size: int, rng: np.random.Generator) -> Image.Image:
    return _two_tone(size, rng, ((130, 196, 244), (206, 232, 248), (104, 176, 66)), 12)[0]


def _snow(size: int, rng: np.random.Generator) -> Image.Image:
    image, _ = _two_tone(size, rng, ((164, 178, 200), (204, 212, 224), (246, 249, 253)), 2)
    draw = ImageDraw.Draw(image)
    for x, y in rng.uniform(0, size, (24, 2)):
        draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=(255, 255, 255))
    return image


def _desert(size: int, rng: np.random.Generator) -> Image.Image:
    image, _ = _two_tone(size, rng, ((250, 186, 110), (252, 222, 164), (214, 142, 72)), 5)
    x = rng.uniform(0.15, 0.85) * size
    ImageDraw.Draw(image).ellipse([x - 20, 14, x + 20, 54], fill=(255, 244, 200))
    return image


def _night(size: int, rng: np.random.Generator) -> Image.Image:
    image = _image(_gradient(size, (10, 12, 40), (38, 36, 84)))
    draw = ImageDraw.Draw(image)
    for x, y in rng.uniform(0, size, (26, 2)):
        draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=(250, 248, 220))
    x = rng.uniform(0.1, 0.9) * size
    draw.ellipse([x - 18, 12, x + 18, 48], fill=(240, 236, 200))
    return image


def _brick(size: int, rng: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (size, size), (206, 196, 186))
    draw = ImageDraw.Draw(image)
    height, width = size // 8, size // 4
    for row in range(9):
        for column in range(-1, 5):
            x = column * width + (row % 2) * width // 2
            tone = rng.uniform(0.9, 1.08)
            fill = tuple(min(255, round(c * tone)) for c in (164, 84, 66))
            draw.rectangle([x + 3, row * height + 3, x + width - 3, (row + 1) * height - 3], fill=fill)
    return image


def _wood(size: int, rng: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (size, size), (226, 218, 202))
    split = _horizon(size, rng, 0.3, 0.42)
    draw = ImageDraw.Draw(image)
    for row, y in enumerate(range(split, size, size // 9)):
        tone = rng.uniform(0.88, 1.06)
        draw.rectangle([0, y, size, y + size // 9 - 3], fill=tuple(round(c * tone) for c in (172, 118, 68)))
        x = (row * 0.37 % 1) * size
        draw.rectangle([x, y, x + 3, y + size // 9], fill=(104, 66, 36))
    return image


def _ocean(size: int, rng: np.random.Generator) -> Image.Image:
    split = _horizon(size, rng, 0.2, 0.3)
    pixels = _gradient(size, (196, 226, 246), (220, 238, 248), 0, split)
    pixels[split:] = _gradient(size, (26, 124, 170), (8, 66, 120))[: size - split]
    image = _image(pixels)
    draw = ImageDraw.Draw(image)
    for x, y in zip(rng.uniform(0, size, 14), rng.uniform(split + 10, size, 14), strict=True):
        draw.arc([x - 16, y - 6, x + 16, y + 10], 200, 340, fill=(150, 210, 232), width=4)
    return image


def _forest(size: int, rng: np.random.Generator) -> Image.Image:
    image = _image(_gradient(size, (70, 110, 72), (34, 60, 34)))
    draw = ImageDraw.Draw(image)
    for x in np.arange(0, size, size / 6) + rng.uniform(-10, 10, 6) + 16:
        draw.rectangle([x - 9, 0, x + 9, size * 0.8], fill=(66, 46, 30))
    draw.rectangle([0, size * 0.78, size, size], fill=(58, 78, 34))
    return image


def _city(size: int, rng: np.random.Generator) -> Image.Image:
    image = _image(_gradient(size, (150, 170, 196), (214, 218, 226)))
    draw = ImageDraw.Draw(image)
    for index, x in enumerate(range(0, size, size // 5)):
        top = round(size * rng.uniform(0.08, 0.4))
        tone = (96 + 14 * (index % 3),) * 2 + (112 + 14 * (index % 3),)
        draw.rectangle([x, top, x + size // 5 - 4, size], fill=tone)
        for wy in range(top + 10, round(size * 0.74), 24):
            for wx in (x + 8, x + 28):
                draw.rectangle([wx, wy, wx + 10, wy + 10], fill=(250, 226, 140))
    draw.rectangle([0, round(size * 0.78), size, size], fill=(74, 74, 80))
    return image


_PAINTERS = {
    "beach": _beach,
    "grass": _grass,
    "snow": _snow,
    "desert": _desert,
    "night": _night,
    "brick": _brick,
    "wood": _wood,
    "ocean": _ocean,
    "forest": _forest,
    "city": _city,
}


def paint(name: str, size: int, rng: np.random.Generator) -> Image.Image:
    """The background alone, RGB [size, size]. Raises ValueError for an unknown name."""
    if name not in _PAINTERS:
        raise ValueError(f"unknown background {name!r}; one of {', '.join(_PAINTERS)}")
    return _PAINTERS[name](size, rng)
