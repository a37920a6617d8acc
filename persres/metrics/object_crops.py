"""Object crops: everything outside the object masks is painted grey before encoding.

Scores of whole images also reward a copied background: they fall where a config preserves the base model's background, even for
the same object. Only for datasets with an attribute classifier, which separates object from background.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

GREY = 128
MIN_AREA = 0.01  # share of the image; a smaller mask counts as no object


def object_crops(images: np.ndarray, masks: np.ndarray) -> list[Image.Image]:
    """uint8 [n, h, w, 3] and bool [n, h, w] -> images that are grey outside the masks."""
    return [
        Image.fromarray(np.where(mask[..., None], image, GREY).astype(np.uint8))
        for image, mask in zip(images, masks, strict=True)
    ]


def object_alignment(features: torch.Tensor, references: torch.Tensor, masks: np.ndarray) -> np.ndarray:
    """Mean cosine of each object crop with the references' object crops, [n]; 0 for an image without an object.

    ``features`` [n, d] and ``references`` [k, d] have unit rows; ``masks`` bool [n, h, w] are those of the n images.
    """
    cosine = (features @ references.T).mean(1).double().numpy()
    return np.where(masks.mean((1, 2)) >= MIN_AREA, cosine, 0.0)
