"""Decides which training units share a batch, and how many; used by the train stage and by fleet workers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from persres.errors import PersresError
from persres.methods.common.base import TrainingData
from persres.methods.common.registry import can_train_batched, method_named
from persres.methods.common.train_units import (
    TrainOptions,
    checkpointed_activations,
    read_training_data,
    train_unit,
    train_units,
)
from persres.models.loading import pick_device
from persres.units.batches import Job
from persres.units.memory_budget import concepts_within, free_mib, used_mib
from persres.units.provenance import measured
from persres.units.specs import TrainSpec
from persres.units.unit import Unit

# Larger batches gain nothing. On the CPU, a concept's step of the mini world takes 0.50 s alone, 0.27 of 4, 0.24 of 8 and 0.23 of 16. On a
# GPU, 64 concepts with 4 samples each fit the widest layer of Stable Diffusion into 2^31 elements, the limit of 32-bit kernels.
MAX_CONCEPTS = {"cuda": 64}
MAX_CONCEPTS_ELSEWHERE = 8


def training_job(
    units: list[Unit[TrainSpec]],
    cpu_offload: bool = False,
    gradient_checkpointing: bool = False,
    concepts_per_batch: int | Literal["auto"] = "auto",
    previews: dict[str, Any] | None = None,
) -> Job:
    """The job that trains units, several concepts of a variant in one pass where the method can; ``auto``: as many as fit."""
    options: dict[str, Any] = {"cpu_offload": cpu_offload, "gradient_checkpointing": gradient_checkpointing}
    size = partial(concepts_that_fit, **options) if concepts_per_batch == "auto" else concepts_per_batch
    options |= {} if previews is None else {"previews": previews}
    return Job(partial(train_unit, **options), partial(train_units, **options), batch_key, size)


def batch_key(unit: Unit[TrainSpec]) -> str | None:
    """Equal for units that may share a batch: of one variant, base model and code. None if their method cannot batch."""
    spec = unit.spec
    if not can_train_batched(spec.settings, spec.base):
        return None
    # fields that may differ are blank; all have class images or none has
    shared = spec.model_copy(update={"concept": "", "macro_class": "", "photos": (), "class_images": None})
    return hashlib.sha256(f"{shared.identity()}{spec.class_images is None}".encode()).hexdigest()


def concepts_that_fit(
    units: Iterable[Unit[TrainSpec]],
    device: str,
    workers: int,
    cpu_offload: bool = False,
    gradient_checkpointing: bool = False,
) -> int:
    """How many concepts fit into memory in one batch, from the first step of one. Raises PersresError if none is readable."""
    unit, data = _first_readable(units)
    spec, place = unit.spec, pick_device(device)
    settings = spec.settings.model_copy(update={"steps": 1})
    diffusion = TrainOptions(device, cpu_offload).load(spec)
    model = used_mib(place)
    checkpointing = checkpointed_activations(diffusion.unet, gradient_checkpointing)
    with measured(place) as facts, TemporaryDirectory() as folder, checkpointing:
        method, checkpoint = method_named(settings.method), Path(folder) / "none"
        method.train_batched(diffusion, [data], settings, checkpoint, lambda step, loss: None)
    count = concepts_within(free_mib(place), model, facts["peak_mib"] - model, workers)
    return min(count, MAX_CONCEPTS.get(place.type, MAX_CONCEPTS_ELSEWHERE))


def _first_readable(units: Iterable[Unit[TrainSpec]]) -> tuple[Unit[TrainSpec], TrainingData]:
    for unit in units:
        try:
            return unit, read_training_data(unit.spec)
        except (PersresError, OSError):
            continue  # it fails under its own name when it runs
    raise PersresError("no concept has readable photos")
