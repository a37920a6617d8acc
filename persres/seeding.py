"""Seeds from names: every random draw belongs to (what, which step), never to what ran before."""

from __future__ import annotations

import hashlib

import torch


def seed_from(*parts: object) -> int:
    """A 63-bit seed that depends on all parts, stable over machines and Python versions."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*parts: object) -> torch.Generator:
    """A CPU generator seeded by the parts. Draw on the CPU and move: devices draw differently."""
    return torch.Generator("cpu").manual_seed(seed_from(*parts))
