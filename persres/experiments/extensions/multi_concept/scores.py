"""Scores of images of several concepts: identity of each region, missing objects, change of the rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from persres.datasets.layout import reference_photos
from persres.experiments.extensions.multi_concept.cases import Case, rendered_pairs
from persres.experiments.extensions.multi_concept.sampling import SampledImages
from persres.experiments.extensions.regions import Regions, crop_on_grey, read_regions
from persres.images import load_photo, square
from persres.metrics.background import background_difference
from persres.metrics.clip_scores import ClipEncoder, alignment, clip_text_score
from persres.metrics.dino_scores import DinoEncoder
from persres.miniworld.attribute_classifier import AttributeClassifier, classify_images, load_attribute_classifier
from persres.package_paths import located
from persres.units.context import Context

COLUMNS = {
    "worse": "worse identity of the two",
    "first": "identity, first",
    "second": "identity, second",
    "contrast": "identity contrast",
    "leakage": "identity leakage",
    "missing": "missing objects",
    "background_change": "background change",
    "mask_accuracy": "mask accuracy",
    "clip_text": "CLIP text",
    "dino": "DINO, whole image",
}


class RegionScorer:
    """Scores regions against references. The attribute classifier finds the regions if the profile has one, else LAG's masks do."""

    def __init__(self, context: Context, clip: ClipEncoder, dino: DinoEncoder, names: list[str]) -> None:
        self.clip, self.dino, self.resolution = clip, dino, context.profile.base.resolution
        path = context.profile.score.attribute_classifier
        self.classifier: AttributeClassifier | None = (
            None if path is None else load_attribute_classifier(Path(located(path)))
        )
        self.image_references: dict[str, torch.Tensor] = {}
        self.object_references: dict[str, torch.Tensor] = {}
        self._regions: dict[
            int, tuple[np.ndarray, list[Regions]]
        ] = {}  # the base model's regions are needed for every config
        for name in names:
            photos = [
                square(load_photo(p), self.resolution) for p in reference_photos(context.data / "concepts" / name)
            ]
            self.image_references[name] = dino.images(photos)
            self.object_references[name] = self.image_references[name] if self.classifier is None else dino.images(self._crops(photos))  # fmt: skip

    def _crops(self, photos: list[Image.Image]) -> list[Image.Image]:
        images = np.stack([np.asarray(p) for p in photos])
        masks = classify_images(self.classifier, images).masks
        return [crop_on_grey(image, mask) for image, mask in zip(images, masks, strict=True)]

    def regions(self, sampled: SampledImages, cases: list[Case], masks: np.ndarray) -> list[Regions]:
        """Return each image's regions: by the classifier, or where ``masks`` [n, K, s, s] exceed one half."""
        if self.classifier is not None:
            key = id(sampled.images)
            if key not in self._regions:
                regions = read_regions(self.classifier, sampled.images, [case.classes for case in cases])
                self._regions[key] = (sampled.images, regions)  # the reference prevents reuse of the id
            return self._regions[key][1]
        large = torch.nn.functional.interpolate(torch.from_numpy(masks).float(), size=sampled.images.shape[1:3]) > 0.5
        return [Regions(m, np.full(len(m), np.nan), m.any(0)) for m in large.numpy()]


def score_configs(scorer: RegionScorer, sampled: dict[str, SampledImages], cases: list[Case]) -> pd.DataFrame:
    """Return rows of every config; for pairs with a classifier also of ``rendered``, the renderer's images."""
    tables = [score_images(scorer, config, sampled, cases) for config in sampled]
    if scorer.classifier is not None and len(cases[0].names) == 2:
        rendered = sampled | {"rendered": SampledImages(rendered_pairs(cases), None)}
        tables.append(score_images(scorer, "rendered", rendered, cases))
    return pd.concat(tables, ignore_index=True)


