"""Render scenes of 64×64 pixels with the exact mask of every object.

Objects are drawn as parts on a local canvas, then placed by one affine map on a background, all
at four times the size, and reduced at the end. Everything random comes from one
``numpy.random.Generator``, so a scene and a seed determine the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image, ImageDraw

from persres.miniworld import backgrounds, styles
from persres.miniworld.shapes import ANCHORS, SHAPES
from persres.miniworld.vocabulary import COLOURS

SIZE = 64
SUPER = 4
CANVAS = SIZE * SUPER
LOCAL = 160  # side of an object's own canvas, pixels
MARGIN = 10  # room for outlines and rotation inside the local canvas

FIXED = {"dark": (44, 40, 48), "light": (238, 240, 244), "bark": (120, 78, 44)}


@dataclass(frozen=True)
class Appearance:
    """Appearance of one object. ``parts`` recolours parts by name. No caption can describe parts, emblem or band."""

    kind: str
    colour: str
    pattern: str = "plain"
    parts: tuple[tuple[str, str], ...] = ()
    emblem: tuple[str, str] | None = None  # (shape, colour)
    band: str | None = None  # colour


@dataclass(frozen=True)
class Scene:
    """Content of an image; the pose of each object comes from the generator."""

    subject: Appearance
    background: str
    style: str = "photo"
    second: Appearance | None = None


@dataclass(frozen=True)
class Rendered:
    """``image`` RGB 64×64; ``masks`` bool [n_objects, 64, 64], the subject's first."""

    image: Image.Image
    masks: np.ndarray


def _shade(rgb: tuple[int, int, int], factor: float) -> tuple[int, int, int]:
    return tuple(max(0, min(255, round(c * factor))) for c in rgb)


def _draw(draw: ImageDraw.ImageDraw, primitive: tuple, side: int, fill) -> None:
    span = side - 2 * MARGIN

    def to_px(v: float) -> float:
        return MARGIN + v * span

    kind, coords = primitive[0], primitive[1]
    if kind == "poly":
        draw.polygon([(to_px(x), to_px(y)) for x, y in coords], fill=fill)
        return
    box = [to_px(v) for v in coords]
    if kind == "ellipse":
        draw.ellipse(box, fill=fill)
    elif kind == "round":
        draw.rounded_rectangle(box, radius=primitive[2] * span, fill=fill)
    elif kind == "ring":
        draw.ellipse(box, outline=fill, width=round(primitive[2] * span))
    else:
        raise ValueError(f"unknown primitive {kind!r}")


