"""The specs of units: everything that a unit's result depends on, typed.

A spec holds settings, digests of the files read and the digest of the code that computes (persres/units/code_digest.py), but nothing
that only affects where or how fast the unit runs. A file's digest is part of the identity of a spec, its path is not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, PrivateAttr, SerializeAsAny, field_serializer

from persres.config.schema import Base, Clip, Dino, SamplingConfig, VariantSettings
from persres.prompts import fill
from persres.units.files import digest_file, digest_folder


class FileRef(BaseModel):
    """A file or a folder to read, with its digest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    digest: str  # SHA-256, hex
    _original_path: str | None = PrivateAttr(None)

    @field_serializer("path")
    def _serialize_path(self, path: str) -> str:
        return self._original_path or path

    def localized(self, path: Path) -> FileRef:
        """The same file in this machine's cache. Manifests and headers keep the original path, so that they do not depend on the machine."""
        local = FileRef(path=str(path), digest=self.digest)
        local._original_path = self._original_path or self.path
        return local

    @classmethod
    def of(cls, path: Path) -> FileRef:
        """A file or folder as it is now."""
        return cls(path=str(path), digest=digest_folder(path) if path.is_dir() else digest_file(path))


class Spec(BaseModel):
    """The base of all specs. Equal specs have equal results."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def identity(self) -> str:
        """Canonical JSON of everything that the result depends on, with digests in place of paths."""
        return json.dumps(_without_paths(self.model_dump(mode="json")), sort_keys=True)


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        skipped = {"path"} if set(value) == {"path", "digest"} else set()
        return {key: _without_paths(inner) for key, inner in value.items() if key not in skipped}
    return [_without_paths(inner) for inner in value] if isinstance(value, list) else value


class NounsSpec(Spec):
    """CLIP text features of a list of nouns."""

    clip: Clip
    model: str
    template: str
    candidates: str
    words: str  # digest of the list
    code: str


class ClassImagesSpec(Spec):
    """Images of one class by the base model. ``model``: the base model's name and, for a folder, its digest."""

    base: Base
    model: str
    prompt: str
    count: int
    steps: int
    cfg_scale: float
    code: str


class TrainSpec(Spec):
    """One concept and the variant to train on it."""

    base: Base
    model: str
    concept: str
    variant: str
    settings: SerializeAsAny[VariantSettings]
    macro_class: str
    photos: tuple[FileRef, ...]
    class_images: FileRef | None
    code: str


class Prompt(BaseModel):
    """A concept's prompt: its number among the concept's, its group and its text with ``{}``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    group: str
    text: str


class ImageSpec(BaseModel):
    """One image to sample. ``phrase`` stands for the concept in ``prompt``: the macro class for the base model, V* and the
    macro class for a residual. ``plain`` is the prompt without V*: it seeds the noise, and the CLIP text score reads it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    prompt: str
    phrase: str
    plain: str
    image: int

    @property
    def number(self) -> int:
        """The prompt's number."""
        return int(self.name.split("_")[0])


class SampleSpec(Spec):
    """The images of one concept by one config. ``method`` is the training method that wrote ``learned``; both are None for the base
    model. ``photos`` are only given to methods that sample next to one. ``renderer``: the dataset that draws the ground truth."""

    base: Base
    model: str
    concept: str
    config: str
    sampling: SamplingConfig
    prompts: tuple[Prompt, ...]
    macro_class: str
    phrase: str
    method: str | None
    learned: FileRef | None
    photos: tuple[FileRef, ...]
    renderer: str | None = None
    code: str

    @property
    def image_specs(self) -> list[ImageSpec]:
        """The images to sample, in order."""
        return [
            ImageSpec(
                name=f"{prompt.number:02d}_{image:03d}",
                prompt=fill(prompt.text, self.phrase),
                phrase=self.phrase,
                plain=fill(prompt.text, self.macro_class),
                image=image,
            )
            for prompt in self.prompts
            for image in range(self.sampling.images_per_prompt)
        ]


class ClassifierRef(BaseModel):
    """The attribute classifier of a dataset, and its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    weights: FileRef


class ScoreSpec(Spec):
    """The scores of one image archive. ``base_archive`` holds the base model's images of the same names, if there are any."""

    clip: Clip
    dino: Dino
    models: tuple[str, str]
    classifier: ClassifierRef | None
    concept: str
    category: str
    config: str
    seed: int
    sample_hash: str
    image_specs: tuple[ImageSpec, ...]
    prompts: tuple[Prompt, ...]
    archive: FileRef
    base_archive: FileRef | None
    references: tuple[FileRef, ...]
    code: str
