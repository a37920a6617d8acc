"""Images of a training that goes on, sampled every so many steps; they change nothing of its result."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from persres.config.previews import Previews
from persres.config.schema import SamplingConfig
from persres.errors import PersresError
from persres.images import png_bytes, to_images
from persres.models.diffusion import Diffusion
from persres.prompts import fill
from persres.residuals.bank import ResidualBank
from persres.sampling.sample import MultiConceptImage, Request, sample_batch
from persres.units.files import write_atomic

log = logging.getLogger(__name__)
OnStep = Callable[[int, float], None]


@dataclass(frozen=True)
class PreviewedConcept:
    """A concept of the bank: its name, the phrase of a prompt, and its class."""

    name: str
    phrase: str
    macro_class: str


@dataclass
class PreviewSampler:
    """Samples the previews of a training. One that can't be sampled or written is logged, and there are no more: training goes on."""

    settings: Previews
    diffusion: Diffusion
    bank: ResidualBank
    concepts: list[PreviewedConcept]
    resolution: int
    failed: bool = False

    def after(self, on_step: OnStep) -> OnStep:
        """``on_step``, followed by the previews of the steps that have some."""

        def step_and_preview(step: int, loss: float) -> None:
            on_step(step, loss)
            if (step + 1) % self.settings.every == 0 and not self.failed:
                self._write_all(step + 1)

        return step_and_preview

    def _write_all(self, steps: int) -> None:
        try:
            for row, concept in enumerate(self.concepts):
                path = preview_file(self.settings, concept.name, steps)
                write_atomic(path, self._sample(row, concept))
                log.info("preview after %d steps: %s", steps, path)
        except (PersresError, RuntimeError, OSError) as error:
            self.failed = True
            log.warning("no more previews, training goes on: %s", error)

    @torch.no_grad()
    def _sample(self, row: int, concept: PreviewedConcept) -> bytes:
        settings = self.settings
        sampling = SamplingConfig(steps=settings.steps, cfg_scale=settings.cfg_scale, seed=settings.seed)
        prompt, plain = (fill(settings.prompt, words) for words in (concept.phrase, concept.macro_class))
        image = MultiConceptImage(prompt, (concept.phrase,), (row,), plain, 0)
        [(pixels, _)] = sample_batch(self.diffusion, [Request([image], sampling, self.bank)], self.resolution)
        return png_bytes(to_images(pixels)[0])


def preview_file(settings: Previews, concept: str, steps: int) -> Path:
    """The file of a concept's preview after so many steps."""
    return Path(settings.folder) / f"{concept}_step_{steps:04d}.png"
