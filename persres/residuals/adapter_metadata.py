"""The ``lora_adapter_metadata`` entry of a LoRA's header, in which diffusers and PEFT write alphas: typed, and without regular expressions.

PEFT matches the keys of ``alpha_pattern`` as regular expressions, which lets a file from a stranger run for ever. Files that tools
write have layers' names there, whole or the last parts, sometimes after ``^`` or with escaped dots. Nothing else is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat

from persres.untrusted.documents import parse_json
from persres.untrusted.text import quoted

ENTRY = "lora_adapter_metadata"
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
    return parse_json(header.get(ENTRY, "{}"), kind, f"{path}: its {ENTRY}", "fetch or save the LoRA again")


def _by_part(entries: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(entries, dict):
        raise ValueError("it is not a mapping")
    parts: dict[str, dict[str, Any]] = {}
    for key, value in entries.items():
        part, _, field = key.partition(".")
        parts.setdefault(part, {})[field] = value
    return parts
