"""What is the same for every method of a concept, looked at once a process: its reference photos, its prompts, the base
model's pictures.

Kept by what the files hold (their digests) and by who looks (the encoders' settings), so the same bytes at another place are not
read again. All of it is bounded. Features and masks are small: a concept's references take some 80 KB at the paper's size. Pictures are
kept for two packs, and only where there is a judge; without one a pack is read a batch at a time.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from persres.config.schema import Clip, Dino
from persres.datasets.registry import classifier_module
from persres.errors import PersresError
from persres.images import load_photo, unzip_bytes
from persres.metrics.clip_scores import load_clip
from persres.metrics.dino_scores import load_dino
from persres.metrics.object_crops import object_crops
from persres.units.specs import ClassifierRef, FileRef

CONCEPTS, PACKS = 128, 2  # at most so many are kept


@dataclass(frozen=True)
class Source:
    """A file by what it holds: equal wherever it lies."""

    digest: str
    path: Path = field(compare=False)

    @classmethod
    def of(cls, ref: FileRef) -> Source:
        """The file of a spec."""
        return cls(ref.digest, Path(ref.path))


@dataclass(frozen=True)
class EncoderSet:
    """Who looks, and where: equal ones see the same in the same files."""

    clip: Clip
    dino: Dino
    judge: ClassifierRef | None
    device: str


class _Judge:
    """A dataset's judge with its weights."""

    def __init__(self, dataset: str, folder: str) -> None:
        module = classifier_module(dataset)
        self.read = partial(module.judge_images, module.load_judge(Path(folder)))
        self.followed = module.followed


@lru_cache(maxsize=1)
def load_classifier(ref: ClassifierRef) -> _Judge:
    """One judge per process: ``read`` uint8 [n, h, w, 3] -> a verdict, ``followed`` (verdict, prompts) -> [n]."""
    return _Judge(ref.dataset, ref.weights.path)


@dataclass(frozen=True)
class References:
    """A concept's reference photos: features [k, d] on the CPU, unit rows. ``objects`` are DINO's of the things cut out; None where
    no judge can cut them out."""

    clip: torch.Tensor
    dino: torch.Tensor
    objects: torch.Tensor | None


@lru_cache(maxsize=CONCEPTS)
def references(photos: tuple[Source, ...], eyes: EncoderSet) -> References:
    """Each photo decoded once for all who look. Raises PersresError for one that is not a whole image."""
    clip, dino = load_clip(eyes.clip, eyes.device), load_dino(eyes.dino, eyes.device)
    images, objects = [load_photo(photo.path) for photo in photos], None
    if eyes.judge is not None:
        objects = dino.images(object_crops(pixels(images), load_classifier(eyes.judge).read(pixels(images)).masks))
    return References(clip.images(images), dino.images(images), objects)


@lru_cache(maxsize=2 * PACKS)
def prompt_features(texts: tuple[str, ...], clip: Clip, device: str) -> torch.Tensor:
    """CLIP's features [n, d] of a concept's prompts, one a picture; every method that draws as many has the same.

    Not each distinct prompt once: a few rows multiply in another order than many, and the last bits would differ.
    """
    return load_clip(clip, device).texts(list(texts))


def read_archive(archive: Path, names: list[str], batch: int) -> Iterator[list[Image.Image]]:
    """The named pictures of a pack as RGB, ``batch`` at a time: memory does not grow with the pack.

    Raises PersresError where the pack is broken or lacks one.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            for start in range(0, len(names), batch):
                found = [packed.read(f"{name}.png") for name in names[start : start + batch]]
                yield [_decoded(data) for data in found]
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        raise PersresError(
            f"{archive} is not a whole pack of pictures ({error}); delete it and sample again"
        ) from error


def _decoded(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


@lru_cache(maxsize=PACKS)
def image_features(archive: Source) -> dict[str, Image.Image]:
    """All pictures of a pack by name. A method's own pack and the base model's that it is compared with are kept."""
    files = {name: data for name, data in unzip_bytes(archive.path).items() if "/" not in name}  # masks lie in a folder
    return {name.removesuffix(".png"): _decoded(data) for name, data in files.items()}


@lru_cache(maxsize=2 * PACKS)
def verdict(archive: Source, names: tuple[str, ...], judge: ClassifierRef) -> Any:
    """What the judge says of the named pictures of a pack; the base model's serve all that are compared with them."""
    found = image_features(archive)
    return load_classifier(judge).read(pixels([found[name] for name in names]))


def pixels(images: list[Image.Image]) -> np.ndarray:
    """RGB images of one size -> uint8 [n, h, w, 3]."""
    return np.stack([np.asarray(image) for image in images])
