"""Which units of training go together, and how many: what the train stage and a fleet's agents give their units to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from persres.errors import PersresError
from persres.methods.common.base import TrainingData
from persres.methods.common.registry import can_train_batched, method_named
from persres.methods.common.train_units import checkpointed_activations, read_training_data, train_unit, train_units
from persres.models.diffusion import load_diffusion
from persres.models.loading import pick_device
from persres.units.batches import Batches
from persres.units.memory_budget import concepts_within, free_mib, used_mib
from persres.units.provenance import measured
from persres.units.specs import TrainSpec
from persres.units.unit import Unit

# More would gain nothing. On the CPU a concept's step of the mini world takes 0.50 s alone, 0.27 of 4, 0.24 of 8 and 0.23 of 16. On a
# GPU 64 concepts of 4 samples keep the widest layer of Stable Diffusion below 2^31 numbers, which kernels count in 32 bits.
MOST = {"cuda": 64}
MOST_ELSEWHERE = 8


def training_work(
    cpu_offload: bool = False, gradient_checkpointing: bool = False, together: int | None = None
) -> Batches:
    """What trains units, so many concepts at once where their method can; None: as many as there is room for."""
    options = {"cpu_offload": cpu_offload, "gradient_checkpointing": gradient_checkpointing}
    measure = partial(concepts_that_fit, **options)
    return Batches(partial(train_unit, **options), partial(train_units, **options), batch_key, measure, together)


def batch_key(unit: Unit[TrainSpec]) -> str | None:
    """The same for units that may learn in one pass: of one variant, base and code. None where their method can't."""
    spec = unit.spec
    if not can_train_batched(spec.settings, spec.base):
        return None
    # what they may differ in is blanked; all have class images or none
    shared = spec.model_copy(update={"concept": "", "macro_class": "", "photos": (), "class_images": None})
    return hashlib.sha256(f"{shared.identity()}{spec.class_images is None}".encode()).hexdigest()


def concepts_that_fit(
    units: Iterable[Unit[TrainSpec]],
    device: str,
    workers: int,
    cpu_offload: bool = False,
    gradient_checkpointing: bool = False,
) -> int:
    """How many concepts' steps fit into memory at once, by the first step of one of them. Raises PersresError where none can be read."""
    unit, material = _first(units)
    spec, place = unit.spec, pick_device(device)
    method, settings = method_named(spec.settings.method), spec.settings.model_copy(update={"steps": 1})
    diffusion = load_diffusion(method.base_for(spec.base), device, cpu_offload and method.can_cpu_offload(settings))
    model = used_mib(place)
    with (
        measured(place) as facts,
        TemporaryDirectory() as folder,
        checkpointed_activations(diffusion.unet, gradient_checkpointing),
    ):
        method.train_batched(diffusion, [material], settings, Path(folder) / "none", lambda step, loss: None)
    found = concepts_within(free_mib(place), model, facts["peak_mib"] - model, workers)
    return min(found, MOST.get(place.type, MOST_ELSEWHERE))


def _first(units: Iterable[Unit[TrainSpec]]) -> tuple[Unit[TrainSpec], TrainingData]:
    for unit in units:
        try:
            return unit, read_training_data(unit.spec)
        except (PersresError, OSError):
            continue  # it fails under its own name when its turn comes
    raise PersresError("no photos that can be read")
