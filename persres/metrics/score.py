"""A unit of scoring: the rows of one pack of pictures."""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from persres.datasets.registry import judge_module
from persres.images import load_photo, unzip_images
from persres.metrics.background import background_change
from persres.metrics.clip_scores import alignment, clip_text_score, load_clip
from persres.metrics.cut_out import cut_out, object_alignment
from persres.metrics.dino_scores import DinoEncoder, load_dino
from persres.metrics.summary import JUDGED
from persres.models.loading import pick_device
from persres.runs.provenance import measured
from persres.runs.specs import Item, JudgeRef, ScoreSpec
from persres.runs.units import Unit, finish

FILE = "scores.parquet"


class _Judge:
    """A dataset's judge with its weights."""

    def __init__(self, dataset: str, folder: str) -> None:
        module = judge_module(dataset)
        self.read = partial(module.judge_images, module.load_judge(Path(folder)))
        self.followed = module.followed


@lru_cache(maxsize=1)
def _load_judge(ref: JudgeRef) -> _Judge:
    return _Judge(ref.dataset, ref.weights.path)


def _judged(spec: ScoreSpec, images: list, references: list, dino: DinoEncoder, batch: int) -> dict[str, np.ndarray]:
    """What only a judge can tell: the object's identity without its background, whether the picture shows what the
    prompt asks for, and the change outside the objects against the base model's picture of the same name."""
    if spec.judge is None:
        return {column: np.full(len(images), np.nan) for column in JUDGED}
    judge, texts = _load_judge(spec.judge), {prompt.number: prompt.text for prompt in spec.prompts}
    pictures, originals = np.stack([np.asarray(i) for i in images]), np.stack([np.asarray(i) for i in references])
    verdict, truth = judge.read(pictures), judge.read(originals)
    alone = dino.images(cut_out(pictures, verdict.masks), batch)
    return {
        "dino_object": object_alignment(alone, dino.images(cut_out(originals, truth.masks)), verdict.masks),
        "followed": judge.followed(verdict, [texts[item.number] for item in spec.items]),
        "background_change": _background(spec, judge, pictures, verdict.masks),
    }


def _background(spec: ScoreSpec, judge: _Judge, pictures: np.ndarray, masks: np.ndarray) -> np.ndarray:
    change = np.full(len(spec.items), np.nan)
    if spec.base_pack is None:
        return change
    base = unzip_images(Path(spec.base_pack.path))
    shared = [i for i, item in enumerate(spec.items) if f"{item.name}.png" in base]
    if shared:
        theirs = np.stack([np.asarray(base[f"{spec.items[i].name}.png"]) for i in shared])
        change[shared] = background_change(pictures[shared], theirs, masks[shared], judge.read(theirs).masks)
    return change


def score_unit(unit: Unit[ScoreSpec], work: Path, device: str, batch: int = 64) -> None:
    """The rows of one pack, one row a picture."""
    spec, folder = unit.spec, unit.folder(work)
    with measured(pick_device(device)) as facts:
        clip, dino = load_clip(spec.clip, device), load_dino(spec.dino, device)
        packed = unzip_images(Path(spec.pack.path))
        images = [packed[f"{item.name}.png"] for item in spec.items]
        references = [load_photo(Path(photo.path)) for photo in spec.references]
        features = clip.images(images, batch)
        rows = pd.DataFrame([_labels(spec, item) for item in spec.items])
        rows["clip_text"] = _array(clip_text_score(features, clip.texts([item.plain for item in spec.items])))
        rows["clip_image"] = _array(alignment(features, clip.images(references)))
        rows["dino"] = _array(alignment(dino.images(images, batch), dino.images(references)))
        for column, values in _judged(spec, images, references, dino, batch).items():
            rows[column] = values
        rows["spec_hash"] = spec.sample_hash
    folder.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(folder / FILE, index=False)
    finish(unit, work, [folder / FILE], facts)


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().numpy()


def _labels(spec: ScoreSpec, item: Item) -> dict[str, object]:
    prompt = next(prompt for prompt in spec.prompts if prompt.number == item.number)
    return {
        "concept": spec.concept,
        "category": spec.category,
        "method": spec.method,
        "prompt": prompt.text,
        "prompt_group": prompt.group,
        "seed": spec.seed,
        "image": item.image,
    }
