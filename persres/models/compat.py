"""The one place that mends a trap of our dependencies.

PyPI's torchvision is built against the CUDA build of torch. On a CPU build its C++ operators do not
load, and then ``import torchvision`` itself fails, because it registers fake versions of
``torchvision::nms`` and ``torchvision::qnms`` for schemas that nobody declared. open_clip, timm
and transformers import torchvision for its transforms, which need no such operator. Declaring the two
schemas first lets the import succeed; calling either operator still fails, as it should.
"""

from __future__ import annotations

import importlib.util

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_library: torch.library.Library | None = None


def declare_torchvision_ops() -> None:
    """Declare the two schemas on a CPU-only torch; does nothing elsewhere or when called again."""
    global _library
    if _library is not None or torch.version.cuda or importlib.util.find_spec("torchvision") is None:
        return
    if hasattr(torch.ops.torchvision, "nms"):
        return
    _library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        _library.define(f"{name}{_SCHEMA}")
