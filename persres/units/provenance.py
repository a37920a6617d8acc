"""The provenance of a result: versions, seconds, peak memory. Its code: persres/units/code_digest.py."""

from __future__ import annotations

import platform
import resource
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import torch

PACKAGE = Path(__file__).parent


@lru_cache
def library_versions() -> dict[str, str]:
    """Versions of the libraries that compute."""
    names = ("torch", "diffusers", "transformers", "open_clip_torch", "timm", "numpy", "pillow", "persres")
    return {name: version(name) for name in names} | {"python": platform.python_version()}


@lru_cache
def versions() -> dict[str, str]:
    """Versions of the libraries that compute, and the commit of a checkout."""
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=PACKAGE, capture_output=True, text=True, check=False)
    return library_versions() | ({"commit": git.stdout.strip()} if git.returncode == 0 else {})


def _reset_peak() -> None:
    """Reset Linux's record of the process's peak memory: a worker's second unit would show the first's."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mib() -> float:
    """The process's peak resident memory since the reset, or since its start where that cannot be read."""
    try:
        line = next(li for li in Path("/proc/self/status").read_text().splitlines() if li.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextmanager
def measured(device: torch.device) -> Iterator[dict[str, object]]:
    """Measure a block; the mapping holds seconds, peak MiB (of the GPU, else of the process), device and versions on exit."""
    if device.type == "cuda":
        torch.cuda.init()  # torch refuses a numbered device before its first use
        torch.cuda.reset_peak_memory_stats(device)
    else:
        _reset_peak()
    facts: dict[str, object] = {}
    started = time.monotonic()
    yield facts
    facts["seconds"] = round(time.monotonic() - started, 3)
    facts["peak_mib"] = round(torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else _peak_mib())
    facts["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    facts["versions"] = versions()
