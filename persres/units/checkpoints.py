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
from persres.untrusted.text import printable

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
    """Restores the state of :func:`save_training` in place; returns (finished steps, note).

    Raises PersresError where the file is broken, of other parameters, or holds NaN or infinity; nothing has changed then.
    """
    try:
        tensors, metadata = read_tensors(path)
        step, note = int(metadata["step"]), json.loads(metadata["note"])
    except Exception as error:  # whatever the parsers raise is the file's fault
        raise PersresError(f"{path} is no checkpoint ({error}); remove it") from error
    restored = {f"param/{name}": value for name, value in parameters.items()}
    restored |= {f"extra/{name}": value for name, value in (extra or {}).items()}
    for name, value in restored.items():
        _check_stored(path, name, tensors.get(name), value)
    optimizer.load_state_dict(_optimizer_state(path, tensors, optimizer))
    with torch.no_grad():
        for name, value in restored.items():
            value.copy_(tensors[name])
    return step, note


def _check_stored(path: Path, name: str, stored: torch.Tensor | None, value: torch.Tensor) -> None:
    if stored is None or stored.shape != value.shape or stored.is_floating_point() != value.is_floating_point():
        raise PersresError(f"{path} is a checkpoint of another training (its {printable(name)} differs); remove it")
    if stored.is_floating_point() and not stored.isfinite().all():
        raise PersresError(f"{path}: {printable(name)} holds NaN or infinity; remove it, and set a smaller lr")


def _optimizer_state(path: Path, tensors: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> dict:
    trained = [value for group in optimizer.param_groups for value in group["params"]]
    state: dict[int, dict] = {}
    for key, value in tensors.items():
        if key.startswith("optim/"):
            try:
                _, index, field = key.split("/")
                fits = value.ndim == 0 or value.shape == trained[int(index)].shape
            except (ValueError, IndexError):
                fits = False
            if not fits:
                raise PersresError(f"{path} is a checkpoint of another training (its {printable(key)}); remove it")
            state.setdefault(int(index), {})[field] = value
    return {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}


def resume_training(
    path: Path | None, parameters: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer
) -> tuple[int, dict]:
    """As :func:`load_training`; (0, {}) without a checkpoint, and after a warning with one that can't be used."""
    if path is None or not path.exists():
        return 0, {}
    try:
        return load_training(path, parameters, optimizer)
    except PersresError as error:
        log.warning("%s is corrupt (%s); starting from the first step", path, error)
        return 0, {}
