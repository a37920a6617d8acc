"""Whether an image shows what its prompt describes, by the dataset's attribute classifier."""

from __future__ import annotations

import numpy as np

from persres.metrics.feature_cache import load_classifier
from persres.metrics.score_inputs import ScoreInputs


def followed(inputs: ScoreInputs) -> np.ndarray:
    """Share of the attributes in each prompt that the classifier predicts, [n]; NaN for a prompt without a readable attribute."""
    return load_classifier(inputs.encoders.classifier).matches_prompt(inputs.prediction, inputs.templates)
