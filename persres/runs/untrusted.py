"""A safetensors file from a stranger: what it must not be is said in one sentence, before anything of it is used.

The format (github.com/huggingface/safetensors): 8 bytes with the header's length, little-endian; the header, JSON; the tensors, whose
places the header names. No code can stand in it, but a broken or a lying file can still waste memory or draw noise.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from persres.errors import PersresError

MOST_HEADER = 4 << 20  # bytes; ours have about 10 KiB, a whole U-Net's 200
_OTHERS = {
    b"PK": "a ZIP archive, as pickled PyTorch files are",
    b"\x80": "a pickle",
    b"version https://git-lfs": "a Git LFS pointer",
}


def check_finite(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Raises PersresError for a tensor that holds NaN or infinity."""
    for name, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
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
    except (OSError, ValueError) as error:
        raise PersresError(f"{path} is not a readable safetensors file ({error}); fetch or train it again") from error
    _check_end(path, size - 8 - length, header)


def _check_end(path: Path, stored: int, header: dict) -> None:
    try:
        wanted = max((entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"), default=0)
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
