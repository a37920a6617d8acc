"""What is learned: low-rank residuals, and their file."""

import persres.models  # noqa: F401  (before diffusers is imported)
