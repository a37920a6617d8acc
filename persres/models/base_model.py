"""Base models as people have them: a hub's name, a folder, one safetensors file; half-precision variants; without a safety checker.

Pickled weights (``.ckpt``, ``.bin``) are refused, since opening a pickle runs its code. A single file holds weights alone: its
configuration and tokenizer come from the folder of the same name next to it, or from the hub.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from persres.errors import PersresError
from persres.models.loading import unavailable
from persres.models.single_file import SUFFIX, config_of, family_of
from persres.package_paths import located
from persres.untrusted.documents import read_json
from persres.untrusted.pickled import REASON, SUFFIXES, conversion_command
from persres.untrusted.text import as_literal

if TYPE_CHECKING:  # seconds to import
    from diffusers import DiffusionPipeline

SDXL = "StableDiffusionXLPipeline"
PIPELINES = ("StableDiffusionPipeline", SDXL)
INDEX = "model_index.json"
OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder")  # parts that a text-to-image model does without
# <weights>[.<variant>][-<shard>-of-<shards>].safetensors, as diffusers and transformers name weights
_WEIGHTS = re.compile(r"(?:diffusion_pytorch_model|model)(?:\.([\w-]+?))?(?:-\d{5}-of-\d{5})?\.safetensors")


def is_single_file(model: str | Path) -> bool:
    """Returns whether a base model's name is a file and not a folder or a hub's name."""
    name = located(str(model))
    return Path(name).suffix.lower() in {SUFFIX, *SUFFIXES} or Path(name).is_file()


def config_source(model: str | Path) -> str:
    """Returns the folder or hub's name that has a model's configuration and tokenizer: the model's own, or a single file's.

    Raises PersresError for pickled files and files that are no whole Stable Diffusion model.
    """
    return config_of(Path(located(str(model)))) if is_single_file(model) else located(str(model))


def pipeline_name(model: str | Path) -> str:
    """Returns the class name of a model's pipeline. Raises PersresError where it can't be read."""
    from diffusers import DiffusionPipeline

    path = Path(located(str(model)))
    if is_single_file(model):
        return SDXL if family_of(path) == "sdxl" else PIPELINES[0]
    if path.is_dir():
        _index(path)
    try:
        return DiffusionPipeline.load_config(located(str(model)))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise unavailable("the base model", str(model), error) from error


def supported_pipeline(model: str | Path) -> str:
    """Returns :func:`pipeline_name`. Raises PersresError where it is no text-to-image pipeline of Stable Diffusion 1.x, 2.x or XL."""
    name = pipeline_name(model)
    if name not in PIPELINES:
        raise PersresError(
            f"base model {str(model)!r} is a {name}; residuals need a text-to-image model of Stable Diffusion 1.x, 2.x or XL"
            f" ({', '.join(PIPELINES)})"
        )
    return name


def load_pipeline(
    model: str | Path, classes: Mapping[str, type[DiffusionPipeline]] | None = None, **arguments: Any
) -> DiffusionPipeline:
    """Returns a model's pipeline; ``arguments`` are those of diffusers' ``from_pretrained`` or ``from_single_file``.

    ``classes`` replaces diffusers' pipeline classes by name. Raises PersresError where the model can't be loaded.
    """
    import diffusers

    name = supported_pipeline(model)
    kind = getattr(diffusers, name) if classes is None else classes[name]
    try:
        return load_as(kind, model, arguments)
    except (OSError, ValueError, KeyError) as error:
        raise unavailable("the base model", str(model), error) from error


def load_as(kind: type[DiffusionPipeline], model: str | Path, arguments: Mapping[str, Any]) -> DiffusionPipeline:
    """Returns a model as a pipeline of this class, which may be a subclass of diffusers' with class methods of its own.

    Raises PersresError for refused files, and diffusers' errors.
    """
    from diffusers import DiffusionPipeline
    from diffusers.loaders.single_file import FromSingleFileMixin

    name, completed = located(str(model)), loading_arguments(model, arguments)
    if is_single_file(model):
        return FromSingleFileMixin.from_single_file.__func__(kind, name, **completed)
    load = DiffusionPipeline.from_pretrained.__func__
    try:
        return load(kind, name, **completed)
    except (OSError, ValueError) as error:
        variant = None if Path(name).is_dir() or completed.get("variant") else _offered_variant(name, error)
        if variant is None:
            raise
        return load(kind, name, **completed | {"variant": variant})


def _offered_variant(model: str, error: Exception) -> str | None:
    """The variant that a hub's repository has instead of plain weights, by diffusers' error, which lists its files; None for other errors.

    Raises PersresError where it has only pickles.
    """
    text = str(error)
    if not any(words in text for words in ("no file named", "Could not find the necessary `safetensors`")):
        return None
    names = [name.rpartition("/")[2] for name in re.findall(r"[\w./-]+\.safetensors", text)]
    if ".bin" in text and not any(map(_WEIGHTS.fullmatch, names)):
        raise PersresError(
            f"{model} has its weights as {REASON} {conversion_command(Path(model), pipeline=True)}"
        ) from error
    variants = {match[1] for match in map(_WEIGHTS.fullmatch, names) if match} - {None}
    return min(variants, key=_preference, default="fp16")


def _preference(variant: str) -> tuple[bool, str]:
    return variant != "fp16", variant


def loading_code(model: str, dtype: str) -> tuple[str, str]:
    """Returns Python code that loads a model in plain diffusers, and the class that it imports; ``dtype`` is an expression."""
    path, arguments = Path(located(model)), loading_arguments(model, {"use_safetensors": True})
    name = str(path.resolve()) if path.exists() else model
    left_out = {"dtype": None, "use_safetensors": None, "variant": arguments.get("variant") or None}
    given = {key: value for key, value in arguments.items() if key not in left_out or left_out[key]}
    values = {key: as_literal(value) if isinstance(value, str) else value for key, value in given.items()}
    words = [as_literal(name), f"dtype={dtype}", *(f"{key}={value}" for key, value in values.items())]
    kind, method = "DiffusionPipeline", "from_pretrained"
    if is_single_file(model):
        kind, method = supported_pipeline(model), "from_single_file"
    return f"{kind}.{method}({', '.join(words)})", kind


def loading_arguments(model: str | Path, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments with what the model's files ask for: dtype, variant, missing optional parts, a single file's config.

    What the caller gives stays. Raises PersresError for pickled weights, unless ``use_safetensors`` is False, and for missing parts.
    """
    completed, path = dict(arguments), Path(located(str(model)))
    if completed.get("dtype") is None and completed.get("torch_dtype") is None:
        completed["dtype"] = torch.float32  # else each part has the precision of its file, and they do not fit
    if is_single_file(model):
        if completed.get("config") is None and completed.get("original_config") is None:
            completed["config"] = config_of(path)
        return completed
    if completed.get("use_safetensors") is None:
        completed["use_safetensors"] = True
    return _folder_arguments(path, completed) if path.is_dir() else completed


