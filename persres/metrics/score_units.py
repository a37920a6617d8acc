"""A unit of scoring: one row of scores for each image of an image archive."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from persres.metrics.score_inputs import ScoreInputs
from persres.metrics.scores import SCORES
from persres.models.loading import pick_device
from persres.units.provenance import measured
from persres.units.specs import ImageSpec, ScoreSpec
from persres.units.unit import Unit, finish

FILE = "scores.parquet"


def score_unit(unit: Unit[ScoreSpec], work: Path, device: str, batch: int = 64) -> None:
    """Compute every declared score of an image archive, one row per image; NaN for scores whose classifier the dataset lacks."""
    spec, folder = unit.spec, unit.folder(work)
    with measured(pick_device(device)) as facts:
        inputs = ScoreInputs(spec, device, batch)
        rows = pd.DataFrame([_labels(spec, item) for item in spec.image_specs])
        for name, score in SCORES.items():
            computable = spec.classifier is not None or not score.needs_classifier
            rows[name] = score.function(inputs) if computable else np.nan
        rows["spec_hash"] = spec.sample_hash
    folder.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(folder / FILE, index=False)
    finish(unit, work, [folder / FILE], facts)


def _labels(spec: ScoreSpec, item: ImageSpec) -> dict[str, object]:
    prompt = next(prompt for prompt in spec.prompts if prompt.number == item.number)
    return {
        "concept": spec.concept,
        "category": spec.category,
        "config": spec.config,
        "prompt": prompt.text,
        "prompt_group": prompt.group,
        "seed": spec.seed,
        "image": item.image,
    }
