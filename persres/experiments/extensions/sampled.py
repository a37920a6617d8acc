"""Scored images of the profile ``masks``, grouped by the object's position in the base model's image of the same noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from persres.experiments.extensions.masks.coverage import GROUPS, OFF_CENTRE
from persres.images import unzip_images
from persres.miniworld.attribute_classifier import classify_images, load_attribute_classifier
from persres.package_paths import located
from persres.units.context import Context
from persres.units.outputs import read_index

PROFILE = "masks"
COLUMNS = ("dino", "dino_object", "clip_image", "clip_text", "followed", "background_change")


def scored_rows(context: Context) -> pd.DataFrame:
    """Return the pipeline's score rows with a column ``group``, one of :data:`GROUPS`."""
    rows = pd.read_parquet(context.data / "scores" / "scores.parquet")
    return rows.merge(_groups(context), on=["concept", "prompt", "image"], how="left")


def _groups(context: Context) -> pd.DataFrame:
    """Group of every base image: prompts with a second object, else by the attribute classifier's object mask."""
    classifier = load_attribute_classifier(Path(located(context.profile.score.attribute_classifier)))
    rows = []
    for archive in read_index(context).archives:
        if archive.spec.config != "base":
            continue
        images = unzip_images(context.data / "samples" / "base" / f"{archive.spec.concept}.zip")
        specs, prompts = archive.spec.image_specs, {p.number: p for p in archive.spec.prompts}
        masks = classify_images(classifier, np.stack([np.asarray(images[f"{i.name}.png"]) for i in specs])).masks
        for spec, off in zip(specs, off_centre(masks), strict=True):
            prompt = prompts[spec.number]
            group = GROUPS[2] if prompt.group == "object" else GROUPS[1] if off else GROUPS[0]
            rows.append({"concept": archive.spec.concept, "prompt": prompt.text, "image": spec.image, "group": group})
    return pd.DataFrame(rows)


def off_centre(masks: np.ndarray) -> np.ndarray:
    """Return bool [n]: whether the centroid of each mask, bool [n, s, s], is further than :data:`OFF_CENTRE` from the middle."""
    side = masks.shape[1]
    line = (np.arange(side) - (side - 1) / 2) / side
    area = np.maximum(masks.sum((1, 2)), 1)
    across, down = (masks.sum(1) * line).sum(1) / area, (masks.sum(2) * line).sum(1) / area
    return np.hypot(across, down) > OFF_CENTRE


def paired(rows: pd.DataFrame, column: str, more: str, less: str, where: pd.Series | None = None) -> np.ndarray:
    """Return per-concept means of config ``more`` minus those of ``less``, [concepts]; ``where`` selects rows."""
    means = _means(rows if where is None else rows[where], column).reindex(columns=[more, less])
    return (means[more] - means[less]).dropna().to_numpy()


def ratio(rows: pd.DataFrame, column: str, more: str, less: str) -> np.ndarray:
    """Return per-concept means of config ``more`` divided by those of ``less``, [concepts]."""
    means = _means(rows, column)
    return (means[more] / means[less]).dropna().to_numpy()


def _means(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    return rows.pivot_table(index="concept", columns="config", values=column, aggfunc="mean")
