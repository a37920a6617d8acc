"""Where diffusers and PEFT write alphas: the ``lora_adapter_metadata`` entry of a LoRA's header, and PEFT's ``adapter_config.json`` next to
its weights. Both are typed, and read without regular expressions.

PEFT matches the keys of ``alpha_pattern`` as regular expressions, which lets a file from a stranger run for ever. Files that tools
write have layers' names there, whole or the last parts, sometimes after ``^`` or with escaped dots. Nothing else is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat

from persres.errors import PersresError
from persres.residuals.header_validation import entry_of
from persres.residuals.lora_keys import PEFT_PREFIX, TOWERS, UNET
from persres.untrusted.documents import parse_json, read_json
from persres.untrusted.pickled import REASON, conversion_command
from persres.untrusted.text import quoted

ENTRY = "lora_adapter_metadata"
CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"
UNPREFIXED = {"r", "lora_alpha", "peft_type"}
MAX_CONFIG = 4 << 20  # bytes
TOWER_PREFIX = "text_model."  # of layers of a text tower in older transformers


def layer_pattern(text: str) -> str:
    """Returns a pattern as the name it stands for, with ``^`` where it is the whole name. Raises ValueError for a regular expression."""
    name = text.replace("\\.", ".").removesuffix("$")
    anchor, name = ("^", name[1:]) if name.startswith("^") else ("", name)
    if name and all(c.isalnum() or c in "_.-" for c in name):
        return anchor + name.removeprefix(TOWER_PREFIX)
    raise ValueError(f"{quoted(text)} is not a layer's name; patterns are names or their last parts, not expressions")


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class AdapterConfig(BaseModel):
    """PEFT's ``LoraConfig`` of one part of a pipeline, as far as it scales the factors. Ranks are those of the tensors."""

    model_config = ConfigDict(strict=True, frozen=True)

    lora_alpha: FiniteFloat = Field(None)
    alpha_pattern: dict[Annotated[str, AfterValidator(layer_pattern)], FiniteFloat] | None = None
    r: Positive = Field(None)
    rank_pattern: dict[str, Positive] | None = None
    use_rslora: bool | None = None
    # The others (PiSSA, OLoRA, CorDA, LoftQ) change the base model's weights too, which no file of the adapter has.
    init_lora_weights: bool | Literal["gaussian", "eva", "orthogonal"] | None = None

    def scale(self, layer: str, rank: int) -> float:
        """Returns PEFT's scaling of a layer; 1 where the file has no alpha, as in diffusers."""
        alpha = self._alpha(layer.removeprefix(TOWER_PREFIX))
        if alpha is None:
            return 1.0
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def _alpha(self, layer: str) -> float | None:
        """The alpha of the first pattern that the layer's name is, or ends with."""
        patterns, parts = self.alpha_pattern or {}, layer.split(".")
        names = ["^" + layer, *(".".join(parts[i:]) for i in range(len(parts)))]
        matching = set(names) & patterns.keys()
        if len(matching) > 1:  # the first in the file's order, as in PEFT
            return next(alpha for name, alpha in patterns.items() if name in matching)
        return patterns[matching.pop()] if matching else self.lora_alpha


def read_adapter_metadata(path: Path, header: Mapping[str, str]) -> dict[str, AdapterConfig]:
    """Returns the configs by part of the pipeline: ``unet``, ``text_encoder``. Raises PersresError where a value is wrong."""
    kind = Annotated[dict[str, AdapterConfig], BeforeValidator(_by_part)]
    entry = entry_of(path, header, ENTRY) or "{}"
    return parse_json(entry, kind, f"{path}: its {ENTRY}", "fetch or save the LoRA again")


class PeftConfig(AdapterConfig):
    """PEFT's ``adapter_config.json``, with the settings under which its factors would mean something else."""

    peft_type: Literal["LORA"]
    use_dora: Literal[False] | None = None
    layer_replication: None = None
    fan_in_fan_out: Literal[False] | None = None
    lora_alpha: FiniteFloat


def lora_path(path: Path | str) -> Path:
    """Returns the file of a LoRA: the path itself, or in a folder that PEFT or diffusers saved its weights.

    Raises PersresError for a folder without them.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    for name in (WEIGHTS, DIFFUSERS_WEIGHTS):
        if (path / name).is_file():
            return path / name
    if (path / PICKLED).is_file():
        raise PersresError(f"{path / PICKLED} is {REASON} {conversion_command(path / PICKLED)}")
    raise PersresError(f"{path} is a folder without {WEIGHTS} or {DIFFUSERS_WEIGHTS}; give the LoRA's file in it")


def adapter_configs(path: Path, header: Mapping[str, str], keys: Iterable[str]) -> dict[str, AdapterConfig]:
    """Returns the configs of a LoRA's file by part, from its header or from PEFT's config next to it.

    Raises PersresError where a value is wrong, and for a file with PEFT's keys whose config is missing: its scale is nowhere else.
    """
    if ENTRY in header:
        return read_adapter_metadata(path, header)
    config = path.with_name(CONFIG)
    by_peft = any(key.startswith(PEFT_PREFIX) for key in keys)
    if config.is_file() and (by_peft or path.name == WEIGHTS):
        read = read_json(config, PeftConfig, "save the adapter again, as a plain LoRA", MAX_CONFIG)
        return dict.fromkeys((UNET, *TOWERS), read)
    if by_peft:
        raise PersresError(
            f"{path} has PEFT's keys, whose scale is in {CONFIG}, which is not next to it; copy it there"
        )
    return {}


def _by_part(entries: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(entries, dict):
        raise ValueError("it is not a mapping")
    if UNPREFIXED & entries.keys():  # the U-Net's save_lora_adapter writes no part
        return {UNET: entries}
    parts: dict[str, dict[str, Any]] = {}
    for key, value in entries.items():
        part, _, field = key.partition(".")
        parts.setdefault(part, {})[field] = value
    return parts
