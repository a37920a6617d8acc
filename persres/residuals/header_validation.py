"""Validation of a safetensors file from a stranger, before anything in it is used.

The format (github.com/huggingface/safetensors): 8 bytes with the header's length, little-endian; the header, JSON; the tensors, whose
offsets the header has. It can't hold code, but a broken or forged file can still waste memory or turn images into noise.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persres.errors import PersresError
from persres.untrusted.documents import open_regular
from persres.untrusted.pickled import conversion_command
from persres.untrusted.text import printable

if TYPE_CHECKING:  # a wrong path is an error at once, and torch takes seconds to import
    import torch

MAX_HEADER = 100_000_000  # bytes, safetensors' own bound; tags of all photos and cover images can be large
MAX_NAMES = 4 << 20  # bytes of a header without its strings, and of an entry that is read; a whole U-Net's have 200 KiB
MAX_STRINGS = 300_000  # of a header; a tensor's entry has five
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
MAX_TENSORS = 20_000  # a LoRA of every layer of SDXL has 3,000
# What LoRAs, residuals and checkpoints hold; torch can't compute with packed 4-bit numbers, and others have no order.
DTYPES = {"float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"}
DTYPES |= {"int64", "int32", "int16", "int8", "uint8", "bool"}
_OTHER_FORMATS = {
    b"PK": "a ZIP archive, as pickled PyTorch files are",
    b"\x80": "a pickle",
    b"version https://git-lfs": "a Git LFS pointer",
}


_PICKLED = (_OTHER_FORMATS[b"PK"], _OTHER_FORMATS[b"\x80"])


def read_checked(path: Path | str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Returns all tensors of a safetensors file that may come from a stranger, and its metadata.

    Raises PersresError for a missing file, one that is not safetensors, is truncated, has trailing bytes or an absurd header, and for
    tensors with NaN or infinity.
    """
    from persres.units.checkpoints import read_tensors

    path = Path(path)
    check_structure(path)
    try:
        tensors, metadata = read_tensors(path)
    except Exception as error:  # whatever the library raises is the file's fault
        raise PersresError(f"{path} is not a readable safetensors file ({error}); fetch or train it again") from error
    check_finite(path, tensors)
    return tensors, metadata


def check_finite(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Raises PersresError for a tensor that holds NaN or infinity, and for one of a type that no trained file has."""
    for name, value in tensors.items():
        kind = str(value.dtype).removeprefix("torch.")
        if kind not in DTYPES:
            raise PersresError(f"{path}: {printable(name)} is {kind}, which persres does not read; save it as float32")
        wide = value.float() if value.element_size() == 1 else value  # torch has no isfinite for 8-bit floats
        if value.is_floating_point() and not wide.isfinite().all():
            raise PersresError(
                f"{path}: {printable(name)} holds NaN or infinity; fetch it again, or train it with a smaller lr"
            )


def check_floating(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Raises PersresError for a tensor that is empty or not of floating point, as no trained weight is."""
    for name, value in tensors.items():
        if not value.is_floating_point() or not value.numel():
            kind = str(value.dtype).removeprefix("torch.")
            raise PersresError(
                f"{path}: {printable(name)} is {kind} {list(value.shape)}, which is no trained weight; fetch or train it again"
            )


def check_structure(path: Path) -> None:
    """Raises PersresError unless length, header and end of the file agree. Reads no tensor."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(24)
            length = int.from_bytes(start[:8], "little")
            _check_start(path, start, size, length)
            file.seek(8)
            header = _parsed(path, file.read(length))
    except FileNotFoundError as error:
        raise PersresError(f"no file {path}; train it first, or pull it") from error
    except (OSError, ValueError, RecursionError) as error:
        raise PersresError(f"{path} is not a readable safetensors file ({error}); fetch or train it again") from error
    _check_end(path, size - 8 - length, header)


def entry_of(path: Path, metadata: Mapping[str, str], name: str) -> str | None:
    """Returns an entry of a file's metadata that is to be parsed, None where there is none. Raises PersresError for a huge one."""
    entry = metadata.get(name)
    if entry is not None and len(entry) > MAX_NAMES:
        raise PersresError(f"{path}: its {name!r} entry has {len(entry):,} characters; do not trust it, fetch it again")
    return entry


def _parsed(path: Path, text: bytes) -> dict[str, Any]:
    """The header as JSON. A large one is first measured without its strings: nested lists would take many times its size in memory."""
    if len(text) > MAX_NAMES and _size_without_strings(text) > MAX_NAMES:
        raise PersresError(
            f"{path} has a header of {len(text):,} bytes that is not text; do not trust it, fetch it again"
        )
    return json.loads(text, object_pairs_hook=_without_repeats)


def _size_without_strings(text: bytes) -> int:
    """The bytes of JSON outside its strings, in one pass. Raises ValueError for a string without end."""
    size = position = 0
    for _ in range(MAX_STRINGS):
        start = text.find(b'"', position)
        if start < 0:
            return size + len(text) - position
        string = _STRING.match(text, start)
        if string is None:
            raise ValueError("a string in its header has no end")
        size, position = size + start - position, string.end()
    return len(text)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys are unique: of two with one name, readers may take either."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("its header has a name twice")
    return entries


def _check_start(path: Path, start: bytes, size: int, length: int) -> None:
    other = next((name for magic, name in _OTHER_FORMATS.items() if start.startswith(magic)), None)
    if other is not None and start[8:9] != b"{":  # a header of 0x..80 bytes begins like a pickle
        fix = f"; where you trust it, convert it: {conversion_command(path)}" if other in _PICKLED else ""
        raise PersresError(f"{path} is not a safetensors file but {other}; persres reads nothing else{fix}")
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
    if len(ends) > MAX_TENSORS:
        raise PersresError(f"{path} has {len(ends):,} tensors, which no LoRA or checkpoint has; do not trust it")
    if stored < expected:
        raise PersresError(
            f"{path} is truncated: {expected - stored:,} of {expected:,} bytes are missing; fetch it again"
        )
    if stored > expected:
        raise PersresError(f"{path} has {stored - expected:,} bytes after its end; do not trust it, fetch it again")
