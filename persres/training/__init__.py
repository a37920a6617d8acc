"""Training of residuals and of the rivals' weights; class images."""

import persres.models  # noqa: F401  (before diffusers is imported)