def _folder_arguments(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    index = _index(folder)
    parts = [name for name, value in index.items() if isinstance(value, list) and value[-1:] != [None]]
    absent = {name for name in parts if not (folder / name).is_dir()} - set(arguments)
    required = sorted(absent - set(OPTIONAL))
    if required:
        raise PersresError(f"{folder} has no folder {required[0]}, which its {INDEX} names; fetch the model again")
    arguments |= dict.fromkeys(absent)
    if "safety_checker" in absent and "requires_safety_checker" in index:
        arguments.setdefault("requires_safety_checker", False)
    weights = {name: _weights(folder / name) for name in parts if arguments.get(name, name) == name}
    if arguments["use_safetensors"]:
        _refuse_pickled(folder, weights)
    if arguments.get("variant") is None:
        arguments["variant"] = _variant(weights)
    return arguments


def _index(folder: Path) -> dict[str, Any]:
    if (folder / INDEX).is_file():
        return read_json(folder / INDEX, dict[str, Any], "fetch the model again")
    files = sorted(path.name for path in folder.glob(f"*{SUFFIX}"))
    fix = (
        f"give the file, {folder / files[0]}"
        if files
        else "give a folder that diffusers saved, or one safetensors file"
    )
    raise PersresError(f"{folder} has no {INDEX}, so it is no diffusers model; {fix}")


def _weights(folder: Path) -> list[str]:
    """The names of a part's files with weights."""
    return sorted(path.name for path in folder.glob("*") if path.suffix in {SUFFIX, *SUFFIXES})


def _refuse_pickled(folder: Path, weights: dict[str, list[str]]) -> None:
    for part, names in weights.items():
        if names and not any(name.endswith(SUFFIX) for name in names):
            raise PersresError(f"{folder} has its {part} as {names[0]}, {REASON} {conversion_command(folder)}")


def _variant(weights: dict[str, list[str]]) -> str | None:
    """The variant to load, where some part has no other weights: fp16 before others."""
    needed = []
    for names in weights.values():
        variants = {match[1] for match in map(_WEIGHTS.fullmatch, names) if match}
        if variants and None not in variants:
            needed.append(variants)
    common = set.intersection(*needed) if needed else set()
    return min(common, key=_preference, default=None)
