"""The one place that works around a defect of our dependencies.

PyPI's torchvision is built against the CUDA build of torch. On a CPU build its C++ operators do not load, and then
``import torchvision`` itself fails: it registers fake versions of ``torchvision::nms`` and ``torchvision::qnms`` for schemas that nobody
declared. diffusers, transformers, open_clip and timm import torchvision for its transforms, which need no such operator. Declaring the two
schemas first lets the import succeed; calling either operator still fails, as it should.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from typing import Any

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_libraries: list[Any] = []  # torch forgets the schemas of a library that nobody holds


def declare_torchvision_ops() -> None:
    """Declare the two schemas on a CPU-only torch; does nothing elsewhere or when called again."""
    import torch

    if _libraries or torch.version.cuda or hasattr(torch.ops.torchvision, "nms"):
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}{_SCHEMA}")
    _libraries.append(library)


class _BeforeTorchvision(MetaPathFinder):
    """Finds nothing: declares the schemas when torchvision is about to be imported, by whatever module."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname == "torchvision":
            declare_torchvision_ops()


def declare_before_torchvision() -> None:
    """Declare the schemas once somebody imports torchvision. Takes no time now."""
    sys.meta_path.insert(0, _BeforeTorchvision())
