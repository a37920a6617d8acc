"""persres: personalized residuals and localized attention-guided sampling for Stable Diffusion."""

from persres.compat import declare_torchvision_ops

__version__ = "0.1.0"

declare_torchvision_ops()
