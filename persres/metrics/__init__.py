"""Scores as the reference evaluation computes them (adobe-research/custom-diffusion, customconcept101)."""
