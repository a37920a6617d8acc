"""How pictures are drawn: samplers, masks, localized attention-guided sampling."""

import persres.models  # noqa: F401  (before diffusers is imported)
