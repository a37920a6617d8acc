"""score: one tidy row per picture -> ``data/scores/scores.parquet``."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from persres.datasets.layout import read_concepts, reference_photos
from persres.images import load_photo, unzip_images
from persres.loading import model_identity, pick_device
from persres.metrics.background import background_change
from persres.metrics.clip_scores import alignment, clip_text_score, load_clip
from persres.metrics.cut_out import cut_out, object_alignment
from persres.metrics.dino_scores import DinoEncoder, load_dino
from persres.metrics.summary import JUDGED
from persres.miniworld.judge import Judge, followed, judge_images, load_judge
from persres.params import Clip, Dino
from persres.provenance import code_fingerprint, measured
from persres.stages.context import Context
from persres.stages.packs import items_of, read_index
from persres.units import Unit, digest_file, finish, publishing, run_units, stage_lock

FILE = "scores.parquet"


def score_units(context: Context) -> list[Unit]:
    """One unit per concept and method that was sampled."""
    encoders, settings = context.profile.encoders, context.profile.score
    shared = {
        "clip": encoders.clip.model_dump(), "dino": encoders.dino.model_dump(), "batch": settings.batch_size,
        "models": [model_identity(encoders.clip.model), model_identity(encoders.dino.model)],
        "judge": model_identity(settings.judge) if settings.judge else None, "judge_folder": settings.judge,
        "code": code_fingerprint("score"),
    }  # fmt: skip
    concepts = {concept.name: (concept, folder) for concept, folder in read_concepts(context.data / "concepts")}
    index = read_index(context)
    base = next((name for name, about in index["methods"].items() if about["drawing"]["residual"] is None), None)
    units = []
    for pack in index["packs"]:
        drawn = pack["spec"]
        concept, folder = concepts[drawn["concept"]]
        against = f"{base}/{concept.name}" if base and base != drawn["method"] else None
        spec = shared | {
            "concept": concept.name, "category": concept.category, "method": drawn["method"], "sample_hash": pack["hash"],
            "seed": drawn["drawing"]["seed"], "items": items_of(drawn), "groups": {str(n): g for n, g, _ in drawn["prompts"]},
            "templates": {str(n): t for n, _, t in drawn["prompts"]},
            "pack": _pack(context, pack["name"]), "base_pack": _pack(context, against) if against else None,
            "references": {str(p): digest_file(p) for p in reference_photos(folder)},
        }  # fmt: skip
        units.append(Unit.of("score", pack["name"], spec))
    return units


def _pack(context: Context, name: str) -> dict[str, str]:
    path = context.data / "samples" / f"{name}.zip"
    return {"path": str(path), "digest": digest_file(path)}


@lru_cache(maxsize=1)
def _judge(folder: str):
    return load_judge(Path(folder))


def _judged(spec: dict, images: list, names: list[str], references: list, dino: DinoEncoder) -> dict[str, np.ndarray]:
    """What only a judge can tell: the object's identity without its background, whether the picture shows what the
    prompt asks for, and the change outside the objects against the base model's picture of the same name."""
    if spec["judge_folder"] is None:
        return {column: np.full(len(images), np.nan) for column in JUDGED}
    judge, templates = _judge(spec["judge_folder"]), [spec["templates"][_number(name)] for name in names]
    pictures, originals = np.stack([np.asarray(i) for i in images]), np.stack([np.asarray(i) for i in references])
    verdict, truth = judge_images(judge, pictures), judge_images(judge, originals)
    alone = dino.images(cut_out(pictures, verdict.masks), spec["batch"])
    return {
        "dino_object": object_alignment(alone, dino.images(cut_out(originals, truth.masks)), verdict.masks),
        "followed": followed(verdict, templates),
        "background_change": _background(spec, judge, pictures, verdict.masks, names),
    }


def _background(spec: dict, judge: Judge, pictures: np.ndarray, masks: np.ndarray, names: list[str]) -> np.ndarray:
    change = np.full(len(names), np.nan)
    if spec["base_pack"] is None:
        return change
    base = unzip_images(Path(spec["base_pack"]["path"]))
    shared = [i for i, name in enumerate(names) if f"{name}.png" in base]
    if shared:
        theirs = np.stack([np.asarray(base[f"{names[i]}.png"]) for i in shared])
        change[shared] = background_change(pictures[shared], theirs, masks[shared], judge_images(judge, theirs).masks)
    return change


def score_unit(unit: Unit, work: Path, device: str) -> None:
    """The rows of one pack."""
    spec, folder = unit.settings, unit.folder(work)
    with measured(pick_device(device)) as facts:
        clip, dino = load_clip(Clip(**spec["clip"]), device), load_dino(Dino(**spec["dino"]), device)
        packed = unzip_images(Path(spec["pack"]["path"]))
        images = [packed[f"{item['name']}.png"] for item in spec["items"]]
        references = [load_photo(Path(p)) for p in spec["references"]]
        features = clip.images(images, spec["batch"])
        rows = pd.DataFrame([_labels(spec, item) for item in spec["items"]])
        rows["clip_text"] = _array(clip_text_score(features, clip.texts([i["plain"] for i in spec["items"]])))
        rows["clip_image"] = _array(alignment(features, clip.images(references)))
        rows["dino"] = _array(alignment(dino.images(images, spec["batch"]), dino.images(references)))
        for column, values in _judged(spec, images, [i["name"] for i in spec["items"]], references, dino).items():
            rows[column] = values
        rows["spec_hash"] = spec["sample_hash"]
    folder.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(folder / FILE, index=False)
    finish(unit, work, [folder / FILE], facts)


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().numpy()


def _number(name: str) -> str:
    """The prompt's number in a picture's name."""
    return str(int(name.split("_")[0]))


def _labels(spec: dict, item: dict) -> dict[str, object]:
    number = _number(item["name"])
    return {"concept": spec["concept"], "category": spec["category"], "method": spec["method"], "prompt": spec["templates"][number],
            "prompt_group": spec["groups"][number], "seed": spec["seed"], "image": item["image"]}  # fmt: skip


def score(context: Context) -> None:
    """Score what is not scored yet, then publish all rows as one file."""
    runtime = context.profile.runtime
    with stage_lock(context.work, "score"):
        units = score_units(context)
        run_units(units, context.work, score_unit, runtime.workers, runtime.device)
        rows = pd.concat([pd.read_parquet(unit.folder(context.work) / FILE) for unit in units], ignore_index=True)
        with publishing(context.data / "scores") as out:
            rows.to_parquet(out / FILE, index=False)
