"""How concepts are learned: residuals, other weights, class images."""

import persres.models  # noqa: F401  (before diffusers is imported)
