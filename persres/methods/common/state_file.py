"""A rival's learned weights as one safetensors file: no pickle, config and provenance in the metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from persres.errors import PersresError
from persres.models.weight_patching import TOKEN
from persres.units.checkpoints import read_learned, write_tensors

FORMAT = "persres-rival-1"


def save_state(path: Path, state: dict[str, torch.Tensor], info: dict[str, Any]) -> None:
    """Weights in half precision (a whole U-Net otherwise takes 3.4 GB a concept on Stable Diffusion), V*'s vector in full."""
    tensors = {name: value if name == TOKEN else value.half() for name, value in state.items()}
    write_tensors(path, tensors, {"format": "pt", "persres": json.dumps({"format": FORMAT, **info}, sort_keys=True)})


def load_state(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Float32 weights by name and the info. Raises PersresError where the file is missing, broken or something else."""
    tensors, info = read_learned(path)
    if info is None or info.get("format") != FORMAT:
        raise PersresError(f"{path} is not a rival's state: its header does not say {FORMAT}")
    return {name: value.float() for name, value in tensors.items()}, info