def _pattern(colour: tuple[int, int, int], pattern: str) -> Image.Image:
    """The main colour as a texture on the local canvas; the second tone is a pale or dark one."""
    pale = sum(colour) < 620
    other = _shade(colour, 0.35) if not pale else tuple((c + 2 * 250) // 3 for c in colour)
    image = Image.new("RGB", (LOCAL, LOCAL), colour)
    draw = ImageDraw.Draw(image)
    step = LOCAL // 6
    if pattern == "striped":
        for y in range(step // 2, LOCAL, step):
            draw.rectangle([0, y, LOCAL, y + step // 2], fill=other)
    elif pattern == "dotted":
        for row, y in enumerate(range(0, LOCAL, step)):
            for x in range((row % 2) * step // 2, LOCAL, step):
                draw.ellipse([x - 5, y - 5, x + 5, y + 5], fill=other)
    elif pattern == "checkered":
        for row, y in enumerate(range(0, LOCAL, step)):
            for x in range((row % 2) * step, LOCAL, 2 * step):
                draw.rectangle([x, y, x + step, y + step], fill=other)
    return image


def _emblem_polygon(shape: str) -> list[tuple[float, float]]:
    """Outline of an emblem around (0, 0), half-size 1."""
    turn = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    if shape == "heart":
        x = 16 * np.sin(turn) ** 3
        y = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
        return list(zip(x / 16, -y / 15, strict=True))
    if shape == "star":
        radii = [1.0, 0.42] * 5
        return [(r * math.sin(i * math.pi / 5), -r * math.cos(i * math.pi / 5)) for i, r in enumerate(radii)]
    if shape == "diamond":
        return [(0, -1), (0.8, 0), (0, 1), (-0.8, 0)]
    if shape == "cross":
        a = 0.33
        return [
            (-a, -1),
            (a, -1),
            (a, -a),
            (1, -a),
            (1, a),
            (a, a),
            (a, 1),
            (-a, 1),
            (-a, a),
            (-1, a),
            (-1, -a),
            (-a, -a),
        ]
    if shape == "disc":
        return list(zip(np.cos(turn), np.sin(turn), strict=True))
    raise ValueError(f"unknown emblem {shape!r}")


@lru_cache(maxsize=512)
def draw_object(appearance: Appearance) -> Image.Image:
    """The object upright on its own transparent canvas, RGBA [LOCAL, LOCAL]. Cached: do not change the image."""
    if appearance.kind not in SHAPES:
        raise ValueError(f"unknown kind {appearance.kind!r}; one of {', '.join(SHAPES)}")
    main = COLOURS[appearance.colour]
    recolour = dict(appearance.parts)
    unknown = set(recolour) - {name for name, _, _ in SHAPES[appearance.kind]}
    if unknown:
        raise ValueError(f"a {appearance.kind} has no part {sorted(unknown)}")
    texture = _pattern(main, appearance.pattern)
    image = Image.new("RGB", (LOCAL, LOCAL))
    alpha = Image.new("L", (LOCAL, LOCAL))
    body = Image.new("L", (LOCAL, LOCAL))
    for name, role, primitives in SHAPES[appearance.kind]:
        mask = Image.new("L", (LOCAL, LOCAL))
        for primitive in primitives:
            _draw(ImageDraw.Draw(mask), primitive, LOCAL, 255)
        if name in recolour:
            fill = Image.new("RGB", (LOCAL, LOCAL), COLOURS[recolour[name]])
        elif role == "body":
            fill = texture
            body.paste(255, mask=mask)
        else:
            fill = Image.new("RGB", (LOCAL, LOCAL), _shade(main, 0.68) if role == "trim" else FIXED[role])
        image.paste(fill, mask=mask)
        alpha.paste(255, mask=mask)
    _add_band(image, body, appearance)
    _add_emblem(image, appearance)
    return _outlined(_shaded(image), alpha)


def _add_band(image: Image.Image, body: Image.Image, appearance: Appearance) -> None:
    if appearance.band is None:
        return
    _, y, half = ANCHORS[appearance.kind]
    span = LOCAL - 2 * MARGIN
    stripe = Image.new("L", (LOCAL, LOCAL))
    box = [0, MARGIN + (y - half * 0.55) * span, LOCAL, MARGIN + (y + half * 0.55) * span]
    ImageDraw.Draw(stripe).rectangle(box, fill=255)
    image.paste(COLOURS[appearance.band], mask=Image.fromarray(np.minimum(np.asarray(stripe), np.asarray(body))))


def _add_emblem(image: Image.Image, appearance: Appearance) -> None:
    if appearance.emblem is None:
        return
    shape, colour = appearance.emblem
    x, y, half = ANCHORS[appearance.kind]
    span = LOCAL - 2 * MARGIN
    points = [(MARGIN + (x + half * px) * span, MARGIN + (y + half * py) * span) for px, py in _emblem_polygon(shape)]
    ImageDraw.Draw(image).polygon(points, fill=COLOURS[colour])


def _shaded(image: Image.Image) -> Image.Image:
    light = np.linspace(1.06, 0.82, LOCAL)[None, :, None]
    return Image.fromarray(np.clip(np.asarray(image) * light, 0, 255).astype(np.uint8))


def _outlined(image: Image.Image, alpha: Image.Image) -> Image.Image:
    wide = _dilated(alpha, 3)
    result = Image.new("RGBA", (LOCAL, LOCAL), (34, 30, 36, 0))
    result.putalpha(wide)
    result.paste(image, mask=alpha)
    result.putalpha(wide)
    return result


def _dilated(alpha: Image.Image, reach: int) -> Image.Image:
    """The largest value within ``reach`` pixels, as Pillow's MaxFilter computes it in ten times the time."""
    values = np.asarray(alpha)
    for axis in (0, 1):
        padded = np.pad(values, [(reach, reach) if axis == a else (0, 0) for a in (0, 1)], mode="edge")
        values = sliding_window_view(padded, 2 * reach + 1, axis=axis).max(-1)
    return Image.fromarray(values)


def _place(local: Image.Image, centre: tuple[float, float], side: float, angle: float, flip: bool) -> Image.Image:
    """The local canvas on the scene canvas: centre in scene pixels, side in scene pixels."""
    scale = LOCAL / side
    cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
    sx = -1.0 if flip else 1.0
    cx, cy = centre
    a, b = sx * cos, sx * sin
    d, e = -sin, cos
    coeffs = (a, b, LOCAL / 2 - a * cx - b * cy, d, e, LOCAL / 2 - d * cx - e * cy)
    return local.transform((CANVAS, CANVAS), Image.AFFINE, coeffs, Image.BILINEAR)


def _pose(rng: np.random.Generator, n_objects: int, index: int) -> tuple[tuple[float, float], float, float, bool]:
    """Centre, side, angle and flip. Two objects take half of the image each."""
    if n_objects == 1:
        side = CANVAS * rng.uniform(0.6, 0.82)
        x = CANVAS * 0.5 + rng.uniform(-1, 1) * (CANVAS - side) * 0.45
    else:
        side = CANVAS * (rng.uniform(0.5, 0.58) if index == 0 else rng.uniform(0.38, 0.46))
        x = CANVAS * (0.29 if index == 0 else 0.77) + rng.uniform(-0.02, 0.02) * CANVAS
    y = CANVAS * 0.56 + rng.uniform(-0.9, 0.7) * (CANVAS - side) * 0.3
    if n_objects == 2:
        y = CANVAS * 0.62 + rng.uniform(-0.04, 0.04) * CANVAS
    return (x, y), side, math.radians(rng.uniform(-10, 10)), bool(rng.random() < 0.5)


def render(scene: Scene, rng: np.random.Generator) -> Rendered:
    """Render one image of the scene, with the visible mask of each object (subject, second)."""
    canvas = backgrounds.paint(scene.background, CANVAS, rng)
    appearances = [scene.subject] + ([scene.second] if scene.second is not None else [])
    mirrored = len(appearances) == 2 and rng.random() < 0.5
    masks: list[np.ndarray] = []
    for index, appearance in enumerate(appearances):
        centre, side, angle, flip = _pose(rng, len(appearances), index)
        centre = (CANVAS - centre[0], centre[1]) if mirrored else centre
        placed = _place(draw_object(appearance), centre, side, angle, flip)
        canvas.paste(placed, mask=placed.getchannel("A"))
        small = np.asarray(placed.getchannel("A").resize((SIZE, SIZE), Image.BOX)) > 127
        masks = [m & ~small for m in masks] + [small]
    brightness = np.clip(np.arange(256) * rng.uniform(0.9, 1.08), 0, 255).astype(np.uint8)
    canvas = canvas.point([int(value) for value in brightness] * 3)
    image = styles.apply(scene.style, canvas, SIZE, rng)
    return Rendered(image, np.stack(masks))
