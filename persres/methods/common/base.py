"""The protocol of a training method.

A method is a file in ``persres/methods/`` with a ``METHOD`` that implements :class:`Method`. No other code knows it by name.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from PIL import Image

from persres.config.previews import Previews
from persres.config.schema import Base, VariantSettings
from persres.units.specs import ImageSpec

if TYPE_CHECKING:  # reading a profile needs the settings only; torch and diffusers take seconds to import
    import torch

    from persres.models.diffusion import Diffusion
    from persres.residuals.bank import ResidualBank

OnStep = Callable[[int, float], None]  # step from 0, loss


@dataclass(frozen=True)
class TrainingData:
    """The photos of one concept and its class images, square, at the training resolution; with ``whole_photos`` the photos as they are.
    ``previews``: images of the training that a method may sample."""

    concept: str
    macro_class: str
    base: Base
    photos: list[Image.Image]
    class_images: list[Image.Image]
    previews: Previews | None = None


@dataclass(frozen=True)
class TrainingResult:
    """The result of a training: number of trained parameters, one log row per step, and ``save(path, info)``."""

    parameters: int
    log: list[dict[str, Any]]
    save: Callable[[Path, dict[str, Any]], None]


@dataclass(frozen=True)
class LearnedFile:
    """A file that training wrote, and its concept. ``photo``: for methods that sample with a reference photo."""

    path: Path
    concept: str
    base: Base
    photo: Path | None = None


@dataclass(frozen=True)
class LoadedMethod:
    """A trained method, ready to sample.

    ``bank``: residuals, which LAG can mask. ``patch``: a context manager that patches the model with the other trained weights.
    ``predictor``: returns, for a batch, a callable that replaces the U-Net. ``tensors``: all trained tensors that are no residual.
    """

    parameters: int
    bank: ResidualBank | None = None
    patch: Callable[[], AbstractContextManager[None]] = nullcontext
    predictor: Callable[[list[ImageSpec]], Any] | None = None
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)


class Method(Protocol):
    """A way to train a concept and to sample it."""

    name: str
    settings: type[VariantSettings]
    needs_photo: bool  # samples with one of the concept's photos as a reference
    # Optional: sd14_file_bytes(settings) -> int | None, the size of its file on Stable Diffusion v1.4, for the cost estimate.
    # Optional: batched_sampling = True if its images need only the base model and a residual; they then share batches with others.

    def phrase(self, settings: VariantSettings, base: Base, macro_class: str) -> str:
        """The phrase for the concept in a prompt."""
        ...

    def base_for(self, base: Base) -> Base:
        """The base model that it trains on."""
        ...

    def refuses(self, settings: VariantSettings, family: str) -> str | None:
        """The part that models of this family (the pipeline's class name) do not support, or None."""
        ...

    def can_cpu_offload(self, settings: VariantSettings) -> bool:
        """Whether the text encoders may stay on the CPU during training."""
        ...

    def train(
        self, diffusion: Diffusion, data: TrainingData, settings: VariantSettings, checkpoint: Path, on_step: OnStep
    ) -> TrainingResult:
        """Train; resumes from the checkpoint, if there is one. The model itself does not change."""
        ...

    def load(self, diffusion: Diffusion, source: LearnedFile, strength: float) -> LoadedMethod:
        """Load a trained file for sampling. Raises PersresError if the file belongs to another method or model."""
        ...


@runtime_checkable
class BatchedTraining(Protocol):
    """Optional part of a method: train several concepts of one variant in one batch.

    Each result equals a separate run, to float tolerance. Without it, concepts train one after another.
    """

    def can_train_batched(self, settings: VariantSettings, base: Base) -> bool:
        """Whether these settings allow it."""
        ...

    def train_batched(
        self,
        diffusion: Diffusion,
        data: list[TrainingData],
        settings: VariantSettings,
        checkpoint: Path,
        on_step: OnStep,
    ) -> list[TrainingResult]:
        """As :meth:`Method.train`, for several concepts in order, with one checkpoint for all."""
        ...
