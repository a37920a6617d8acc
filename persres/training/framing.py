"""How a photo becomes a training image (setting ``crop``).

- ``center``, the paper's: the centre square.
- ``pad``: the whole photo in a grey square. The loss leaves the border out; the denoiser still sees it.
- ``bucket``: the photo at its aspect, with about as many pixels as the square, and sides that the model can encode. The loss of a step
  is the mean over its images, which are denoised in groups of one size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image, ImageOps

from persres.images import square

Size = tuple[int, int]  # width and height in pixels
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels
GREY = (127, 127, 127)  # of a border: near 0, the middle of the model's range
MOST_ASPECT = 2.0  # of a bucket; the ends of a longer photo are cut. Models were trained on little else


@dataclass(frozen=True)
class Frame:
    """``size`` of the training image; ``used``: the part of the photo that it shows; ``area``: where it lies in the training image."""

    size: Size
    used: Box
    area: Box

    def share(self, photo: Size) -> float:
        """The share of a photo's pixels that the training image shows."""
        left, top, right, bottom = self.used
        return (right - left) * (bottom - top) / (photo[0] * photo[1])


def frame_of(photo: Size, resolution: int, crop: str, factor: int = 1) -> Frame:
    """The frame of a photo of this size. ``factor``: pixels per latent pixel, of which a bucket's sides are multiples."""
    if crop == "pad":
        return _padded(photo, resolution)
    size = bucket_size(photo, resolution, factor) if crop == "bucket" else (resolution, resolution)
    return Frame(size, _centre(photo, size[0] / size[1]), (0, 0, *size))


def bucket_size(photo: Size, resolution: int, factor: int) -> Size:
    """The size with a photo's aspect, about ``resolution``² pixels and sides that are multiples of ``factor``."""
    aspect = min(max(photo[0] / photo[1], 1 / MOST_ASPECT), MOST_ASPECT)
    sides = resolution * math.sqrt(aspect), resolution / math.sqrt(aspect)
    width, height = (max(1, round(side / factor)) * factor for side in sides)
    return width, height


def framed(photo: Image.Image, resolution: int, crop: str, factor: int = 1) -> tuple[Image.Image, Frame]:
    """A photo as a training image, with its frame."""
    frame = frame_of(photo.size, resolution, crop, factor)
    if crop == "center":
        return square(photo, resolution), frame
    left, top, right, bottom = frame.area
    image = ImageOps.fit(photo, (right - left, bottom - top), Image.Resampling.BICUBIC)
    if crop == "bucket":
        return image, frame
    canvas = Image.new("RGB", frame.size, GREY)
    canvas.paste(image, (left, top))
    return canvas, frame


def _centre(photo: Size, aspect: float) -> Box:
    """The largest part of that aspect in the centre of a photo."""
    width, height = min(photo[0], photo[1] * aspect), min(photo[1], photo[0] / aspect)
    left, top = (photo[0] - width) / 2, (photo[1] - height) / 2
    return round(left), round(top), round(left + width), round(top + height)


def _padded(photo: Size, resolution: int) -> Frame:
    scale = resolution / max(photo)
    width, height = (max(1, round(side * scale)) for side in photo)
    left, top = (resolution - width) // 2, (resolution - height) // 2
    return Frame((resolution, resolution), (0, 0, *photo), (left, top, left + width, top + height))
