"""How much of the base model's picture outside the object changed (same noise, same prompt).

Only where a judge knows object from background, that is in the mini world.
"""

from __future__ import annotations

import numpy as np


def background_change(
    images: np.ndarray, base: np.ndarray, objects: np.ndarray, base_objects: np.ndarray
) -> np.ndarray:
    """Mean squared difference of pixels in [0, 1] outside both pictures' objects, [n].

    ``images`` and ``base`` uint8 [n, h, w, 3]; ``objects`` and ``base_objects`` bool [n, h, w]. NaN where the objects
    cover everything.
    """
    outside = ~(objects | base_objects)
    squared = ((images.astype(np.float64) - base.astype(np.float64)) / 255).__pow__(2).mean(3)
    area = outside.sum((1, 2))
    total = (squared * outside).sum((1, 2))
    return np.where(area > 0, total / np.maximum(area, 1), np.nan)
