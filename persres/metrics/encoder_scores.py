"""Scores from CLIP's and DINO's features."""

from __future__ import annotations

import numpy as np
import torch

from persres.metrics.clip_scores import alignment, clip_text_score
from persres.metrics.object_crops import object_alignment
from persres.metrics.score_inputs import ScoreInputs


def clip_text(inputs: ScoreInputs) -> np.ndarray:
    """CLIPScore of each image with its own prompt."""
    return _array(clip_text_score(inputs.features[0], inputs.text_features))


def clip_image(inputs: ScoreInputs) -> np.ndarray:
    """CLIP image alignment with the references."""
    return _array(alignment(inputs.features[0], inputs.references.clip))


def dino(inputs: ScoreInputs) -> np.ndarray:
    """DINO image alignment with the references."""
    return _array(alignment(inputs.features[1], inputs.references.dino))


def dino_object(inputs: ScoreInputs) -> np.ndarray:
    """DINO image alignment of the objects alone; 0 where the image shows no object."""
    return object_alignment(inputs.object_features, inputs.references.objects, inputs.prediction.masks)


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().numpy()
