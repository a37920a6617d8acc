"""The one place that works around a defect of our dependencies.

PyPI's torchvision is built against the CUDA build of torch. Next to a CPU build its C++ operators do not load, and then
``import torchvision`` itself fails: it registers fake versions of ``torchvision::nms`` and ``torchvision::qnms`` for schemas that nobody
declared. diffusers, transformers, open_clip and timm import torchvision for its transforms, which need no such operator. Declaring the two
schemas first lets the import succeed; calling either operator still fails, as it should. A torchvision that fits its torch, as pytorch.org's CPU
build or macOS's does, declares them itself, and torch ends the process at a second declaration: so its library is loaded first where it can be.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_libraries: list[Any] = []  # torch forgets the schemas of a library that nobody holds


def declare_torchvision_ops() -> None:
    """Declare the two schemas where torchvision's own operators do not load; does nothing elsewhere or when called again."""
    import torch

    ready = hasattr(torch, "ops") and hasattr(
        torch, "library"
    )  # not where torch itself, half imported, asks for torchvision
    if _libraries or not ready or torch.version.cuda or hasattr(torch.ops.torchvision, "nms") or _operators_load():
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}{_SCHEMA}")
    _libraries.append(library)


def _operators_load() -> bool:
    """Load torchvision's operators, which declare their schemas; False where there are none or they are of another build of torch."""
    import torch

    spec = PathFinder.find_spec("torchvision")
    folder = Path(spec.origin).parent if spec is not None and spec.origin else None
    for library in sorted(folder.glob("_C.*")) if folder else ():
        try:
            torch.ops.load_library(str(library))
        except OSError:
            continue
        return True
    return False


class _BeforeTorchvision(MetaPathFinder):
    """Finds nothing: declares the schemas when torchvision is about to be imported, by whatever module."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname == "torchvision":
            declare_torchvision_ops()


def declare_before_torchvision() -> None:
    """Declare the schemas once somebody imports torchvision. Takes no time now."""
    sys.meta_path.insert(0, _BeforeTorchvision())
