"""Pictures of several concepts as rows: whose look each region has, what is missing, what of the rest changed; and the claims."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from persres.datasets.layout import reference_photos
from persres.experiments.extensions.multi_concept.cases import Case
from persres.experiments.extensions.multi_concept.sampling import SampledImages
from persres.experiments.extensions.regions import Regions, on_grey, read_regions
from persres.experiments.extensions.verdicts import at_most, claim, verdict
from persres.images import load_photo, square
from persres.metrics.background import background_difference
from persres.metrics.clip_scores import ClipEncoder, alignment, clip_text_score
from persres.metrics.dino_scores import DinoEncoder
from persres.miniworld.attribute_classifier import AttributeClassifier, classify_images, load_attribute_classifier
from persres.package_paths import located
from persres.units.context import Context

COLUMNS = {
    "worse": "the worse identity of the two",
    "first": "identity, first",
    "second": "identity, second",
    "contrast": "own minus other",
    "leakage": "the other's look",
    "missing": "missing objects",
    "background_change": "background change",
    "mask_right": "mask on its own object",
    "clip_text": "CLIP text",
    "dino": "DINO, whole picture",
}


class RegionScorer:
    """References and encoders of a profile; the judge where its dataset has one, else LAG's own masks say where a concept is."""

    def __init__(self, context: Context, device: str, clip: ClipEncoder, dino: DinoEncoder, names: list[str]) -> None:
        self.clip, self.dino, self.resolution = clip, dino, context.profile.base.resolution
        judge = context.profile.score.attribute_classifier
        self.judge: AttributeClassifier | None = (
            None if judge is None else load_attribute_classifier(Path(located(judge)))
        )
        self.whole: dict[str, torch.Tensor] = {}
        self.alone: dict[str, torch.Tensor] = {}
        self._read: dict[int, tuple[np.ndarray, list[Regions]]] = {}  # the base model's are asked for again and again
        for name in names:
            photos = [
                square(load_photo(p), self.resolution) for p in reference_photos(context.data / "concepts" / name)
            ]
            self.whole[name] = dino.images(photos)
            self.alone[name] = self.whole[name] if self.judge is None else dino.images(self._cut(photos))

    def _cut(self, photos: list[Image.Image]) -> list[Image.Image]:
        pictures = np.stack([np.asarray(p) for p in photos])
        masks = classify_images(self.judge, pictures).masks
        return [on_grey(picture, mask) for picture, mask in zip(pictures, masks, strict=True)]

    def regions(self, drawn: SampledImages, cases: list[Case], masks: np.ndarray) -> list[Regions]:
        """Where each concept is: by the judge, or where it has none by ``masks`` [n, K, s, s] (LAG's of the same noise, above one half)."""
        if self.judge is not None:
            key = id(drawn.images)
            if key not in self._read:
                found = read_regions(self.judge, drawn.images, [case.classes for case in cases])
                self._read[key] = (drawn.images, found)  # held, so that no other array gets its id
            return self._read[key][1]
        wide = torch.nn.functional.interpolate(torch.from_numpy(masks).float(), size=drawn.images.shape[1:3]) > 0.5
        return [Regions(m, np.full(len(m), np.nan), m.any(0)) for m in wide.numpy()]


def score_images(
    reader: RegionScorer, method: str, drawn: SampledImages, cases: list[Case], base: SampledImages, masks: np.ndarray
) -> pd.DataFrame:
    """One row a picture; ``base`` are the base model's pictures of the same noise."""
    regions = reader.regions(drawn, cases, masks)
    theirs = regions if base is drawn else reader.regions(base, cases, masks)
    objects, base_objects = (np.stack([r.objects for r in found]) for found in (regions, theirs))
    features = reader.clip.images([Image.fromarray(i) for i in drawn.images])
    texts = {plain: i for i, plain in enumerate(dict.fromkeys(case.plain for case in cases))}
    told = reader.clip.texts(list(texts))[[texts[case.plain] for case in cases]]
    whole = reader.dino.images([Image.fromarray(i) for i in drawn.images])
    rows = pd.DataFrame(_identities(reader, drawn.images, regions, cases))
    rows["clip_text"] = clip_text_score(features, told).double().numpy()
    refs = [torch.cat([reader.whole[name] for name in case.names]) for case in cases]
    rows["dino"] = [float(alignment(f[None], r)[0]) for f, r in zip(whole, refs, strict=True)]
    rows["mask_right"] = mask_accuracy(drawn.masks, regions)
    rows["background_change"] = background_difference(drawn.images, base.images, objects, base_objects)
    labels = pd.DataFrame([{"method": method, "group": c.group, "order": c.order, "prompt": c.template, "image": c.image} for c in cases])  # fmt: skip
    return pd.concat([labels, rows], axis=1)


def mask_accuracy(masks: np.ndarray | None, regions: list[Regions]) -> np.ndarray:
    """Of what masks [n, K, s, s] mark of the objects, the share that lies on the mask's own, [n]; one half says nothing. NaN without masks
    or where they meet no object."""
    if masks is None:
        return np.full(len(regions), np.nan)
    size = regions[0].objects.shape
    wide = torch.nn.functional.interpolate(torch.from_numpy(masks).float(), size=size, mode="nearest").numpy()
    found = []
    for mask, region in zip(wide, regions, strict=True):
        shares = np.einsum("khw,jhw->kj", mask, region.masks.astype(float))
        found.append(np.trace(shares) / shares.sum() if shares.sum() > 0 else np.nan)
    return np.array(found)


