"""A unit of training: one concept by one variant, whatever its method; or several concepts by one variant in one pass."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

import persres.models.preload  # noqa: F401  (in the process that workers are forked from)
from persres.images import load_photo, square
from persres.logging import progress
from persres.methods.common.base import TrainingData, TrainingResult
from persres.methods.common.registry import method_named
from persres.models.diffusion import load_diffusion
from persres.models.loading import pick_device
from persres.training.class_images import read_class_images
from persres.units.oom_retry import is_out_of_memory
from persres.units.provenance import library_versions, measured
from persres.units.specs import TrainSpec
from persres.units.unit import Unit, batch_folder, finish, finish_batch

LEARNED, LOG, CHECKPOINT = "learned.safetensors", "log.jsonl", "checkpoint.safetensors"


def read_training_data(spec: TrainSpec) -> TrainingData:
    """Photos and class images. Raises PersresError naming the first that can't be read."""
    size = spec.base.resolution
    photos = [square(load_photo(Path(photo.path)), size) for photo in spec.photos]
    images = read_class_images(Path(spec.class_images.path), size) if spec.class_images else []
    return TrainingData(spec.concept, spec.macro_class, spec.base, photos, images)


@contextmanager
def checkpointed_activations(unet: nn.Module, asked: bool) -> Iterator[None]:
    """Within the context, where it is asked for, the denoiser keeps few activations and makes the others anew on the way back (gradient
    checkpointing): the same numbers with less memory, for about a third more time."""
    if asked:
        unet.enable_gradient_checkpointing()
    try:
        yield
    finally:
        if asked:
            unet.disable_gradient_checkpointing()


def train_unit(
    unit: Unit[TrainSpec], work: Path, device: str, cpu_offload: bool = False, gradient_checkpointing: bool = False
) -> None:
    """Learn one concept and write ``learned.safetensors`` and ``log.jsonl``; goes on from its checkpoint after a kill."""
    spec, folder = unit.spec, unit.folder(work)
    method, checkpoint = method_named(spec.settings.method), folder / CHECKPOINT
    diffusion = load_diffusion(
        method.base_for(spec.base), device, cpu_offload and method.can_cpu_offload(spec.settings)
    )
    with measured(pick_device(device)) as facts, progress(unit.name, spec.settings.steps) as advance:

        def on_step(step: int, loss: float) -> None:
            facts["steps"] = facts.get("steps", 0) + 1  # of this run: a resumed one's seconds are not the whole
            advance(note=f"loss {loss:.4f}")

        with checkpointed_activations(diffusion.unet, gradient_checkpointing):
            learned = method.train(diffusion, read_training_data(spec), spec.settings, checkpoint, on_step)
    files = _write(unit, folder, learned)
    # of_steps: fewer than the settings' where it settled
    finish(unit, work, files, facts | {"parameters": learned.parameters, "of_steps": len(learned.log)})
    checkpoint.unlink(missing_ok=True)


def _write(unit: Unit[TrainSpec], folder: Path, learned: TrainingResult) -> list[Path]:
    info = {
        "spec": unit.spec.model_dump(mode="json"),
        "spec_hash": unit.hash,
        "parameters": learned.parameters,
        "steps": len(learned.log),
        "versions": library_versions(),
    }
    learned.save(folder / LEARNED, info)
    (folder / LOG).write_text("".join(json.dumps(row) + "\n" for row in learned.log))
    return [folder / LEARNED, folder / LOG]


def train_units(
    units: list[Unit[TrainSpec]],
    work: Path,
    device: str,
    cpu_offload: bool = False,
    gradient_checkpointing: bool = False,
) -> dict[str, Exception]:
    """Learn several concepts of one variant in one pass: each unit's files and manifest are as :func:`learn_unit` leaves them, and the
    batch has one checkpoint, from which it goes on after a kill.

    Returns errors by name of the units whose material can't be read; the others learn without them. Raises what may not happen
    in a smaller batch: too little memory, and whatever comes before the first step.
    """
    materials, errors = _read(units)
    able = [unit for unit in units if unit.name in materials]
    if len(able) < 2:
        for unit in able:
            train_unit(unit, work, device, cpu_offload, gradient_checkpointing)
        return errors
    facts: dict[str, Any] = {}
    try:
        _learn(able, [materials[unit.name] for unit in able], work, device, cpu_offload, gradient_checkpointing, facts)
    except Exception as error:
        if is_out_of_memory(error) or not facts.get("steps"):
            raise
        return errors | {unit.name: error for unit in able}
    return errors


def _read(units: list[Unit[TrainSpec]]) -> tuple[dict[str, TrainingData], dict[str, Exception]]:
    materials, errors = {}, {}
    for unit in units:
        try:
            materials[unit.name] = read_training_data(unit.spec)
        except Exception as error:
            errors[unit.name] = error
    return materials, errors


def _learn(
    units: list[Unit[TrainSpec]],
    materials: list[TrainingData],
    work: Path,
    device: str,
    cpu_offload: bool,
    gradient_checkpointing: bool,
    facts: dict[str, Any],
) -> None:
    spec, folder = units[0].spec, batch_folder(units, work)
    method = method_named(spec.settings.method)
    diffusion = load_diffusion(
        method.base_for(spec.base), device, cpu_offload and method.can_cpu_offload(spec.settings)
    )
    names = ", ".join([units[0].name, *(unit.spec.concept for unit in units[1:])])
    with measured(pick_device(device)) as seen, progress(names, spec.settings.steps) as advance:

        def on_step(step: int, loss: float) -> None:
            facts["steps"] = facts.get("steps", 0) + 1
            advance(note=f"loss {loss:.4f}")

        with checkpointed_activations(diffusion.unet, gradient_checkpointing):
            learned = method.train_batched(diffusion, materials, spec.settings, folder / CHECKPOINT, on_step)
    facts |= seen
    files = [_write(unit, unit.folder(work), one) for unit, one in zip(units, learned, strict=True)]
    finish_batch(units, work, files, [_share(facts, learned, one) for one in learned])
    for unit in units:  # of a run that had begun to learn it alone
        (unit.folder(work) / CHECKPOINT).unlink(missing_ok=True)


def _share(facts: dict[str, Any], learned: list[TrainingResult], own: TrainingResult) -> dict[str, Any]:
    """A unit's own facts: seconds are divided, and the steps of this run are all of its own where all of the batch's are."""
    before = max(len(one.log) for one in learned) - facts.get("steps", 0)
    return facts | {
        "seconds": round(facts["seconds"] / len(learned), 3),
        "together": len(learned),
        "parameters": own.parameters,
        "steps": max(0, len(own.log) - before),
        "of_steps": len(own.log),
    }
