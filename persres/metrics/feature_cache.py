"""Caches, per process, of what all configs of a concept share: reference features, prompt features, the base model's images.

Keys are file digests and encoder settings, so equal bytes at another path are not encoded again. Every cache is bounded.
Features and masks are small: a concept's references take some 80 KB at the paper's size. Images are cached for two archives,
and only where an attribute classifier reads them; without one an archive is read a batch at a time.
"""

from __future__ import annotations

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
from persres.images import ARCHIVE_FIX, archive_entries, archive_image, load_photo, unzip_bytes
from persres.metrics.clip_scores import load_clip
from persres.metrics.dino_scores import load_dino
from persres.metrics.object_crops import object_crops
from persres.units.specs import ClassifierRef, FileRef
from persres.untrusted.archives import open_zip, read_entry

MAX_CONCEPTS, MAX_ARCHIVES = 128, 2


@dataclass(frozen=True)
class Source:
    """A file by its content: equal wherever it lies."""

    digest: str
    path: Path = field(compare=False)

    @classmethod
    def of(cls, ref: FileRef) -> Source:
        """The file of a spec."""
        return cls(ref.digest, Path(ref.path))


@dataclass(frozen=True)
class EncoderSet:
    """Encoders, attribute classifier and device: equal sets compute equal features of equal files."""

    clip: Clip
    dino: Dino
    classifier: ClassifierRef | None
    device: str


class _Classifier:
    """A dataset's attribute classifier with its weights."""

    def __init__(self, ref: ClassifierRef) -> None:
        module = classifier_module(ref.dataset)
        self.classify = partial(module.classify_images, module.load_attribute_classifier(Path(ref.weights.path)))
        self.matches_prompt = module.matches_prompt


@lru_cache(maxsize=1)
def load_classifier(ref: ClassifierRef) -> _Classifier:
    """One classifier per process: ``classify`` uint8 [n, h, w, 3] -> prediction, ``matches_prompt`` (prediction, prompts) -> [n]."""
    return _Classifier(ref)


@dataclass(frozen=True)
class References:
    """Features [k, d] of a concept's reference photos, on the CPU with unit rows. ``objects`` are DINO's of the object crops;
    None without an attribute classifier."""

    clip: torch.Tensor
    dino: torch.Tensor
    objects: torch.Tensor | None


@lru_cache(maxsize=MAX_CONCEPTS)
def references(photos: tuple[Source, ...], encoders: EncoderSet) -> References:
    """Encode the photos, each decoded once. Raises PersresError for one that is not a whole image."""
    clip, dino = load_clip(encoders.clip, encoders.device), load_dino(encoders.dino, encoders.device)
    images, objects = [load_photo(photo.path) for photo in photos], None
    if encoders.classifier is not None:
        masks = load_classifier(encoders.classifier).classify(pixels(images)).masks
        objects = dino.images(object_crops(pixels(images), masks))
    return References(clip.images(images), dino.images(images), objects)


@lru_cache(maxsize=2 * MAX_ARCHIVES)
def prompt_features(texts: tuple[str, ...], clip: Clip, device: str) -> torch.Tensor:
    """CLIP's features [n, d] of a concept's prompts, one per image; configs with equally many images share them.

    Repeated prompts are encoded again: a matrix product of fewer rows sums in another order, and the last bits would differ.
    """
    return load_clip(clip, device).texts(list(texts))


def read_archive(archive: Path, names: list[str], batch: int) -> Iterator[list[Image.Image]]:
    """The named images of an archive as RGB, ``batch`` at a time: memory does not grow with the archive.

    Raises PersresError where the archive is damaged or lacks one.
    """
    try:
        with open_zip(archive, "image archive", ARCHIVE_FIX) as file:
            entries = archive_entries(archive, file)
            for start in range(0, len(names), batch):
                files = [f"{name}.png" for name in names[start : start + batch]]
                yield [archive_image(archive, name, read_entry(file, entries[name])) for name in files]
    except OSError as error:
        raise PersresError(f"{archive} is not a whole image archive ({error}); {ARCHIVE_FIX}") from error


@lru_cache(maxsize=MAX_ARCHIVES)
def archive_images(archive: Source) -> dict[str, Image.Image]:
    """All images of an archive by name. The cache holds a config's archive and the base model's that it is compared with."""
    files = {name: data for name, data in unzip_bytes(archive.path).items() if "/" not in name}  # masks lie in a folder
    return {name.removesuffix(".png"): archive_image(archive.path, name, data) for name, data in files.items()}


@lru_cache(maxsize=2 * MAX_ARCHIVES)
def prediction(archive: Source, names: tuple[str, ...], classifier: ClassifierRef) -> Any:
    """The attribute classifier's prediction of the named images; the base model's serves every config compared with it."""
    images = archive_images(archive)
    return load_classifier(classifier).classify(pixels([images[name] for name in names]))


def pixels(images: list[Image.Image]) -> np.ndarray:
    """RGB images of one size -> uint8 [n, h, w, 3]."""
    return np.stack([np.asarray(image) for image in images])
