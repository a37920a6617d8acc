"""How much memory there is, and how many concepts' steps fit into it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import torch

RESERVED = 0.2  # of what is free: allocators lose some to fragments, and others use the machine too


def concepts_within(free: float, model: float, step: float, workers: int) -> int:
    """How many concepts one worker may learn at once, at least 1. In MiB: ``free`` while one worker holds its ``model``, and what one
    concept's ``step`` takes beside the model. Each further worker brings a model of its own; then all share alike."""
    share = (free * (1 - RESERVED) - (workers - 1) * model) / workers
    return max(1, int(share / max(step, 1.0)))


def used_mib(device: torch.device) -> float:
    """What this process holds now: tensors on the GPU, else its resident memory, 0 where that can't be read."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 2**20
    with suppress(OSError, ValueError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    return 0.0


def free_mib(device: torch.device) -> float:
    """What is free: on the GPU; else in the machine and, in a container, below its limit. Half of all memory where nobody says."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0] / 2**20
    known = [value for value in (_available(), _below_limit()) if value is not None]
    return min(known) if known else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**21


def _available() -> float | None:
    with suppress(OSError, ValueError, StopIteration):
        line = next(li for li in Path("/proc/meminfo").read_text().splitlines() if li.startswith("MemAvailable"))
        return int(line.split()[1]) / 1024
    return None


def _below_limit(group: Path = Path("/sys/fs/cgroup")) -> float | None:
    """What a container may still take; what it keeps of files it can give back."""
    with suppress(OSError, ValueError, KeyError):
        limit = int((group / "memory.max").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return (limit - int((group / "memory.current").read_text()) + int(stat["inactive_file"])) / 2**20
    return None
