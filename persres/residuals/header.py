"""The ``persres`` entry in the header of a file that a method saved: typed, validated, and as facts for cards and exports."""

from __future__ import annotations

import hashlib
import logging
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints, ValidationError
from safetensors import safe_open

from persres.config.legacy import translate
from persres.config.schema import Base
from persres.errors import PersresError
from persres.residuals.header_validation import check_structure, entry_of
from persres.untrusted.documents import parse_json
from persres.untrusted.text import printable

log = logging.getLogger(__name__)
UNKNOWN = "unknown: the dataset does not say"
KIND = "persres-residual"  # the start of the format's name, whatever its version


def _plain(text: str) -> str:
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in text):
        raise ValueError("it has control characters")
    return text


Text = Annotated[str, StringConstraints(pattern=r"\S", max_length=5000), AfterValidator(_plain)]


class HeaderSettings(BaseModel):
    """The settings that reading a residual depends on. Ranks are not among them: the tensors' shapes have those."""

    model_config = ConfigDict(frozen=True, extra="allow")

    target: Text  # a key of persres.residuals.targets.TARGET_MODULES
    name_class: bool = True  # whether prompts name the class after V*


class ResidualHeader(BaseModel):
    """The header of a residual's file. ``model`` is the base model's name and, for a folder, its digest; ``settings`` are under today's
    names; ``info`` is the whole entry as written."""

    model_config = ConfigDict(frozen=True)

    model: Text
    concept: Text
    macro_class: Text
    base: Base
    settings: HeaderSettings
    info: dict[str, Any]

    @property
    def phrase(self) -> str:
        """The words for the concept in prompts: V* and its class, or V* alone where it was trained so."""
        return f"{self.base.token} {self.macro_class}" if self.settings.name_class else self.base.token

    @classmethod
    def parse(cls, path: Path, info: Any) -> ResidualHeader:
        """Returns the typed header. Raises PersresError where the entry is not a residual's, naming the first field that is wrong."""
        if not isinstance(info, dict) or not str(info.get("format")).startswith(KIND):
            raise PersresError(
                f"{path} is a safetensors file but not a persres residual; to load another tool's LoRA, give subject= (generate:"
                " --subject and --model), the words of the prompt that name its subject"
            )
        spec = info.get("spec") if isinstance(info.get("spec"), dict) else {}
        try:
            return cls.model_validate({**spec, "settings": translate(spec.get("settings"), "train"), "info": info})
        except ValidationError as error:
            field = printable(".".join(map(str, error.errors()[0]["loc"])))
            raise PersresError(f"{path}: its header has no usable spec.{field}; fetch or train it again") from error


def read_info(path: Path, metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """Returns the ``persres`` entry of a file's metadata, None where there is none. Raises PersresError where it is not a JSON object."""
    entry = entry_of(path, metadata, "persres")
    if entry is None:
        return None
    return parse_json(entry, dict[str, Any], f"{path}: its 'persres' entry", "fetch or train it again")


def read_header(path: Path | str) -> dict[str, Any]:
    """Returns the ``persres`` entry of any method's file without reading its tensors, which may have gigabytes. Raises PersresError."""
    path = Path(path)
    check_structure(path)
    try:
        with safe_open(path, framework="pt") as file:
            info = read_info(path, file.metadata() or {})
    except PersresError:
        raise
    except Exception as error:  # whatever the library raises is the file's fault
        raise PersresError(f"{path} is not a readable safetensors file ({error}); fetch or train it again") from error
    if info is None:
        raise PersresError(f"{path} has no persres header; fetch or train it again")
    return info


def check_base(path: Path, trained_on: str, present: str) -> None:
    """Raises PersresError where a residual was trained on another model than the present one.

    Both are as :func:`~persres.models.loading.model_identity` returns them. A hub's name and a folder's digest can't be compared: that is logged.
    """
    if ("@" in trained_on) != ("@" in present):
        log.warning(
            "%s was trained on %s, this is %s: a hub's name and a folder's digest can't be compared, so make sure that the weights are the same",
            path.name, trained_on, present,
        )  # fmt: skip
    elif trained_on.rpartition("@")[2] != present.rpartition("@")[2]:
        raise PersresError(
            f"{path} was trained on {trained_on}, this is {present}; load that model, or where this one has the same layers and you mean it,"
            " set allow_other_base=True (generate: --other-base)"
        )


def without_folders(value: Any) -> Any:
    """Returns a spec with names in place of this machine's paths, for a file that is published. ``base`` stays: the model is loaded by it."""
    if isinstance(value, dict):
        return {key: inner if key == "base" else without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_folders(inner) for inner in value]
    outside = isinstance(value, str) and value.startswith(("/", "~", "../"))
    return Path(value).name if outside else value


def header_facts(info: dict[str, Any], licence: str = "") -> dict[str, Any]:
    """Returns what a header tells, by name, for model cards and exports; settings are under the names of the code that wrote them.

    The base model's weight hash is there where the model was a folder. ``licence`` is the photos', which the header does not know. Raises
    KeyError where training did not write the header.
    """
    spec = info["spec"]
    model, _, weights = spec["model"].partition("@")
    photos = sorted(photo["digest"] for photo in spec["photos"])
    return {
        "format": info["format"],
        "base_model": model,
        "base_model_weights": weights or None,
        "resolution": spec["base"]["resolution"],
        "concept": spec["concept"],
        "v_star": spec["base"]["token"],
        "rare_token": spec["base"]["rare_token"],
        "macro_class": spec["macro_class"],
        "variant": spec["variant"],
        "settings": spec["settings"],
        "spec_hash": info["spec_hash"],
        "dataset_hash": hashlib.sha256("\n".join(photos).encode()).hexdigest(),
        "photos": len(photos),
        "photos_licence": licence or UNKNOWN,
        "code": spec["code"],
        "versions": info["versions"],
        "parameters": info["parameters"],
    }
