"""``make miniworld``: train every model of the mini world, from nothing, resumably.

Each part leaves its finished weights in the work folder and is skipped when they are there; a part
that was interrupted goes on from its checkpoint. ``--parts`` runs some of them only, so that two can be
trained side by side.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from persres.miniworld import judge
from persres.miniworld.build import clip as train_clip
from persres.miniworld.build import dino as train_dino
from persres.miniworld.build import folders as build
from persres.miniworld.build import unet as train_unet
from persres.miniworld.build import vae as train_vae
from persres.miniworld.build.evaluate import evaluate
from persres.miniworld.recipe import RECIPE
from persres.miniworld.scenes import load_identities, load_scenes

OUT = Path(__file__).parent / "weights"


def _scenes(work: Path):
    return load_scenes(RECIPE, "train", RECIPE.scenes, work / "data")


def _data(work: Path) -> None:
    _scenes(work)
    load_scenes(RECIPE, "val", 1000, work / "data")
    load_identities(RECIPE, work / "data")


def _vae(work: Path) -> None:
    vae = train_vae.train_vae(RECIPE, _scenes(work).images, work)
    vae.half().save_pretrained(work / "sd" / "vae")


def _latents(work: Path) -> None:
    vae = AutoencoderKL.from_pretrained(work / "sd" / "vae")
    train_unet.encode_latents(vae, _scenes(work).images, work / "latents.npy")
    nameless = load_identities(RECIPE, work / "data")
    train_unet.encode_latents(vae, nameless.reshape(-1, *nameless.shape[2:]), work / "latents-identities.npy")


def _clip(work: Path) -> None:
    model = train_clip.train_clip(RECIPE, _scenes(work), load_identities(RECIPE, work / "data"), work, work / "clip")
    build.save_text_side(RECIPE, model, work / "clip", work / "sd")


def _dino(work: Path) -> None:
    train_dino.train_dino(RECIPE, load_identities(RECIPE, work / "data"), work, work / "dino")


def _judge(work: Path) -> None:
    judge.train_judge(RECIPE, _scenes(work), work, work / "judge")


def _unet(work: Path) -> None:
    train_unet.train_unet(RECIPE, work)
    build.save_pipeline_index(work / "sd")


PARTS: dict[str, tuple[Callable[[Path], None], str]] = {  # name -> function, what it leaves
    "data": (_data, f"data/identities-{RECIPE.identities}.npz"),
    "vae": (_vae, "sd/vae/config.json"),
    "latents": (_latents, "latents-identities.npy"),
    "clip": (_clip, "sd/text_encoder/config.json"),
    "dino": (_dino, "dino/config.json"),
    "judge": (_judge, "judge/labels.json"),
    "unet": (_unet, "sd/model_index.json"),
}

# As measured on two shared CPU cores, other work beside them, for the weights that ship. On a GPU: not measured.
MEASURED_SECONDS = {"data": 140, "vae": 2000, "latents": 433, "clip": 1720, "dino": 394, "judge": 599, "unet": 8149}


def plan(parts: list[str], work: Path) -> str:
    """What is to be trained, and how long that took where the shipped weights were made."""
    todo = [part for part in parts if not (work / PARTS[part][1]).exists()]
    times = ", ".join(f"{part} {MEASURED_SECONDS[part] / 60:.0f}" for part in todo)
    hours = sum(MEASURED_SECONDS[part] for part in todo) / 3600
    return f"to do: {times or 'nothing'} (minutes on two shared CPU cores; {hours:.1f} hours in all)"


def publish(work: Path, out: Path) -> None:
    """Copy the finished folders to where the package ships them, with the words CLIP can read."""
    for name in ("sd", "clip", "dino", "judge"):
        shutil.rmtree(out / name, ignore_errors=True)
        shutil.copytree(work / name, out / name)
    (out / "nouns.txt").write_text("\n".join(RECIPE.kinds) + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m persres.miniworld", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(".work/miniworld"))
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--prompts", type=int, default=240, help="held-out prompts to measure the base model on")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    print(plan(arguments.parts, arguments.work), flush=True)
    times_path = arguments.work / "seconds.json"
    for part in arguments.parts:
        function, leaves = PARTS[part]
        if (arguments.work / leaves).exists():
            print(f"{part}: there already")
            continue
        started = time.monotonic()
        function(arguments.work)
        times = json.loads(times_path.read_text()) if times_path.exists() else {}
        times[part] = times.get(part, 0) + round(time.monotonic() - started)
        times_path.write_text(json.dumps(times, indent=1))
        print(f"{part}: {times[part]} s", flush=True)
    if set(arguments.parts) == set(PARTS):
        publish(arguments.work, arguments.out)
        print(json.dumps(evaluate(arguments.out, arguments.work, RECIPE, arguments.prompts), indent=1))
        print("make evidence now measures what stands on these weights and fills the tables of README and model card")


if __name__ == "__main__":
    main()
