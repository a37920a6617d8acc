"""Experiments of this project; not part of the wheel."""

import persres.models  # noqa: F401  (before diffusers is imported)
