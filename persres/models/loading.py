"""Common to the loading of all models: the device, the error, and the identity in a spec."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch

from persres.errors import ModelError, PersresError
from persres.package_paths import located
from persres.units.files import digest_file, digest_folder


def pick_device(name: str) -> torch.device:
    """Returns the device; ``auto`` is CUDA, then Apple's MPS, then the CPU. Raises PersresError where there is no such device."""
    if name != "auto":
        return _usable_device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@lru_cache
def _usable_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except Exception as error:  # torch has an error class per backend
        reason = str(error).strip().split("\n")[0][:200]
        raise PersresError(f"device {name!r} can't be used ({reason}); give cpu, cuda, mps or auto") from error
    return device


def unavailable(what: str, name: str, error: Exception) -> ModelError:
    """Returns the error for a model that is neither local nor on the hub."""
    reason = str(error).strip().split("\n")[0][:200]
    return ModelError(f"cannot load {what} {name!r} ({reason}); give its folder, or connect to the hub that has it")


def model_identity(name: str) -> str:
    """Returns a model's identity in a spec: its name, and for a local folder or file the digest of its content."""
    path = Path(located(name).removeprefix("local-dir:"))
    return f"{name}@{_digest(path)[:16]}" if path.exists() else name


@lru_cache
def _digest(path: Path) -> str:
    return digest_folder(path) if path.is_dir() else digest_file(path)
