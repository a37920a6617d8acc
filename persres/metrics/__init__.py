"""Scores as the reference evaluation computes them (adobe-research/custom-diffusion, customconcept101)."""

import persres.models  # noqa: F401  (before torchvision is imported)
