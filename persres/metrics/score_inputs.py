"""What the scores of one unit are computed from: every value is computed on first use, and once."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from persres.metrics import feature_cache
from persres.metrics.clip_scores import load_clip
from persres.metrics.dino_scores import load_dino
from persres.metrics.feature_cache import EncoderSet, References, Source, pixels
from persres.metrics.object_crops import object_crops
from persres.units.specs import ScoreSpec


class BaseImages(NamedTuple):
    """The base model's images of the same names: uint8 [k, h, w, 3], their object masks, and the ``rows`` of the unit's images."""

    rows: list[int]
    images: np.ndarray
    masks: np.ndarray


class ScoreInputs:
    """Images, prompts, references and features of a unit. ``images``, ``prediction``, ``object_features`` and ``base`` need the
    dataset's attribute classifier."""

    def __init__(self, spec: ScoreSpec, device: str, batch: int) -> None:
        self.spec, self.batch = spec, batch
        self.encoders = EncoderSet(spec.clip, spec.dino, spec.classifier, device)
        self.archive = Source.of(spec.archive)
        self.names = tuple(item.name for item in spec.image_specs)

    @cached_property
    def references(self) -> References:
        """The concept's reference photos."""
        return feature_cache.references(tuple(Source.of(photo) for photo in self.spec.references), self.encoders)

    @cached_property
    def features(self) -> tuple[torch.Tensor, torch.Tensor]:
        """CLIP's and DINO's features of the images, both [n, d] with unit rows, from one decode of each image."""
        clip, dino = (
            load_clip(self.encoders.clip, self.encoders.device),
            load_dino(self.encoders.dino, self.encoders.device),
        )
        by_clip, by_dino = [], []
        for images in self._batches():
            by_clip.append(clip.images(images, self.batch))
            by_dino.append(dino.images(images, self.batch))
        return torch.cat(by_clip), torch.cat(by_dino)

    def _batches(self) -> Iterable[list[Image.Image]]:
        """Images, ``batch`` at a time; from the cache where the attribute classifier reads them too."""
        if self.encoders.classifier is None:
            return feature_cache.read_archive(self.archive.path, list(self.names), self.batch)
        images = feature_cache.archive_images(self.archive)
        names = [self.names[k : k + self.batch] for k in range(0, len(self.names), self.batch)]
        return ([images[name] for name in part] for part in names)

    @cached_property
    def text_features(self) -> torch.Tensor:
        """CLIP's features [n, d] of each image's prompt without V*."""
        texts = tuple(item.plain for item in self.spec.image_specs)
        return feature_cache.prompt_features(texts, self.encoders.clip, self.encoders.device)

    @cached_property
    def templates(self) -> list[str]:
        """Each image's prompt with ``{}``."""
        texts = {prompt.number: prompt.text for prompt in self.spec.prompts}
        return [texts[item.number] for item in self.spec.image_specs]

    @cached_property
    def images(self) -> np.ndarray:
        """uint8 [n, h, w, 3]."""
        images = feature_cache.archive_images(self.archive)
        return pixels([images[name] for name in self.names])

    @cached_property
    def prediction(self) -> Any:
        """The attribute classifier's prediction of the images, with object ``masks`` bool [n, h, w]."""
        return feature_cache.prediction(self.archive, self.names, self.encoders.classifier)

    @cached_property
    def object_features(self) -> torch.Tensor:
        """DINO's features [n, d] of the images with everything outside the objects painted grey."""
        dino = load_dino(self.encoders.dino, self.encoders.device)
        return dino.images(object_crops(self.images, self.prediction.masks), self.batch)

    @cached_property
    def base(self) -> BaseImages | None:
        """The base model's images of the same names; None where there are none."""
        if self.spec.base_archive is None:
            return None
        archive = Source.of(self.spec.base_archive)
        images = feature_cache.archive_images(archive)
        rows = [i for i, name in enumerate(self.names) if name in images]
        if not rows:
            return None
        names = tuple(self.names[i] for i in rows)
        masks = feature_cache.prediction(archive, names, self.encoders.classifier).masks
        return BaseImages(rows, pixels([images[name] for name in names]), masks)
