"""Tensors and training checkpoints as safetensors files, written atomically."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from persres.errors import PersresError
from persres.units.files import written_whole

log = logging.getLogger(__name__)


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Writes a safetensors file under a temporary name, then renames it: a reader never sees half of it.

    Raises PersresError where it can't be written; an existing file is left as it was.
    """
    try:
        with written_whole(path) as partial:
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, partial, metadata=metadata)
            with partial.open("r+b") as file:
                _sort_header(file)
    except (SafetensorError, OSError) as error:
        raise PersresError(f"cannot write {path} ({error}); free some space, or make the folder writable") from error


def _sort_header(file: BinaryIO) -> None:
    """Sorts the header's metadata, in place. The library writes it in an order that changes from run to run, and then the same result
    would have another digest each time."""
    length = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(length))
    metadata = {"__metadata__": dict(sorted(header.pop("__metadata__", {}).items()))}
    ordered = json.dumps(metadata | header, separators=(",", ":"), ensure_ascii=False).encode()
    if len(ordered) <= length:
        file.seek(8)
        file.write(ordered.ljust(length))


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Returns all tensors of a safetensors file and its metadata. For files of ours; see ``persres/residuals/header_validation.py``."""
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def save_training(
    path: Path,
    parameters: dict[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    step: int,
    extra: dict[str, torch.Tensor] | None = None,
    note: dict | None = None,
) -> None:
    """Writes parameters, optimizer state and the number of finished steps."""
    tensors = {f"param/{name}": value for name, value in parameters.items()}
    tensors |= {f"extra/{name}": value for name, value in (extra or {}).items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optim/{index}/{key}": torch.as_tensor(value) for key, value in state.items()}
    write_tensors(path, tensors, {"step": str(step), "note": json.dumps(note or {})})


def load_training(
    path: Path,
    parameters: dict[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    extra: dict[str, torch.Tensor] | None = None,
) -> tuple[int, dict]:
    """Restores the state of :func:`save_training` in place; returns (finished steps, note)."""
    tensors, metadata = read_tensors(path)
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(tensors[f"param/{name}"])
        for name, value in (extra or {}).items():
            value.copy_(tensors[f"extra/{name}"])
    state: dict[int, dict] = {}
    for key, value in tensors.items():
        if key.startswith("optim/"):
            _, index, field = key.split("/")
            state.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(metadata["step"]), json.loads(metadata["note"])


def resume_training(
    path: Path | None, parameters: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer
) -> tuple[int, dict]:
    """As :func:`load_training`; (0, {}) without a checkpoint, and after a warning with a corrupt one."""
    if path is None or not path.exists():
        return 0, {}
    try:
        return load_training(path, parameters, optimizer)
    except SafetensorError:
        log.warning("%s is corrupt; starting from the first step", path)
        return 0, {}
