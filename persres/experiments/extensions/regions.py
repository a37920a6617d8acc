"""Which part of a picture is which of the things asked for, where the judge (persres.miniworld.attribute_classifier) gives one mask for all of them.

1. The judge's mask falls apart into connected parts; touching ones are eroded apart and grown back to their nearest part.
2. Each part is cut out, put in the middle of two plain backgrounds at the size of a single object, and the judge names its class there:
   it learned classes of single objects only (build/judge.py).
3. Parts and things are matched so that the judge's log-probabilities add up to the most. A thing is *seen* where its part's likeliest
   class is its own.

How well this reads pictures whose truth is known (rendered pairs) is measured beside the methods.
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

GROUNDS = ("wood", "brick")  # where the judge reads parts of rendered pairs best
SIDE = 44  # pixels of a part's longer side there
MAX_PARTS = 4  # parts that are looked at, the largest
EROSIONS = 3


@dataclass(frozen=True)
class Regions:
    """Of one picture and K things: ``masks`` bool [K, h, w], empty where a thing has no part; ``seen`` bool [K]; ``objects`` bool
    [h, w], all that the judge takes for objects."""

    masks: np.ndarray
    seen: np.ndarray
    objects: np.ndarray


def connected_parts(mask: np.ndarray, wanted: int) -> list[np.ndarray]:
    """Connected parts bool [h, w] of a mask, largest first, of at least :data:`MIN_AREA` of the picture; eroded apart where there
    are fewer than wanted."""
    found = _connected(mask)
    for times in range(1, EROSIONS + 1):
        if len(found) >= wanted:
            break
        cores, count = ndimage.label(ndimage.binary_erosion(mask, iterations=times))
        if count < 2:
            continue
        nearest = ndimage.distance_transform_edt(cores == 0, return_distances=False, return_indices=True)
        grown = np.where(mask, cores[tuple(nearest)], 0)
        apart = _large([grown == k for k in range(1, count + 1)])
        found = apart if len(apart) > len(found) else found
    return found


def _connected(mask: np.ndarray) -> list[np.ndarray]:
    labels, count = ndimage.label(mask)
    return _large([labels == k for k in range(1, count + 1)])


def _large(parts: list[np.ndarray]) -> list[np.ndarray]:
    return sorted((p for p in parts if p.mean() >= MIN_AREA), key=lambda p: -p.sum())[:MAX_PARTS]


def _box(mask: np.ndarray, side: int) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
    """A part's box and its size when its longer side is ``side``."""
    rows, columns = np.where(mask)
    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    width, height = box[2] - box[0], box[3] - box[1]
    scale = side / max(width, height)
    return tuple(int(v) for v in box), (max(1, round(width * scale)), max(1, round(height * scale)))


def paste_on_background(image: np.ndarray, mask: np.ndarray, ground: Image.Image, side: int = SIDE) -> Image.Image:
    """The part alone in the middle of ``ground`` [64, 64], its longer side ``side`` pixels."""
    box, size = _box(mask, side)
    alone = Image.fromarray(image).crop(box).resize(size, Image.BICUBIC)
    where = Image.fromarray((mask * 255).astype(np.uint8)).crop(box).resize(size, Image.BILINEAR)
    out = ground.copy()
    out.paste(alone, ((out.width - size[0]) // 2, (out.height - size[1]) // 2), where)
    return out


def on_grey(image: np.ndarray, mask: np.ndarray) -> Image.Image:
    """The part alone on grey at the size of a single object, as identities are compared; square pictures of any size."""
    side = len(image)
    return paste_on_background(image, mask, Image.new("RGB", (side, side), (GREY,) * 3), round(side * SIDE / SIZE))


@torch.no_grad()
def class_scores(judge: AttributeClassifier, parts: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Log-probabilities [parts, classes] of (image, mask) pairs, averaged over the grounds."""
    if not parts:
        return np.zeros((0, len(judge.labels["kind"])))
    grounds = [
        backgrounds.paint(name, CANVAS, np.random.default_rng(0)).resize((SIZE, SIZE), Image.BOX) for name in GROUNDS
    ]
    scores = [
        judge(to_tensor([paste_on_background(image, mask, ground) for image, mask in parts]))["kind"].log_softmax(1)
        for ground in grounds
    ]
    return torch.stack(scores).mean(0).numpy()


def match_parts(scores: np.ndarray, kinds: list[int]) -> list[int | None]:
    """Which part each thing is, by the best sum of ``scores`` [parts, classes] at the things' ``kinds``; none for a thing too many."""
    parts = list(range(len(scores))) + [None] * max(0, len(kinds) - len(scores))
    nothing = float(scores.min(initial=0.0)) - 1.0  # a part, however unlikely, before none

    def total(order: tuple[int | None, ...]) -> float:
        return sum(nothing if p is None else float(scores[p, k]) for p, k in zip(order, kinds, strict=True))

    return list(max(permutations(parts, len(kinds)), key=total))


def read_regions(judge: AttributeClassifier, images: np.ndarray, kinds: list[tuple[str, ...]]) -> list[Regions]:
    """The regions of the things of classes ``kinds`` in uint8 pictures [n, 64, 64, 3]."""
    masks = classify_images(judge, images).masks
    parts = [connected_parts(mask, len(asked)) for mask, asked in zip(masks, kinds, strict=True)]
    scores = class_scores(judge, [(image, part) for image, own in zip(images, parts, strict=True) for part in own])
    found, start = [], 0
    for mask, own, asked in zip(masks, parts, kinds, strict=True):
        found.append(_regions(judge, mask, own, scores[start : start + len(own)], asked))
        start += len(own)
    return found


def _regions(
    judge: AttributeClassifier, mask: np.ndarray, parts: list, scores: np.ndarray, asked: tuple[str, ...]
) -> Regions:
    numbers = [judge.labels["kind"].index(kind) for kind in asked]
    which = match_parts(scores, numbers)
    none = np.zeros_like(mask)
    seen = [p is not None and int(scores[p].argmax()) == k for p, k in zip(which, numbers, strict=True)]
    return Regions(np.stack([none if p is None else parts[p] for p in which]), np.array(seen), mask)