def _identities(reader: RegionScorer, images: np.ndarray, regions: list[Regions], cases: list[Case]) -> list[dict]:
    """Cosines of every region with its own concept's references and with the others'; a concept without a region has none, which is 0
    for its identity and nothing for leakage."""
    parts = [(i, k) for i, r in enumerate(regions) for k in range(len(r.masks)) if r.masks[k].any()]
    cuts = [on_grey(images[i], regions[i].masks[k]) for i, k in parts]
    features = dict(zip(parts, reader.dino.images(cuts), strict=True)) if parts else {}
    return [_identity(reader, case, regions[i], {k: features.get((i, k)) for k in range(len(case.names))}) for i, case in enumerate(cases)]  # fmt: skip


def _identity(reader: RegionScorer, case: Case, region: Regions, features: dict) -> dict:
    own, other = [], []
    for k, name in enumerate(case.names):
        if features[k] is None:
            own.append(0.0)
            continue
        near = {n: float((reader.alone[n] @ features[k]).mean()) for n in case.names}
        own.append(near[name])
        other.append(np.mean([v for n, v in near.items() if n != name]))
    found = [o for k, o in enumerate(own) if features[k] is not None]
    return {
        "worse": min(own), "first": own[0], "second": own[1],
        "contrast": float(np.mean(np.array(found) - np.array(other))) if found else 0.0,
        "leakage": float(np.mean(other)) if other else np.nan,
        "missing": float(1 - np.mean(region.seen)),
    }  # fmt: skip


def with_best_halves(rows: pd.DataFrame) -> pd.DataFrame:
    """And ``halves_best``: of both orders of the halves the better one for each picture, known only afterwards."""
    keys = ["group", "order", "prompt", "image"]
    both = rows[rows["method"].isin(("halves", "halves_back"))].sort_values("worse", ascending=False)
    return pd.concat([rows, both.drop_duplicates(keys).assign(method="halves_best")], ignore_index=True)


def by_pair(rows: pd.DataFrame, column: str, more: str, less: str) -> np.ndarray:
    """Means over a pair's pictures of ``more`` minus those of ``less``, [pairs]."""
    means = rows.pivot_table(index="group", columns="method", values=column, aggfunc="mean", dropna=False)
    return (means[more] - means[less]).to_numpy()


CLAIMS = (
    ("worse_added", "our masks keep both identities better than adding both LoRAs (the worse of the two)", "worse", "ours", "added", 0.05),
    ("contrast_added", "each object looks more like its own concept than the other's, beside adding", "contrast", "ours", "added", 0.08),
    ("leakage_added", "and less of the other's look is on it", "leakage", "added", "ours", 0.03),
    ("background_added", "and the rest stays nearer to the base model's picture", "background_change", "added", "ours", 0.005),
    ("worse_base", "both identities rise over the base model", "worse", "ours", "base", 0.05),
    ("worse_merged", "both identities better than Custom Diffusion's merge", "worse", "ours", "merged", 0.03),
    ("contrast_merged", "own against other better than Custom Diffusion's merge", "contrast", "ours", "merged", 0.05),
    ("worse_halves", "both identities better than halves in the prompt's order", "worse", "ours", "halves", 0.03),
    ("contrast_halves_best", "own against other better than the better of both orders of halves", "contrast", "ours", "halves_best", 0.03),
    ("contrast_one_mask", "masks of their own separate better than one mask for both", "contrast", "ours", "one_mask", 0.05),
    ("contrast_own_blocks", "blended maps separate better than each block's own at its median", "contrast", "ours", "own_blocks", 0.03),
    ("masks_right", "our masks lie on their own object more than halves do", "mask_right", "ours", "halves", 0.1),
    ("worse_halves_best", "both identities better than the better of both orders of halves", "worse", "ours", "halves_best", 0.0),
)  # fmt: skip
BOUND = 0.05  # further share of missing objects that is let pass
NEGATIVE_CONTROLS = {
    "masks swapped": (
        "swapped",
        ("worse_added", "contrast_added", "leakage_added", "worse_base", "contrast_one_mask", "masks_right"),
    ),
    "the second concept's residual zeroed": ("one_zeroed", ("worse_base", "worse_added")),
}


def examine_claims(rows: pd.DataFrame, ours: str = "ours", names: tuple[str, ...] = ()) -> dict[str, dict]:
    """The claims by name, all or the named ones, with another method in ours' place where one is said."""
    put = partial(by_pair, rows)
    found = {
        name: claim(name, says, column, put(column, *(ours if m == "ours" else m for m in (more, less))), margin)
        for name, says, column, more, less, margin in CLAIMS
        if not names or name in names
    }
    if not names:
        says = f"no more objects are missing than in the base model's pictures (less than {BOUND:.0%} more)"
        found["missing_base"] = at_most("missing_base", says, "missing", put("missing", ours, "base"), BOUND)
    return found


def negative_controls(rows: pd.DataFrame, whole: dict[str, dict]) -> dict[str, dict[str, str]]:
    """What falls with what; ``whole``: the claims unbroken."""
    return {
        what: {name: verdict(whole[name], found) for name, found in examine_claims(rows, stand_in, names).items()}
        for what, (stand_in, names) in NEGATIVE_CONTROLS.items()
    }
