"""How close images are to the renderer's, as distributions: Fréchet distance, precision and recall in the mini DINO's features.

torch-fidelity computes them (Heusel et al. 2017; Kynkäänniemi et al. 2019). Next to the base model's images stand the floors: the same scenes
encoded and decoded, and rendered again in other poses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from persres.experiments.miniworld_training.loop import images_to_tensor
from persres.experiments.miniworld_training.recipe import Recipe
from persres.experiments.miniworld_training.scenes import scene_at
from persres.images import to_images
from persres.metrics.dino_scores import DinoEncoder
from persres.miniworld.render import Scene, render
from persres.models.diffusion import Diffusion

NEIGHBOURS = 3  # of precision and recall, as in their paper
Sampler = Callable[[list[Scene]], np.ndarray]  # scenes -> uint8 [n, 64, 64, 3]


def fidelity_scenes(recipe: Recipe, count: int) -> list[Scene]:
    """``count`` scenes outside the training set, as many of each style."""
    scenes = [scene_at(recipe, "fidelity", index)[0] for index in range(count)]
    return [replace(scene, style=recipe.styles[i % len(recipe.styles)]) for i, scene in enumerate(scenes)]


def rendered(recipe: Recipe, scenes: list[Scene], poses: str) -> np.ndarray:
    """The scenes as the renderer draws them, uint8 [n, 64, 64, 3]; ``poses`` names the random poses."""
    draws = [scene_at(recipe, poses, index)[1] for index in range(len(scenes))]
    return np.stack([np.asarray(render(scene, rng).image) for scene, rng in zip(scenes, draws, strict=True)])


@torch.no_grad()
def reconstructed(diffusion: Diffusion, images: np.ndarray, batch: int = 50) -> np.ndarray:
    """Images encoded and decoded, uint8 [n, 64, 64, 3]."""
    parts = [images_to_tensor(images[start : start + batch]) for start in range(0, len(images), batch)]
    decoded = [image for part in parts for image in to_images(diffusion.decode(diffusion.posterior(part)[0]).cpu())]
    return np.stack([np.asarray(image) for image in decoded])


def distances(features: torch.Tensor, reference: torch.Tensor) -> dict[str, float]:
    """Fréchet distance, precision and recall of features [n, d] against those of rendered images [m, d]."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    statistics = (fid_features_to_statistics(part) for part in (features, reference))
    result = fid_statistics_to_metric(*statistics, verbose=False) | prc_features_to_metric(
        features, reference, prc_neighborhood=NEIGHBOURS, prc_batch_size=10_000, save_cpu_ram=False, verbose=False
    )
    return {
        "frechet": float(result["frechet_inception_distance"]),
        "precision": float(result["precision"]),
        "recall": float(result["recall"]),
    }


def fidelity(diffusion: Diffusion, dino: DinoEncoder, recipe: Recipe, sample: Sampler, count: int) -> dict:
    """By images (``base``, ``autoencoder``, ``rendered again``) and style (``all`` too): :func:`distances` to ``count`` rendered scenes."""
    scenes = fidelity_scenes(recipe, count)
    reference = rendered(recipe, scenes, "fidelity")
    sets = {
        "base": sample(scenes),
        "autoencoder": reconstructed(diffusion, reference),
        "rendered again": rendered(recipe, scenes, "fidelity again"),
    }
    features = {name: _features(dino, images) for name, images in (sets | {"reference": reference}).items()}
    rows = {style: [i for i, scene in enumerate(scenes) if scene.style == style] for style in recipe.styles}
    rows = {"all": list(range(count))} | rows
    return {
        name: {style: distances(features[name][some], features["reference"][some]) for style, some in rows.items()}
        for name in sets
    }


def _features(dino: DinoEncoder, images: np.ndarray) -> torch.Tensor:
    return dino.images([Image.fromarray(image) for image in images]).cpu()
