"""Validation of a safetensors file from a stranger, before anything in it is used.

The format (github.com/huggingface/safetensors): 8 bytes with the header's length, little-endian; the header, JSON; the tensors, whose
offsets the header has. It can't hold code, but a broken or forged file can still waste memory or turn images into noise.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError

from persres.errors import PersresError
from persres.units.checkpoints import read_tensors

MAX_HEADER = 4 << 20  # bytes; ours have about 10 KiB, a whole U-Net's 200
_OTHER_FORMATS = {
    b"PK": "a ZIP archive, as pickled PyTorch files are",
    b"\x80": "a pickle",
    b"version https://git-lfs": "a Git LFS pointer",
}


def read_checked(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Returns all tensors of a safetensors file that may come from a stranger, and its metadata.

    Raises PersresError for a missing file, one that is not safetensors, is truncated, has trailing bytes or an absurd header, and for
    tensors with NaN or infinity.
    """
    check_structure(path)
    try:
        tensors, metadata = read_tensors(path)
    except (SafetensorError, OSError) as error:
        raise PersresError(f"{path} is not a readable safetensors file ({error}); fetch or train it again") from error
    check_finite(path, tensors)
    return tensors, metadata


def check_finite(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Raises PersresError for a tensor that holds NaN or infinity."""
    for name, value in tensors.items():
        wide = value.float() if value.element_size() == 1 else value  # torch has no isfinite for 8-bit floats
        if value.is_floating_point() and not wide.isfinite().all():
            raise PersresError(f"{path}: {name} holds NaN or infinity; fetch or train it again")


def check_structure(path: Path) -> None:
    """Raises PersresError unless length, header and end of the file agree. Reads no tensor."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(24)
            length = int.from_bytes(start[:8], "little")
            _check_start(path, start, size, length)
            file.seek(8)
            header = json.loads(file.read(length))
    except FileNotFoundError as error:
        raise PersresError(f"no file {path}; train it first, or pull it") from error
    except (OSError, ValueError, RecursionError) as error:
        raise PersresError(f"{path} is not a readable safetensors file ({error}); fetch or train it again") from error
    _check_end(path, size - 8 - length, header)


def _check_start(path: Path, start: bytes, size: int, length: int) -> None:
    other = next((name for magic, name in _OTHER_FORMATS.items() if start.startswith(magic)), None)
    if other is not None and start[8:9] != b"{":  # a header of 0x..80 bytes begins like a pickle
        raise PersresError(f"{path} is not a safetensors file but {other}; persres reads nothing else")
    if size < 8 or not 2 <= length <= MAX_HEADER:
        reason = f"its header would have {length:,} bytes" if size >= 8 else f"it has {size} bytes"
        raise PersresError(f"{path} is not a readable safetensors file ({reason}); fetch or train it again")


def _check_end(path: Path, stored: int, header: dict) -> None:
    try:
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
        expected = max((end.__index__() for end in ends), default=0)
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        raise PersresError(
            f"{path} is not a readable safetensors file (its header has no data_offsets); fetch it again"
        ) from error
    if stored < expected:
        raise PersresError(
            f"{path} is truncated: {expected - stored:,} of {expected:,} bytes are missing; fetch it again"
        )
    if stored > expected:
        raise PersresError(f"{path} has {stored - expected:,} bytes after its end; do not trust it, fetch it again")
