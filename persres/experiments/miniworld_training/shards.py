"""Shards of rendered scenes, and of their latents: more than fit into one file, made as they are needed."""

from __future__ import annotations

import logging
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from persres.experiments.miniworld_training.loop import images_to_tensor, training_device
from persres.experiments.miniworld_training.recipe import Recipe
from persres.experiments.miniworld_training.scenes import BALANCED, scene_at
from persres.miniworld.identities import NAMELESS
from persres.miniworld.render import Scene, render
from persres.units.files import written_whole

log = logging.getLogger(__name__)


def shards_of(recipe: Recipe) -> list[tuple[str, int]]:
    """(split, number) of every shard, the kinds in turn, so that the first few hold both."""
    counts = {BALANCED: recipe.balanced_shards, NAMELESS: recipe.nameless_shards}
    return [(split, number) for number in range(max(counts.values())) for split in counts if number < counts[split]]


def scenes_of(recipe: Recipe, split: str, number: int) -> list[Scene]:
    """The scenes of a shard."""
    return [scene_at(recipe, split, index)[0] for index in _indices(recipe, number)]


def _indices(recipe: Recipe, number: int) -> range:
    return range(number * recipe.shard, (number + 1) * recipe.shard)


def _render(recipe: Recipe, split: str, index: int) -> np.ndarray:
    return np.asarray(render(*scene_at(recipe, split, index)).image)


def save_array(path: Path, array: np.ndarray) -> None:
    """Write a ``.npy`` file whole or not at all."""
    with written_whole(path) as partial_path, partial_path.open("wb") as file:
        np.save(file, array)


def rendered_shard(recipe: Recipe, shard: tuple[str, int], folder: Path, workers: int = 2) -> Path:
    """File of a shard's images, uint8 [n, 64, 64, 3]; rendered in parallel once (about 13 ms an image)."""
    split, number = shard
    path = folder / "images" / f"{split}-{number:03d}.npy"
    if not path.exists():
        with ProcessPoolExecutor(workers) as pool:
            images = pool.map(partial(_render, recipe, split), _indices(recipe, number), chunksize=64)
            save_array(path, np.stack(list(images)))
        log.info("rendered %s", path.name)
    return path


def latents_path(folder: Path, shard: tuple[str, int]) -> Path:
    """Where :func:`encoded_shard` keeps a shard's latents."""
    split, number = shard
    return folder / "latents" / f"{split}-{number:03d}.npy"


@torch.no_grad()
def encoded_shard(recipe: Recipe, shard: tuple[str, int], vae: AutoencoderKL, folder: Path) -> Path:
    """File of a shard's latents (posterior means), fp16 [n, channels, 16, 16]; encoded once."""
    path = latents_path(folder, shard)
    if not path.exists():
        images, device = np.load(rendered_shard(recipe, shard, folder), mmap_mode="r"), training_device()
        chunks = np.array_split(images, max(1, len(images) // 250))
        latents = [vae.encode(images_to_tensor(chunk).to(device)).latent_dist.mean.half().cpu() for chunk in chunks]
        save_array(path, torch.cat(latents).numpy())
        log.info("encoded %s", path.name)
    return path
