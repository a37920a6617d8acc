"""A safetensors file from a stranger: what it must not be is said in one sentence, before anything of it is used.

The format (github.com/huggingface/safetensors): 8 bytes with the header's length, little-endian; the header, JSON; the tensors, whose
places the header names. No code can stand in it, but a broken or a lying file can still waste memory or draw noise.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from persres.config.schema import Base
from persres.errors import PersresError

log = logging.getLogger(__name__)
MOST_HEADER = 4 << 20  # bytes; ours have about 10 KiB, a whole U-Net's 200
_OTHERS = {
    b"PK": "a ZIP archive, as pickled PyTorch files are",
    b"\x80": "a pickle",
    b"version https://git-lfs": "a Git LFS pointer",
}


def check_finite(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Raises PersresError for a tensor that holds NaN or infinity."""
    for name, value in tensors.items():
        wide = value.float() if value.element_size() == 1 else value  # 8-bit floats can't be asked
        if value.is_floating_point() and not wide.isfinite().all():
            raise PersresError(f"{path}: {name} holds NaN or infinity, which would draw noise; fetch or train it again")


def check_shape(path: Path) -> None:
    """Whether length, header and end of the file agree, without reading the tensors. Raises PersresError."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(24)
            length = int.from_bytes(start[:8], "little")
            kind = next((what for magic, what in _OTHERS.items() if start.startswith(magic)), None)
            if kind is not None and start[8:9] != b"{":  # a header of 0x..80 bytes begins like a pickle
                raise PersresError(f"{path} is not a safetensors file but {kind}; persres reads nothing else")
            if size < 8 or not 2 <= length <= MOST_HEADER:
                said = f"its header would have {length:,} bytes" if size >= 8 else f"it has {size} bytes"
                raise PersresError(f"{path} is not a readable safetensors file ({said}); fetch or train it again")
            file.seek(8)
            header = json.loads(file.read(length))
    except FileNotFoundError as error:
        raise PersresError(f"nothing learned at {path}; train it first, or pull it") from error
    except (OSError, ValueError, RecursionError) as error:
        raise PersresError(f"{path} is not a readable safetensors file ({error}); fetch or train it again") from error
    _check_end(path, size - 8 - length, header)


def _check_end(path: Path, stored: int, header: dict) -> None:
    try:
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
        wanted = max((end.__index__() for end in ends), default=0)
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        raise PersresError(
            f"{path} is not a readable safetensors file (its header is another's); fetch it again"
        ) from error
    if stored < wanted:
        raise PersresError(f"{path} is cut: {wanted - stored:,} of {wanted:,} bytes are missing; fetch it again")
    if stored > wanted:
        raise PersresError(
            f"{path} goes on for {stored - wanted:,} bytes after its end; do not trust it, fetch it again"
        )


MOST_RATIO = 1000  # a rank is at most the width; what is above, infinity among it, is nobody's setting
KIND = "persres-residual"  # how the format's name begins, whatever its version
_KEY = re.compile(r"(unet\.)?.+\.lora_[AB]\.weight")


@dataclass(frozen=True)
class ResidualHeader:
    """What a residual's header says of it. ``model`` is the base model's name and, of a folder, its digest; ``settings`` those that it
    was trained by, with what tells its layers and ranks; ``info`` the whole entry."""

    base: Base
    model: str
    concept: str
    macro_class: str
    settings: dict[str, Any]
    info: dict[str, Any]

    @property
    def phrase(self) -> str:
        """What stands for the concept in prompts: V* and its class, or V* alone where it was trained so."""
        return f"{self.base.token} {self.macro_class}" if self.settings.get("name_class", True) else self.base.token


def check_keys(path: Path, tensors: dict[str, torch.Tensor], own: frozenset[str] = frozenset()) -> None:
    """Raises PersresError for the first tensor of a residual's file that is no factor of a layer; ``own`` are keys that may be vectors."""
    for key, value in tensors.items():
        if key in own:
            fits = value.ndim == 1
        else:
            fits = _KEY.fullmatch(key) is not None and value.ndim in (2, 4) and 0 not in value.shape
        if not fits:
            raise PersresError(
                f"{path}: {key!r} {list(value.shape)} is no layer's factor, as all of a residual's tensors are; fetch or train it again"
            )


def check_header(path: Path, info: Any) -> ResidualHeader:
    """The header's ``persres`` entry, typed. Raises PersresError where there is none, or naming what it lacks or has wrong."""
    if not isinstance(info, dict) or not str(info.get("format")).startswith(KIND):
        raise PersresError(
            f"{path} is a safetensors file but not a persres residual: its header does not say what it learned and on which model; to draw"
            " with any LoRA say subject= (generate: --subject and --model), the words of the prompt that name what it learned"
        )
    spec = info.get("spec")
    spec = spec if isinstance(spec, dict) else {}
    words = {key: spec.get(key) for key in ("model", "concept", "macro_class")}
    wrong = [key for key, value in words.items() if not isinstance(value, str) or not value.strip()]
    if wrong:
        raise _unsaid(path, f"spec.{wrong[0]}")
    try:
        base = Base(**spec.get("base"))
    except (ValidationError, TypeError) as error:
        raise _unsaid(path, "spec.base") from error
    return ResidualHeader(base, **words, settings=_settings(path, spec.get("settings")), info=info)


def _settings(path: Path, found: Any) -> dict[str, Any]:
    known = found if isinstance(found, dict) else {}
    ratio, rank = known.get("rank_ratio"), known.get("rank")
    if type(ratio) not in (int, float) or not 0 < ratio <= MOST_RATIO:
        raise _unsaid(path, "spec.settings.rank_ratio")
    if rank is not None and (type(rank) is not int or rank < 1):
        raise _unsaid(path, "spec.settings.rank")
    if not isinstance(known.get("target"), str):
        raise _unsaid(path, "spec.settings.target")
    return known


def _unsaid(path: Path, what: str) -> PersresError:
    return PersresError(
        f"{path}: its header has no usable {what}, without which it can't be drawn with; fetch or train it again"
    )


def check_base(path: Path, trained_on: str, here: str) -> None:
    """Whether a residual was trained on the model that is here, both as ``models.loading.model_identity`` tells them. Raises PersresError
    where it was another; logs where one is known by a hub's name and the other by its files' digest, for these can't be compared."""
    if ("@" in trained_on) != ("@" in here):
        log.warning(
            "%s was trained on %s, this is %s: a hub's name and a folder's digest can't be compared, so make sure that the weights are the same",
            path.name, trained_on, here,
        )  # fmt: skip
    elif trained_on.rpartition("@")[2] != here.rpartition("@")[2]:
        raise PersresError(
            f"{path} was trained on {trained_on}, this is {here}; load that model, or where this one has the same layers and you mean it,"
            " say allow_other_base=True (generate: --other-base)"
        )
