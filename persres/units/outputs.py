"""The files that the stages publish: their paths and formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from persres.config import legacy
from persres.config.schema import SamplingConfig
from persres.errors import PersresError
from persres.units.context import Context
from persres.units.files import write_atomic
from persres.units.specs import SampleSpec
from persres.untrusted.documents import read_json
from persres.untrusted.fields import FileName, Identifier, UnitHash

CLASSES, INDEX, SCORES = "macro_class.json", "index.json", "scores.parquet"


class ConfigFacts(BaseModel):
    """What the tables report of a config."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parameters: int
    sampling: SamplingConfig


class ImageArchive(BaseModel):
    """The images of one concept by one config."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: FileName  # of a file below the stage's folder, without .zip
    hash: UnitHash
    spec: SampleSpec


class Index(BaseModel):
    """The sampled image archives, in order, and the configs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    configs: dict[str, ConfigFacts]
    archives: list[ImageArchive]


class MacroClasses(BaseModel):
    """``macro_class.json``: what each source says of each concept."""

    concepts: dict[Identifier, dict[str, Any]]


def read_index(context: Context) -> Index:
    """Read ``index.json``. Raises PersresError if the stage has not run, or an older version wrote the file."""
    path = context.data / "samples" / INDEX
    if not path.exists():
        raise PersresError(f"no {path}; run the sample stage first")
    return read_json(path, Index, "this version did not write it; run the sample stage again")


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
    concepts = read_json(path, MacroClasses, "run the macro_class stage again").concepts
    classes = {name: legacy.translate(entry, legacy.CLASSES).get(key) for name, entry in concepts.items()}
    wrong = [name for name, noun in classes.items() if noun is not None and not isinstance(noun, str)]
    if wrong:
        raise PersresError(f"{path}: {key} of {wrong[0]} is no text; run the macro_class stage again")
    if None in classes.values():
        raise PersresError(f"class_source: {source} needs nouns that were not computed; set macro_class.{key}: true")
    return classes
