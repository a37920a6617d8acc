"""Seeds from names: random numbers depend on what they are for and on the step, never on what ran before."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def seed_from(*parts: object) -> int:
    """A 63-bit seed from all parts, the same on every machine and Python version."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*parts: object) -> torch.Generator:
    """A CPU generator seeded by the parts. Sample on the CPU and move the result: devices give different numbers."""
    import torch

    return torch.Generator("cpu").manual_seed(seed_from(*parts))
