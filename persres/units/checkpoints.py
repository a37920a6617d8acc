"""Checkpoints as safetensors (no pickle), written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from persres.errors import PersresError
from persres.units.files import written_whole
from persres.units.header_validation import ResidualHeader, check_finite, check_header, check_keys, check_shape


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file beside its place, then rename it: a reader never sees half.

    Raises PersresError where it can't be written; what stood there before is left.
    """
    try:
        with written_whole(path) as partial:
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, partial, metadata=metadata)
            with partial.open("r+b") as file:
                _sort_header(file)
    except (SafetensorError, OSError) as error:
        raise PersresError(f"cannot write {path} ({error}); free some space, or make the folder writable") from error


def _sort_header(file: BinaryIO) -> None:
    """Put the header's entries in order, in place: the library writes metadata in an order that changes
    from run to run, and then the same result would have another digest each time."""
    length = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(length))
    metadata = {"__metadata__": dict(sorted(header.pop("__metadata__", {}).items()))}
    ordered = json.dumps(metadata | header, separators=(",", ":"), ensure_ascii=False).encode()
    if len(ordered) <= length:
        file.seek(8)
        file.write(ordered.ljust(length))


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All tensors of a safetensors file and its metadata."""
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def read_checked(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """As :func:`read_tensors`, of a file that may come from a stranger (persres/units/header_validation.py).

    Raises PersresError for a missing file, for one that is no safetensors file, is cut, goes on after its end or has an absurd header,
    and for tensors that hold NaN or infinity.
    """
    check_shape(path)
    try:
        tensors, metadata = read_tensors(path)
    except (SafetensorError, OSError) as error:
        raise PersresError(f"{path} is not a readable safetensors file ({error}); fetch or train it again") from error
    check_finite(path, tensors)
    return tensors, metadata


def read_learned(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
    """All tensors of a file that a method saved, and its ``persres`` entry, None where there is none. Raises PersresError as
    :func:`read_checked` does, and where the entry is no mapping."""
    tensors, metadata = read_checked(path)
    return tensors, _entry(path, metadata["persres"]) if "persres" in metadata else None


def _entry(path: Path, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PersresError(f"{path}: its 'persres' entry is not JSON ({error}); fetch or train it again") from error
    if not isinstance(found, dict):
        raise PersresError(
            f"{path}: its 'persres' entry is no mapping but {str(found)[:40]!r}; fetch or train it again"
        )
    return found


def read_residual(path: Path, own: frozenset[str] = frozenset()) -> tuple[dict[str, torch.Tensor], ResidualHeader]:
    """A residual's tensors and what it says of itself, all checked (persres/units/header_validation.py); ``own``: keys beside the layers' factors
    that it may have. Raises PersresError as :func:`read_learned` does, and for a header or a key that no residual has."""
    tensors, info = read_learned(path)
    said = check_header(path, info)
    check_keys(path, tensors, own)
    return tensors, said


def read_header(path: Path) -> dict[str, Any]:
    """The ``persres`` entry of a file that a method saved, without its tensors, which may have gigabytes. Raises PersresError."""
    check_shape(path)
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {})["persres"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise PersresError(f"{path} has no header of persres ({error}); train it again") from error


def save_training(
    path: Path,
    parameters: dict[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    step: int,
    extra: dict[str, torch.Tensor] | None = None,
    note: dict | None = None,
) -> None:
    """Parameters, optimizer state and the number of finished steps."""
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
    """Restore what :func:`save_training` wrote, in place; returns (finished steps, note)."""
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
