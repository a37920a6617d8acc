"""persres: personalized residuals and localized attention-guided sampling for Stable Diffusion.

The names below are read when they are first used, so that ``import persres`` takes no time. A script that starts worker processes
guards its calls, since workers import it again:

    import persres

    if __name__ == "__main__":
        persres.personalize("my-dog", macro_class="dog")
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from persres.models.compat import declare_before_torchvision

__version__ = "0.1.0"
_PUBLIC = {
    "PersonalizedPipeline": "persres.pipeline",
    "PersresError": "persres.errors",
    "find_targets": "persres.residuals.targets",
    "load_bank": "persres.residuals.file",
    "load_residual": "persres.residuals.file",
    "personalize": "persres.personalization",
}
__all__ = [
    "PersonalizedPipeline",
    "PersresError",
    "__version__",
    "find_targets",
    "load_bank",
    "load_residual",
    "personalize",
]


declare_before_torchvision()


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'persres' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
