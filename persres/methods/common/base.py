"""What a method is. A file in ``persres/methods/`` with a ``METHOD`` that follows this protocol is one; nothing else has to
know it by name."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from PIL import Image

from persres.config.schema import Base, VariantSettings
from persres.models.diffusion import Diffusion
from persres.units.specs import ImageSpec

if TYPE_CHECKING:  # a profile asks for settings alone, and diffusers takes seconds
    from persres.residuals.bank import ResidualBank

OnStep = Callable[[int, float], None]  # step from 0, loss


@dataclass(frozen=True)
class TrainingData:
    """What one concept is learned from: its photos and images of its class, square at the working resolution."""

    concept: str
    macro_class: str
    base: Base
    photos: list[Image.Image]
    class_images: list[Image.Image]


@dataclass(frozen=True)
class TrainingResult:
    """What a training left: numbers learned, a log row a step, and how to write it to a file with its provenance."""

    parameters: int
    log: list[dict[str, Any]]
    save: Callable[[Path, dict[str, Any]], None]


@dataclass(frozen=True)
class LearnedFile:
    """Where what was learned lies, and whose it is; ``photo`` for methods that draw beside one."""

    path: Path
    concept: str
    base: Base
    photo: Path | None = None


@dataclass(frozen=True)
class LoadedMethod:
    """What was learned, ready to draw with.

    ``bank``: residuals, which LAG can mask. ``inside``: enters the other learned weights into the model. ``predictor``: gives, for a
    batch, what draws in the U-Net's place.
    """

    parameters: int
    bank: ResidualBank | None = None
    inside: Callable[[], AbstractContextManager[None]] = nullcontext
    predictor: Callable[[list[ImageSpec]], Any] | None = None
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)


class Method(Protocol):
    """One way to learn a concept and to draw it."""

    name: str
    settings: type[VariantSettings]
    needs_photo: bool  # draws beside one of the concept's photos
    # It may say draws_mixed = True: its pictures need the base model and a residual alone, and can share a batch with others'.

    def phrase(self, settings: VariantSettings, base: Base, macro_class: str) -> str:
        """What stands for the concept in a prompt."""
        ...

    def base_for(self, base: Base) -> Base:
        """The base model as it trains on it."""
        ...

    def refuses(self, settings: VariantSettings, family: str) -> str | None:
        """What of it is not to be had for models of this family (the pipeline's class name), or None."""
        ...

    def can_cpu_offload(self, settings: VariantSettings) -> bool:
        """Whether text towers may wait on the CPU while it trains."""
        ...

    def train(
        self, diffusion: Diffusion, material: TrainingData, settings: VariantSettings, checkpoint: Path, on_step: OnStep
    ) -> TrainingResult:
        """Learn; goes on from the checkpoint where there is one. The model is left as it was."""
        ...

    def load(self, diffusion: Diffusion, source: LearnedFile, strength: float) -> LoadedMethod:
        """What was learned, for drawing. Raises PersresError where the file is not this method's or of another model."""
        ...


@runtime_checkable
class BatchedTraining(Protocol):
    """What a method may have beside: several concepts of one variant learned in one pass, each as it would be alone, to float
    tolerance. A method without it learns one concept after another."""

    def can_train_batched(self, settings: VariantSettings, base: Base) -> bool:
        """Whether it can, with these settings."""
        ...

    def train_batched(
        self,
        diffusion: Diffusion,
        materials: list[TrainingData],
        settings: VariantSettings,
        checkpoint: Path,
        on_step: OnStep,
    ) -> list[TrainingResult]:
        """As :meth:`Method.train`, of several concepts in order; one checkpoint holds them all."""
        ...
