"""Regions of an image that show each of several objects, although the attribute classifier gives one mask for all of them.

1. The mask splits into connected parts; touching parts are separated by erosion and grown back to the nearest part.
2. Each part is cut out and pasted, at the size of a single object, on two plain backgrounds, where the classifier names its class.
   It was trained on the classes of single objects only.
3. Parts are assigned to objects to maximise the sum of log-probabilities. An object is *seen* if its part's likeliest class is its class.

The study reports how well this works on rendered pairs, whose truth is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from persres.images import to_tensor
from persres.metrics.object_crops import GREY, MIN_AREA
from persres.miniworld import backgrounds
from persres.miniworld.attribute_classifier import AttributeClassifier, classify_images
from persres.miniworld.render import CANVAS, SIZE

BACKGROUNDS = ("wood", "brick")  # where the classifier names parts of rendered pairs best
SIDE = 44  # pixels of a part's longer side there
MAX_PARTS = 4  # the largest ones
EROSIONS = 3


@dataclass(frozen=True)
class Regions:
    """Regions of K objects in one image: ``masks`` bool [K, h, w], empty without a part; ``seen`` bool [K]; ``objects`` bool [h, w],
    everything that the classifier marks as object."""

    masks: np.ndarray
    seen: np.ndarray
    objects: np.ndarray


def connected_parts(mask: np.ndarray, wanted: int) -> list[np.ndarray]:
    """Return connected parts bool [h, w] of a mask, largest first, each at least :data:`MIN_AREA` of the image.

    If there are fewer parts than ``wanted``, erosion separates touching ones.
    """
    parts = _connected(mask)
    for times in range(1, EROSIONS + 1):
        if len(parts) >= wanted:
            break
        cores, count = ndimage.label(ndimage.binary_erosion(mask, iterations=times))
        if count < 2:
            continue
        nearest = ndimage.distance_transform_edt(cores == 0, return_distances=False, return_indices=True)
        grown = np.where(mask, cores[tuple(nearest)], 0)
        separated = _large([grown == k for k in range(1, count + 1)])
        parts = separated if len(separated) > len(parts) else parts
    return parts


def _connected(mask: np.ndarray) -> list[np.ndarray]:
    labels, count = ndimage.label(mask)
    return _large([labels == k for k in range(1, count + 1)])


def _large(parts: list[np.ndarray]) -> list[np.ndarray]:
    return sorted((p for p in parts if p.mean() >= MIN_AREA), key=lambda p: -p.sum())[:MAX_PARTS]


def _box(mask: np.ndarray, side: int) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
    """A part's box, and its size with a longer side of ``side``."""
    rows, columns = np.where(mask)
    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    width, height = box[2] - box[0], box[3] - box[1]
    scale = side / max(width, height)
    return tuple(int(v) for v in box), (max(1, round(width * scale)), max(1, round(height * scale)))


def paste_on_background(image: np.ndarray, mask: np.ndarray, background: Image.Image, side: int = SIDE) -> Image.Image:
    """Return ``background`` with the masked part in its middle, the part's longer side ``side`` pixels."""
    box, size = _box(mask, side)
    part = Image.fromarray(image).crop(box).resize(size, Image.BICUBIC)
    alpha = Image.fromarray((mask * 255).astype(np.uint8)).crop(box).resize(size, Image.BILINEAR)
    out = background.copy()
    out.paste(part, ((out.width - size[0]) // 2, (out.height - size[1]) // 2), alpha)
    return out


def crop_on_grey(image: np.ndarray, mask: np.ndarray) -> Image.Image:
    """Return the masked part on grey at the size of a single object; square images of any size."""
    side = len(image)
    return paste_on_background(image, mask, Image.new("RGB", (side, side), (GREY,) * 3), round(side * SIDE / SIZE))


@torch.no_grad()
def class_scores(classifier: AttributeClassifier, parts: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return log-probabilities [parts, classes] of (image, mask) pairs, averaged over the backgrounds."""
    if not parts:
        return np.zeros((0, len(classifier.labels["kind"])))
    plain = [
        backgrounds.paint(name, CANVAS, np.random.default_rng(0)).resize((SIZE, SIZE), Image.BOX)
        for name in BACKGROUNDS
    ]
    scores = [
        classifier(to_tensor([paste_on_background(image, mask, background) for image, mask in parts]))[
            "kind"
        ].log_softmax(1)
        for background in plain
    ]
    return torch.stack(scores).mean(0).numpy()


def match_parts(scores: np.ndarray, kinds: list[int]) -> list[int | None]:
    """Return the part of each object that maximises the sum of ``scores`` [parts, classes]; None for an object without a part."""
    parts = list(range(len(scores))) + [None] * max(0, len(kinds) - len(scores))
    missing = float(scores.min(initial=0.0)) - 1.0  # any part is better than none

    def total(order: tuple[int | None, ...]) -> float:
        return sum(missing if p is None else float(scores[p, k]) for p, k in zip(order, kinds, strict=True))

    return list(max(permutations(parts, len(kinds)), key=total))


def read_regions(classifier: AttributeClassifier, images: np.ndarray, kinds: list[tuple[str, ...]]) -> list[Regions]:
    """Return the regions of objects of classes ``kinds`` in each image, uint8 [n, 64, 64, 3]."""
    masks = classify_images(classifier, images).masks
    parts = [connected_parts(mask, len(names)) for mask, names in zip(masks, kinds, strict=True)]
    pairs = [(image, part) for image, of_image in zip(images, parts, strict=True) for part in of_image]
    scores = np.split(class_scores(classifier, pairs), np.cumsum([len(of_image) for of_image in parts])[:-1])
    labels = classifier.labels["kind"]
    return [
        _regions(mask, of_image, rows, [labels.index(kind) for kind in names])
        for mask, of_image, rows, names in zip(masks, parts, scores, kinds, strict=True)
    ]


def _regions(mask: np.ndarray, parts: list[np.ndarray], scores: np.ndarray, kinds: list[int]) -> Regions:
    order = match_parts(scores, kinds)
    seen = [p is not None and int(scores[p].argmax()) == k for p, k in zip(order, kinds, strict=True)]
    masks = np.stack([np.zeros_like(mask) if p is None else parts[p] for p in order])
    return Regions(masks, np.array(seen), mask)
