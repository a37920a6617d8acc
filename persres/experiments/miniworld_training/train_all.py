"""``persres dev miniworld``: train every model of the mini world, from nothing, resumably.

Each part leaves its finished weights in the work folder and is skipped when they are there; a part
that was interrupted goes on from its checkpoint. Some parts alone can be asked for, so that two can be trained side by side.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from diffusers import AutoencoderKL

from persres.errors import PersresError
from persres.experiments.miniworld_training import attribute_classifier as train_classifier
from persres.experiments.miniworld_training import clip as train_clip
from persres.experiments.miniworld_training import dino as train_dino
from persres.experiments.miniworld_training import folders as build
from persres.experiments.miniworld_training import marks as train_marks
from persres.experiments.miniworld_training import unet as train_unet
from persres.experiments.miniworld_training import vae as train_vae
from persres.experiments.miniworld_training.evaluate import evaluate
from persres.experiments.miniworld_training.loop import training_device
from persres.experiments.miniworld_training.recipe import RECIPE
from persres.experiments.miniworld_training.scenes import load_identities, load_scenes
from persres.experiments.miniworld_training.shards import encoded_shard, rendered_shard, scenes_of, shards_of
from persres.miniworld.identities import NAMELESS
from persres.package_paths import PACKAGE

OUT = PACKAGE / "miniworld" / "weights"
log = logging.getLogger(__name__)


def _scenes(work: Path):
    return load_scenes(RECIPE, "train", RECIPE.scenes, work / "data")


def _data(work: Path) -> None:
    _scenes(work)
    load_scenes(RECIPE, "val", 1000, work / "data")
    load_identities(RECIPE, work / "data")


def _vae(work: Path) -> None:
    shards = [shard for shard in shards_of(RECIPE) if shard[1] < RECIPE.vae_shards]
    images = np.concatenate([np.load(rendered_shard(RECIPE, shard, work)) for shard in shards])
    vae = train_vae.train_vae(RECIPE, images, work)
    vae.half().save_pretrained(work / "sd" / "vae")


def _latents(work: Path) -> None:
    vae = AutoencoderKL.from_pretrained(work / "sd" / "vae").to(training_device())
    for shard in shards_of(RECIPE):
        encoded_shard(RECIPE, shard, vae, work)


def _clip(work: Path) -> None:
    model = train_clip.train_clip(RECIPE, _scenes(work), load_identities(RECIPE, work / "data"), work, work / "clip")
    build.save_text_side(RECIPE, model, work / "clip", work / "sd")


def _dino(work: Path) -> None:
    train_dino.train_dino(RECIPE, load_identities(RECIPE, work / "data"), work, work / "dino")


def _attribute_classifier(work: Path) -> None:
    train_classifier.train_attribute_classifier(RECIPE, _scenes(work), work, work / "judge")


def _marks(work: Path) -> None:
    shards = [(NAMELESS, number) for number in range(RECIPE.marks_shards)]
    images = np.concatenate([np.load(rendered_shard(RECIPE, shard, work)) for shard in shards])
    scenes = [scene for shard in shards for scene in scenes_of(RECIPE, *shard)]
    train_marks.train_marks_classifier(RECIPE, images, scenes, work, work / "judge")


def _unet(work: Path) -> None:
    train_unet.train_unet(RECIPE, work)
    build.save_pipeline_index(work / "sd")


MODELS: dict[str, tuple[Callable[[Path], None], str]] = {  # name -> function, output
    "data": (_data, f"data/identities-{RECIPE.identities}.npz"),
    "vae": (_vae, "sd/vae/config.json"),
    "latents": (_latents, "latents-identities.npy"),
    "clip": (_clip, "sd/text_encoder/config.json"),
    "dino": (_dino, "dino/config.json"),
    "judge": (_attribute_classifier, "judge/labels.json"),
    "marks": (_marks, "judge/marks.safetensors"),
    "unet": (_unet, "sd/model_index.json"),
}

# As measured on two shared CPU cores, other work at the same time, for the weights that ship. On a GPU: not measured.
MEASURED_SECONDS = {
    "data": 140,
    "vae": 2000,
    "latents": 3600,
    "clip": 1720,
    "dino": 394,
    "judge": 599,
    "marks": 900,
    "unet": 8149,
}


def training_plan(models: list[str], work: Path) -> str:
    """What is to be trained, and how long that took where the shipped weights were made."""
    todo = [model for model in models if not (work / MODELS[model][1]).exists()]
    times = ", ".join(f"{model} {MEASURED_SECONDS[model] / 60:.0f}" for model in todo)
    hours = sum(MEASURED_SECONDS[model] for model in todo) / 3600
    return f"to do: {times or 'nothing'} (minutes on two shared CPU cores; {hours:.1f} hours in all)"


def publish(work: Path, out: Path) -> None:
    """Copy the finished folders to where the package ships them, with the words CLIP can read."""
    for name in ("sd", "clip", "dino", "judge"):
        shutil.rmtree(out / name, ignore_errors=True)
        shutil.copytree(work / name, out / name)
    (out / "nouns.txt").write_text("\n".join(RECIPE.kinds) + "\n")


def build_everything(work: Path, out: Path = OUT, models: tuple[str, ...] = (), prompts: int = 240) -> dict | None:
    """Train the parts, or all of them, and publish all when all were asked for; returns what was then measured, over
    ``prompts`` held-out prompts. Raises PersresError for an unknown part."""
    selected = list(models or MODELS)
    unknown = [model for model in selected if model not in MODELS]
    if unknown:
        raise PersresError(f"no model {', '.join(unknown)}; one of {', '.join(MODELS)}")
    work.mkdir(parents=True, exist_ok=True)
    log.info(training_plan(selected, work))
    for model in selected:
        _build_part(model, work)
    if set(selected) != set(MODELS):
        return None
    publish(work, out)
    log.info("make evidence now measures what stands on these weights and fills the tables of the pages")
    return evaluate(out, work, RECIPE, prompts)


def _build_part(model: str, work: Path) -> None:
    """One part, unless it is there; its seconds add up over interrupted runs."""
    function, output = MODELS[model]
    if (work / output).exists():
        log.info("%s: there already", model)
        return
    started, path = time.monotonic(), work / "seconds.json"
    function(work)
    times = json.loads(path.read_text()) if path.exists() else {}
    times[model] = times.get(model, 0) + round(time.monotonic() - started)
    path.write_text(json.dumps(times, indent=1))
    log.info("%s: %d s", model, times[model])
