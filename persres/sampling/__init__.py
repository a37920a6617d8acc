"""Sampling: DDIM, masks, localized attention-guided sampling (LAG)."""

import persres.models  # noqa: F401  (before diffusers is imported)
