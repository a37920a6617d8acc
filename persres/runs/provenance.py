"""Where a result came from: code fingerprint, versions, seconds, peak memory."""

from __future__ import annotations

import hashlib
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

# The files whose text decides a stage's result. They are part of every unit's spec, so a changed
# method is never mistaken for a finished one, and dvc.yaml names them as dependencies (a test compares).
STAGE_CODE: dict[str, tuple[str, ...]] = {
    "fetch": (
        "datasets",
        "images.py",
        "miniworld/backgrounds.py",
        "miniworld/captions.py",
        "miniworld/concepts.py",
        "miniworld/render.py",
        "miniworld/shapes.py",
        "miniworld/styles.py",
        "miniworld/vocabulary.py",
        "seeding.py",
        "stages/fetch.py",
    ),
    "macro_class": (
        "images.py",
        "metrics/clip_scores.py",
        "metrics/short_texts.py",
        "stages/macro_class.py",
        "wordnet",
    ),
    "train": (
        "conditioning.py",
        "images.py",
        "lag.py",
        "lag_controls.py",
        "methods",
        "models.py",
        "prompt_text.py",
        "prompts.py",
        "residual_file.py",
        "residuals.py",
        "samplers.py",
        "seeding.py",
        "stages/train.py",
        "training.py",
    ),
    "sample": (
        "conditioning.py",
        "images.py",
        "lag.py",
        "lag_controls.py",
        "methods",
        "models.py",
        "prompt_text.py",
        "prompts.py",
        "residual_file.py",
        "residuals.py",
        "samplers.py",
        "seeding.py",
        "stages/packs.py",
        "stages/sample.py",
        "training.py",
    ),
    "score": ("images.py", "metrics", "miniworld/judge.py", "stages/packs.py", "stages/score.py"),
    "tables": (
        "images.py",
        "metrics/paper_figures.py",
        "metrics/summary.py",
        "stages/costs.py",
        "stages/packs.py",
        "stages/plots.py",
        "stages/sheets.py",
        "stages/table_text.py",
        "stages/tables.py",
    ),
}


@lru_cache
def code_fingerprint(stage: str) -> str:
    """16 hex digits over the stage's source files."""
    digest = hashlib.sha256()
    for entry in STAGE_CODE[stage]:
        path = PACKAGE / entry
        files = (
            sorted(p for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
            if path.is_dir()
            else [path]
        )
        for file in files:
            digest.update(str(file.relative_to(PACKAGE)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


@lru_cache
def library_versions() -> dict[str, str]:
    """Versions of what computes."""
    names = ("torch", "diffusers", "transformers", "open_clip_torch", "timm", "numpy", "pillow", "persres")
    return {name: version(name) for name in names} | {"python": platform.python_version()}


@lru_cache
def versions() -> dict[str, str]:
    """Versions of what computes, and the commit where there is one."""
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=PACKAGE, capture_output=True, text=True, check=False)
    return library_versions() | ({"commit": git.stdout.strip()} if git.returncode == 0 else {})


def _forget_peak() -> None:
    """Linux forgets the process's highest memory when asked so: else a worker's second unit would show the first's."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mib() -> float:
    """The process's highest resident memory since then, or where that can't be read, since its start."""
    try:
        line = next(li for li in Path("/proc/self/status").read_text().splitlines() if li.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextmanager
def measured(device: torch.device) -> Iterator[dict[str, object]]:
    """A mapping that on exit holds seconds, peak memory in MiB (of the GPU, else of the process) and the device."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        _forget_peak()
    facts: dict[str, object] = {}
    started = time.monotonic()
    yield facts
    facts["seconds"] = round(time.monotonic() - started, 3)
    facts["peak_mib"] = round(torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else _peak_mib())
    facts["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    facts["versions"] = versions()
