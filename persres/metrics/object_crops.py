"""The object alone: what lies outside the masks is painted grey before an encoder looks.

Scores of whole pictures also reward a copied background: a method that keeps the base model's background
looks less like the references there even where the object is the same. Only where a judge knows object
from background, that is in the mini world.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

GREY = 128
SMALLEST = 0.01  # share of the picture; below it there is no object to speak of


def object_crops(images: np.ndarray, masks: np.ndarray) -> list[Image.Image]:
    """uint8 [n, h, w, 3] and bool [n, h, w] -> pictures that are grey outside the masks."""
    return [
        Image.fromarray(np.where(mask[..., None], image, GREY).astype(np.uint8))
        for image, mask in zip(images, masks, strict=True)
    ]


def object_alignment(features: torch.Tensor, references: torch.Tensor, masks: np.ndarray) -> np.ndarray:
    """Mean cosine of each cut-out with the references' cut-outs, [n]; 0 where no object was drawn.

    ``features`` [n, d] and ``references`` [k, d]: unit rows; ``masks`` bool [n, h, w] of the n pictures.
    """
    found = (features @ references.T).mean(1).double().numpy()
    return np.where(masks.mean((1, 2)) >= SMALLEST, found, 0.0)
