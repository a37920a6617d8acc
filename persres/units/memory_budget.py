"""How much memory is free, and how many concepts fit into it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil
import torch

RESERVED = 0.2  # of the free memory: allocators lose some to fragments, and others use the machine too


def concepts_within(free: float, model: float, step: float, workers: int) -> int:
    """The number of concepts that one worker can train at once, at least 1. All arguments are in MiB.

    ``free`` is measured while one worker holds its ``model``; ``step`` is what one concept's step takes next to the model. Each
    further worker needs a model of its own, then all share what is left.
    """
    share = (free * (1 - RESERVED) - (workers - 1) * model) / workers
    return max(1, int(share / max(step, 1.0)))


def used_mib(device: torch.device) -> float:
    """The memory that this process uses: tensors on the GPU, else its resident memory."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 2**20
    return psutil.Process().memory_info().rss / 2**20


def free_mib(device: torch.device) -> float:
    """The free memory: of the GPU, else of the machine and, in a container, below its limit."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0] / 2**20
    available = psutil.virtual_memory().available / 2**20
    below_limit = _below_limit()
    return available if below_limit is None else min(available, below_limit)


def _below_limit(group: Path = Path("/sys/fs/cgroup")) -> float | None:
    """What a container may still allocate, None without a limit. Its inactive file cache counts as free."""
    with suppress(OSError, ValueError, KeyError):
        limit = int((group / "memory.max").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return (limit - int((group / "memory.current").read_text()) + int(stat["inactive_file"])) / 2**20
    return None
