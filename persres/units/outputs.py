"""The files that the stages publish: their paths and formats."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from persres.config import legacy
from persres.config.schema import SamplingConfig
from persres.errors import PersresError
from persres.units.context import Context
from persres.units.files import write_atomic
from persres.units.specs import SampleSpec

CLASSES, INDEX, SCORES = "macro_class.json", "index.json", "scores.parquet"


class ConfigFacts(BaseModel):
    """What the tables report of a config."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parameters: int
    sampling: SamplingConfig


class ImageArchive(BaseModel):
    """The images of one concept by one config."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    hash: str
    spec: SampleSpec


class Index(BaseModel):
    """The sampled image archives, in order, and the configs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    configs: dict[str, ConfigFacts]
    archives: list[ImageArchive]


def read_index(context: Context) -> Index:
    """Read ``index.json``. Raises PersresError if the stage has not run, or an older version wrote the file."""
    path = context.data / "samples" / INDEX
    if not path.exists():
        raise PersresError(f"no {path}; run the sample stage first")
    try:
        return Index.model_validate_json(path.read_text())
    except ValidationError as error:
        raise PersresError(
            f"{path} was not written by this version ({error.error_count()} differences); run the sample stage again"
        ) from error


def write_index(index: Index, folder: Path) -> None:
    """Write ``index.json``."""
    write_atomic(folder / INDEX, index.model_dump_json(indent=1).encode())


def learned_path(data: Path, variant: str, concept: str) -> Path:
    """The path of a learned file of the train stage."""
    return data / "learned" / variant / f"{concept}.safetensors"


def scores_path(data: Path) -> Path:
    """The path of the rows of the score stage."""
    return data / "scores" / SCORES


def read_macro_classes(context: Context, source: str = "selected") -> dict[str, str]:
    """The class by concept: ``selected``, the ``dataset``'s, the nearest ``wordnet`` noun, or the ``zero_shot`` one.

    Raises PersresError for a source that the macro_class stage did not compute.
    """
    path = context.data / "macro_class" / CLASSES
    if not path.exists():
        raise PersresError(f"no {path}; run the macro_class stage first")
    key = {"wordnet": "nearest"}.get(source, source)
    concepts = json.loads(path.read_text())["concepts"]
    classes = {name: legacy.translate(entry, legacy.CLASSES).get(key) for name, entry in concepts.items()}
    if None in classes.values():
        raise PersresError(f"class_source: {source} needs nouns that were not computed; set macro_class.{key}: true")
    return classes
