"""Whether an image shows the marks that make the concept, by the dataset's marks classifier."""

from __future__ import annotations

import numpy as np

from persres.metrics.feature_cache import load_classifier
from persres.metrics.score_inputs import ScoreInputs


def marks(inputs: ScoreInputs) -> np.ndarray:
    """Share of the concept's marks (recoloured parts, emblem, band) that are read on each image, [n]; NaN where a style shows none."""
    return load_classifier(inputs.encoders.classifier).marks_shown(inputs.images, inputs.spec.concept, inputs.templates)
