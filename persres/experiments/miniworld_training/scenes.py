"""Random scenes and identities of a recipe, rendered once and cached on disk."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from persres.experiments.miniworld_training.recipe import Recipe
from persres.miniworld.identities import NAMELESS, random_identity
from persres.miniworld.render import Appearance, Scene, render
from persres.miniworld.vocabulary import BACKGROUNDS, COLOURS
from persres.seeding import seed_from

BALANCED = "balanced"  # a split of the shards, as NAMELESS, whose subjects no caption can describe
_COLOURS = tuple(COLOURS)


def _choice(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[rng.integers(len(options))]


def random_appearance(recipe: Recipe, rng: np.random.Generator) -> Appearance:
    """An appearance that a caption can describe in full."""
    return Appearance(_choice(rng, recipe.kinds), _choice(rng, _COLOURS), _choice(rng, recipe.patterns))


def random_scene(recipe: Recipe, rng: np.random.Generator) -> Scene:
    """A scene that a caption can describe in full, with the encoders' shares of styles and second objects."""
    style = recipe.styles[rng.choice(len(recipe.styles), p=recipe.style_weights)]
    second = random_appearance(recipe, rng) if rng.random() < recipe.second else None
    return Scene(random_appearance(recipe, rng), _choice(rng, tuple(BACKGROUNDS)), style, second)


_any_identity = partial(random_identity, most_parts=4, dark=True)  # every look that a concept can have


def _shard_scene(recipe: Recipe, rng: np.random.Generator, nameless: bool) -> Scene:
    """A scene of a shard. Next to a nameless subject, the second object is nameless in a third of the cases."""
    style = recipe.styles[rng.choice(len(recipe.styles), p=recipe.shard_style_weights)]
    subject = _any_identity(rng) if nameless else random_appearance(recipe, rng)
    second = None
    if rng.random() < recipe.shard_second:
        second = _any_identity(rng) if nameless and rng.random() < 1 / 3 else random_appearance(recipe, rng)
    return Scene(subject, _choice(rng, tuple(BACKGROUNDS)), style, second)


def scene_at(recipe: Recipe, split: str, index: int) -> tuple[Scene, np.random.Generator]:
    """Scene ``index`` of a split, and the generator that then draws its pose."""
    rng = np.random.default_rng(seed_from("scene", split, index, recipe.seed))
    if split in (BALANCED, NAMELESS):
        return _shard_scene(recipe, rng, split == NAMELESS), rng
    return random_scene(recipe, rng), rng


@dataclass(frozen=True)
class SceneSet:
    """``images`` uint8 [n, 64, 64, 3]; ``masks`` bool [n, 2, 64, 64] (subject, second)."""

    scenes: list[Scene]
    images: np.ndarray
    masks: np.ndarray


def _render_scene(recipe: Recipe, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
    scene, rng = scene_at(recipe, split, index)
    rendered = render(scene, rng)
    masks = np.zeros((2, *rendered.masks.shape[1:]), dtype=bool)
    masks[: len(rendered.masks)] = rendered.masks
    return np.asarray(rendered.image), masks


def identity_scenes(recipe: Recipe, index: int) -> tuple[list[Scene], np.random.Generator]:
    """One identity on several backgrounds, and the generator that then draws its poses."""
    rng = np.random.default_rng(seed_from("identity", index, recipe.seed))
    identity = random_identity(rng)
    grounds = rng.permutation(list(BACKGROUNDS))[: recipe.views]
    return [Scene(identity, str(ground)) for ground in grounds], rng


def _render_identity(recipe: Recipe, index: int) -> np.ndarray:
    """All views of one identity, each on another background, uint8 [views, 64, 64, 3]."""
    scenes, rng = identity_scenes(recipe, index)
    return np.stack([np.asarray(render(scene, rng).image) for scene in scenes])


def _cached(path: Path, make) -> dict[str, np.ndarray]:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial_path = path.with_suffix(".partial.npz")
        np.savez(partial_path, **make())
        partial_path.replace(path)
    with np.load(path, allow_pickle=False) as data:
        return {key: data[key] for key in data.files}


def load_scenes(recipe: Recipe, split: str, count: int, folder: Path, workers: int = 2) -> SceneSet:
    """``count`` scenes of a split, rendered in parallel once (about 12 ms each) and cached."""

    def make() -> dict[str, np.ndarray]:
        with ProcessPoolExecutor(workers) as pool:
            images, masks = zip(
                *pool.map(partial(_render_scene, recipe, split), range(count), chunksize=64), strict=True
            )
        return {"images": np.stack(images), "masks": np.stack(masks)}

    data = _cached(folder / f"scenes-{split}-{count}.npz", make)
    return SceneSet([scene_at(recipe, split, i)[0] for i in range(count)], data["images"], data["masks"])


def load_identities(recipe: Recipe, folder: Path, workers: int = 2) -> np.ndarray:
    """Views of the identities, uint8 [identities, views, 64, 64, 3]."""

    def make() -> dict[str, np.ndarray]:
        with ProcessPoolExecutor(workers) as pool:
            views = pool.map(partial(_render_identity, recipe), range(recipe.identities), chunksize=32)
            return {"images": np.stack(list(views))}

    return _cached(folder / f"identities-{recipe.identities}.npz", make)["images"]
