"""How much the image outside the object differs from the base model's (same noise, same prompt).

Only for datasets with an attribute classifier, which separates object from background.
"""

from __future__ import annotations

import numpy as np

from persres.metrics.score_inputs import ScoreInputs


def background_change(inputs: ScoreInputs) -> np.ndarray:
    """Mean squared difference outside both images' objects, [n]; NaN where there is no base image of the same name."""
    change = np.full(len(inputs.names), np.nan)
    if inputs.base is not None:
        rows, images, masks = inputs.base
        change[rows] = background_difference(inputs.images[rows], images, inputs.prediction.masks[rows], masks)
    return change


def background_difference(
    images: np.ndarray, base: np.ndarray, objects: np.ndarray, base_objects: np.ndarray
) -> np.ndarray:
    """Mean squared difference of pixels in [0, 1] outside both images' objects, [n]; NaN where the objects cover everything.

    ``images`` and ``base`` uint8 [n, h, w, 3]; ``objects`` and ``base_objects`` bool [n, h, w].
    """
    outside = ~(objects | base_objects)
    squared = ((images.astype(np.float64) - base.astype(np.float64)) / 255).__pow__(2).mean(3)
    area = outside.sum((1, 2))
    total = (squared * outside).sum((1, 2))
    return np.where(area > 0, total / np.maximum(area, 1), np.nan)
