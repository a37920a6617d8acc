"""No progress bars while a model loads: for commands, whose output is a file's name a line."""

from __future__ import annotations

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging


def quiet_loading() -> None:
    """Disables the progress bars of diffusers and transformers for this process."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
