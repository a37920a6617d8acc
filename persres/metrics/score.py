"""A unit of scoring: the rows of one pack of pictures."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from persres.metrics import feature_cache
from persres.metrics.background import background_change
from persres.metrics.clip_scores import alignment, clip_text_score, load_clip
from persres.metrics.dino_scores import load_dino
from persres.metrics.feature_cache import EncoderSet, References, Source, pixels
from persres.metrics.object_crops import object_alignment, object_crops
from persres.metrics.summary import CLASSIFIER_SCORES
from persres.models.loading import pick_device
from persres.units.provenance import measured
from persres.units.specs import ImageSpec, ScoreSpec
from persres.units.unit import Unit, finish

FILE = "scores.parquet"


def _judged(spec: ScoreSpec, eyes: EncoderSet, theirs: References, batch: int) -> dict[str, np.ndarray]:
    """What only a judge can tell: the object's identity without its background, whether the picture shows what the
    prompt asks for, and the change outside the objects against the base model's picture of the same name."""
    if spec.classifier is None:
        return {column: np.full(len(spec.image_specs), np.nan) for column in CLASSIFIER_SCORES}
    own, names = Source.of(spec.archive), tuple(item.name for item in spec.image_specs)
    texts = {prompt.number: prompt.text for prompt in spec.prompts}
    drawn, said = (
        pixels([feature_cache.image_features(own)[name] for name in names]),
        feature_cache.verdict(own, names, spec.classifier),
    )
    alone = load_dino(eyes.dino, eyes.device).images(object_crops(drawn, said.masks), batch)
    return {
        "dino_object": object_alignment(alone, theirs.objects, said.masks),
        "followed": feature_cache.load_classifier(spec.classifier).followed(
            said, [texts[item.number] for item in spec.image_specs]
        ),
        "background_change": _background(spec, names, drawn, said.masks),
    }


def _background(spec: ScoreSpec, names: tuple[str, ...], drawn: np.ndarray, masks: np.ndarray) -> np.ndarray:
    change = np.full(len(names), np.nan)
    if spec.base_archive is None:
        return change
    archive = Source.of(spec.base_archive)
    base = feature_cache.image_features(archive)
    shared = [i for i, name in enumerate(names) if name in base]
    if shared:
        said = feature_cache.verdict(archive, tuple(names[i] for i in shared), spec.classifier)
        theirs = pixels([base[names[i]] for i in shared])
        change[shared] = background_change(drawn[shared], theirs, masks[shared], said.masks)
    return change


def _groups(spec: ScoreSpec, batch: int) -> Iterable[list[Image.Image]]:
    """The pack's pictures, ``batch`` at a time; from those that are kept where a judge looks at them too."""
    names = [item.name for item in spec.image_specs]
    if spec.classifier is None:
        return feature_cache.read_archive(Path(spec.archive.path), names, batch)
    found = feature_cache.image_features(Source.of(spec.archive))
    return ([found[name] for name in names[k : k + batch]] for k in range(0, len(names), batch))


def _compared(spec: ScoreSpec, eyes: EncoderSet, theirs: References, batch: int) -> dict[str, np.ndarray]:
    """CLIP's and DINO's scores, both from one decode of each picture."""
    clip, dino, by_clip, by_dino = load_clip(eyes.clip, eyes.device), load_dino(eyes.dino, eyes.device), [], []
    for images in _groups(spec, batch):
        by_clip.append(clip.images(images, batch))
        by_dino.append(dino.images(images, batch))
    features = torch.cat(by_clip)
    texts = feature_cache.prompt_features(tuple(item.plain for item in spec.image_specs), eyes.clip, eyes.device)
    return {
        "clip_text": _array(clip_text_score(features, texts)),
        "clip_image": _array(alignment(features, theirs.clip)),
        "dino": _array(alignment(torch.cat(by_dino), theirs.dino)),
    }


def score_unit(unit: Unit[ScoreSpec], work: Path, device: str, batch: int = 64) -> None:
    """The rows of one pack, one row a picture."""
    spec, folder = unit.spec, unit.folder(work)
    with measured(pick_device(device)) as facts:
        eyes = EncoderSet(spec.clip, spec.dino, spec.classifier, device)
        theirs = feature_cache.references(tuple(Source.of(photo) for photo in spec.references), eyes)
        rows = pd.DataFrame([_labels(spec, item) for item in spec.image_specs])
        found = _compared(spec, eyes, theirs, batch) | _judged(spec, eyes, theirs, batch)
        for column, values in found.items():
            rows[column] = values
        rows["spec_hash"] = spec.sample_hash
    folder.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(folder / FILE, index=False)
    finish(unit, work, [folder / FILE], facts)


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().numpy()


def _labels(spec: ScoreSpec, item: ImageSpec) -> dict[str, object]:
    prompt = next(prompt for prompt in spec.prompts if prompt.number == item.number)
    return {
        "concept": spec.concept,
        "category": spec.category,
        "method": spec.config,
        "prompt": prompt.text,
        "prompt_group": prompt.group,
        "seed": spec.seed,
        "image": item.image,
    }
