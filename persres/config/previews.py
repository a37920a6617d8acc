"""The setting ``runtime.previews``."""

from __future__ import annotations

from pydantic import Field

from persres.config.section import Scale, Section


class Previews(Section):
    """Images that training samples every so many steps, of one prompt and noise, into ``<folder>/<concept>_step_0050.png``."""

    every: int = Field(50, ge=1)
    folder: str = "previews"
    prompt: str = "a photo of a {}"
    steps: int = Field(50, ge=1, le=1000)
    cfg_scale: Scale = 6.0
    seed: int = 0