def score_images(
    scorer: RegionScorer, config: str, sampled: dict[str, SampledImages], cases: list[Case]
) -> pd.DataFrame:
    """Return one row per image of a config. ``sampled`` also holds ``base`` and ``ours``, whose masks stand in for a classifier."""
    current, base, masks = sampled[config], sampled["base"], sampled["ours"].masks
    regions = scorer.regions(current, cases, masks)
    base_regions = regions if base is current else scorer.regions(base, cases, masks)
    objects, base_objects = (np.stack([r.objects for r in some]) for some in (regions, base_regions))
    images = [Image.fromarray(image) for image in current.images]
    rows = pd.DataFrame(_identities(scorer, current.images, regions, cases))
    rows["clip_text"] = clip_text_score(scorer.clip.images(images), _text_features(scorer, cases)).double().numpy()
    references = [torch.cat([scorer.image_references[name] for name in case.names]) for case in cases]
    rows["dino"] = [
        float(alignment(f[None], r)[0]) for f, r in zip(scorer.dino.images(images), references, strict=True)
    ]
    rows["mask_accuracy"] = mask_accuracy(current.masks, regions)
    rows["background_change"] = background_difference(current.images, base.images, objects, base_objects)
    labels = [
        {"config": config, "group": c.group, "order": c.order, "prompt": c.template, "image": c.image} for c in cases
    ]
    return pd.concat([pd.DataFrame(labels), rows], axis=1)


def _text_features(scorer: RegionScorer, cases: list[Case]) -> torch.Tensor:
    """CLIP features of the plain prompts, each encoded once, [n, d]."""
    index = {plain: i for i, plain in enumerate(dict.fromkeys(case.plain for case in cases))}
    return scorer.clip.texts(list(index))[[index[case.plain] for case in cases]]


def mask_accuracy(masks: np.ndarray | None, regions: list[Regions]) -> np.ndarray:
    """Return [n]: of the object area that masks [n, K, s, s] mark, the share on the mask's object. Chance is one half for two objects.

    NaN without masks, or if they mark no object.
    """
    if masks is None:
        return np.full(len(regions), np.nan)
    size = regions[0].objects.shape
    large = torch.nn.functional.interpolate(torch.from_numpy(masks).float(), size=size, mode="nearest").numpy()
    result = []
    for mask, region in zip(large, regions, strict=True):
        shares = np.einsum("khw,jhw->kj", mask, region.masks.astype(float))
        result.append(np.trace(shares) / shares.sum() if shares.sum() > 0 else np.nan)
    return np.array(result)


def _identities(scorer: RegionScorer, images: np.ndarray, regions: list[Regions], cases: list[Case]) -> list[dict]:
    """Cosines of every region with the references of its concept and of the others."""
    keys = [(i, k) for i, r in enumerate(regions) for k in range(len(r.masks)) if r.masks[k].any()]
    crops = [crop_on_grey(images[i], regions[i].masks[k]) for i, k in keys]
    features = dict(zip(keys, scorer.dino.images(crops), strict=True)) if keys else {}
    return [
        _identity(scorer, case, regions[i], {k: features.get((i, k)) for k in range(len(case.names))})
        for i, case in enumerate(cases)
    ]


def _identity(scorer: RegionScorer, case: Case, region: Regions, features: dict) -> dict:
    """Scores of one image. A concept without a region has identity 0 and is left out of contrast and leakage."""
    identities, matched, leakage = [], [], []
    for k, name in enumerate(case.names):
        if features[k] is None:
            identities.append(0.0)
            continue
        cosines = {n: float((scorer.object_references[n] @ features[k]).mean()) for n in case.names}
        identities.append(cosines[name])
        matched.append(cosines[name])
        leakage.append(np.mean([v for n, v in cosines.items() if n != name]))
    return {
        "worse": min(identities), "first": identities[0], "second": identities[1],
        "contrast": float(np.mean(np.array(matched) - np.array(leakage))) if matched else 0.0,
        "leakage": float(np.mean(leakage)) if leakage else np.nan,
        "missing": float(1 - np.mean(region.seen)),
    }  # fmt: skip


def with_best_halves(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with ``halves_best`` added: for each image the better order of the halves, chosen by the score."""
    keys = ["group", "order", "prompt", "image"]
    both = rows[rows["config"].isin(("halves", "halves_back"))].sort_values("worse", ascending=False)
    return pd.concat([rows, both.drop_duplicates(keys).assign(config="halves_best")], ignore_index=True)
