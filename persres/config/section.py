"""A section of ``params.yaml``, and the types of its names, words and numbers."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from persres.errors import PersresError
from persres.untrusted.text import plain_text

LARGEST, LARGEST_SEED = 10**9, 2**63 - 1
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]  # a folder's name
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Word = Annotated[str, Field(pattern=r"^\S+$", max_length=64)]
Scale = Annotated[float, Field(ge=1, le=1000)]  # of classifier-free guidance


def _check_text(text: str) -> None:
    try:
        plain_text(text, "this text", longest=5000, allowed="\n\t")
    except PersresError as error:
        raise ValueError(str(error)) from error


class Section(BaseModel):
    """A frozen section of params.yaml: unknown keys are refused, types are not converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _bounded(cls, value: Any, info: ValidationInfo) -> Any:
        """Numbers that every library can hold, and text that is a name, a path or a prompt."""
        for part in value if isinstance(value, (tuple, list)) else (value,):
            largest = LARGEST_SEED if info.field_name == "seed" else LARGEST
            if isinstance(part, (int, float)) and abs(part) > largest:
                raise ValueError(f"must be between -{largest} and {largest}")
            if isinstance(part, str):
                _check_text(part)
        return value
