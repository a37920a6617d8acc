"""A rival's trained weights in the common file format (:mod:`persres.residuals.file`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from persres.errors import PersresError
from persres.models.weight_patching import TOKEN
from persres.residuals.file import read_learned, write_learned
from persres.residuals.header_validation import check_floating

FORMAT = "persres-rival-1"


def save_state(path: Path, state: dict[str, torch.Tensor], info: dict[str, Any]) -> None:
    """Writes weights in half precision (a whole U-Net in float32 takes 3.4 GB a concept on Stable Diffusion), V*'s vector in full."""
    tensors = {name: value if name == TOKEN else value.half() for name, value in state.items()}
    write_learned(path, FORMAT, tensors, info)


def load_state(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Returns float32 weights by name and the header's entry. Raises PersresError where the file is missing, broken or of another kind."""
    tensors, info = read_learned(path)
    if info is None or info.get("format") != FORMAT:
        raise PersresError(f"{path} is not a rival's file: its format is not {FORMAT}; fetch or train it again")
    check_floating(path, tensors)
    return {name: value.float() for name, value in tensors.items()}, info
