"""Trains units: one concept by one variant, or several concepts of one variant in one batch, for any method."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

import persres.models.preload  # noqa: F401  (in the process that workers are forked from)
from persres.config.previews import Previews
from persres.images import load_photo, square
from persres.logging import progress
from persres.methods.common.base import OnStep, TrainingData, TrainingResult
from persres.methods.common.registry import method_named
from persres.models.diffusion import Diffusion, load_diffusion
from persres.models.loading import pick_device
from persres.residuals.header import without_folders
from persres.training.class_images import read_class_images
from persres.training.divergence import DivergedError
from persres.units.oom_retry import is_out_of_memory
from persres.units.provenance import library_versions, measured
from persres.units.specs import TrainSpec
from persres.units.unit import Unit, batch_folder, finish, finish_batch

LEARNED, LOG, CHECKPOINT = "learned.safetensors", "log.jsonl", "checkpoint.safetensors"


@dataclass(frozen=True)
class TrainOptions:
    """Where and how training runs; no option changes its result beyond float tolerance."""

    device: str
    cpu_offload: bool = False
    gradient_checkpointing: bool = False
    previews: dict[str, Any] | None = None  # fields of Previews: options travel to other machines as JSON

    def load(self, spec: TrainSpec) -> Diffusion:
        """The base model of the spec, as its method trains on it."""
        method = method_named(spec.settings.method)
        offload = self.cpu_offload and method.can_cpu_offload(spec.settings)
        return load_diffusion(method.base_for(spec.base), self.device, offload)


def read_training_data(spec: TrainSpec) -> TrainingData:
    """The photos and class images of a spec. Raises PersresError naming the first unreadable one."""
    size = spec.base.resolution
    photos = [load_photo(Path(photo.path)) for photo in spec.photos]
    if not spec.settings.whole_photos():
        photos = [square(photo, size) for photo in photos]
    images = read_class_images(Path(spec.class_images.path), size) if spec.class_images else []
    return TrainingData(spec.concept, spec.macro_class, spec.base, photos, images)


@contextmanager
def checkpointed_activations(unet: nn.Module, enabled: bool) -> Iterator[None]:
    """Within the context, the U-Net uses gradient checkpointing, if enabled: the same numbers with less memory, in about a third more time."""
    if enabled:
        unet.enable_gradient_checkpointing()
    try:
        yield
    finally:
        if enabled:
            unet.disable_gradient_checkpointing()


def train_unit(unit: Unit[TrainSpec], work: Path, device: str, **more: Any) -> None:
    """Train one concept and write ``learned.safetensors`` and ``log.jsonl``; resumes from its checkpoint after a kill.

    ``more``: fields of :class:`TrainOptions`."""
    options = TrainOptions(device, **more)
    _train([unit], [read_training_data(unit.spec)], work, options, {})


def train_units(units: list[Unit[TrainSpec]], work: Path, device: str, **more: Any) -> dict[str, Exception]:
    """Train several concepts of one variant in one batch. Each unit gets the files and manifest that :func:`train_unit` writes.

    The batch has one checkpoint, from which it resumes after a kill. Returns errors by name of the units whose data cannot be read; the
    others train without them; so with units whose training diverges. Raises errors that a smaller batch may avoid: too little memory, and any before the first step.
    """
    options = TrainOptions(device, **more)
    data, errors = _read(units)
    readable = [unit for unit in units if unit.name in data]
    facts: dict[str, Any] = {}
    try:
        if readable:
            _train(readable, [data[unit.name] for unit in readable], work, options, facts)
    except DivergedError as error:
        if len(readable) == 1:
            raise
        return errors | _without(error, readable, work, options)
    except Exception as error:
        if len(readable) == 1 or is_out_of_memory(error) or not facts.get("steps"):
            raise
        return errors | {unit.name: error for unit in readable}
    return errors


def _without(
    error: DivergedError, units: list[Unit[TrainSpec]], work: Path, options: TrainOptions
) -> dict[str, Exception]:
    """Train the units again without those that diverged; each would do so alone too."""
    shutil.rmtree(batch_folder(units, work), ignore_errors=True)
    diverged = {unit.name: error for unit in units if unit.spec.concept in error.concepts}
    rest = [unit for unit in units if unit.name not in diverged]
    return diverged | train_units(rest, work, **vars(options))


def _read(units: list[Unit[TrainSpec]]) -> tuple[dict[str, TrainingData], dict[str, Exception]]:
    data, errors = {}, {}
    for unit in units:
        try:
            data[unit.name] = read_training_data(unit.spec)
        except Exception as error:
            errors[unit.name] = error
    return data, errors


def _train(
    units: list[Unit[TrainSpec]], data: list[TrainingData], work: Path, options: TrainOptions, facts: dict[str, Any]
) -> None:
    """Train and finish the units. ``facts`` is filled as the run goes on, so that a caller sees how far it came."""
    spec, folder = units[0].spec, units[0].folder(work) if len(units) == 1 else batch_folder(units, work)
    diffusion = options.load(spec)
    names = ", ".join([units[0].name, *(unit.spec.concept for unit in units[1:])])
    with measured(pick_device(options.device)) as run, progress(names, spec.settings.steps) as advance:

        def on_step(step: int, loss: float) -> None:
            facts["steps"] = facts.get("steps", 0) + 1  # of this run, which may have resumed
            advance(note=f"loss {loss:.4f}")

        with checkpointed_activations(diffusion.unet, options.gradient_checkpointing):
            previews = None if options.previews is None else Previews(**options.previews)
            data = [replace(one, previews=previews) for one in data]
            results = _results(diffusion, spec, data, folder / CHECKPOINT, on_step)
    _finish(units, results, work, facts | run)


def _results(
    diffusion: Diffusion, spec: TrainSpec, data: list[TrainingData], checkpoint: Path, on_step: OnStep
) -> list[TrainingResult]:
    method = method_named(spec.settings.method)
    if len(data) == 1:
        return [method.train(diffusion, data[0], spec.settings, checkpoint, on_step)]
    return method.train_batched(diffusion, data, spec.settings, checkpoint, on_step)


def _finish(units: list[Unit[TrainSpec]], results: list[TrainingResult], work: Path, facts: dict[str, Any]) -> None:
    files = [_write(unit, unit.folder(work), result) for unit, result in zip(units, results, strict=True)]
    shares = [_share(facts, results, result) for result in results]
    if len(units) == 1:
        finish(units[0], work, files[0], shares[0])
    else:
        finish_batch(units, work, files, shares)
    for unit in units:  # also of an earlier run that trained the unit alone
        (unit.folder(work) / CHECKPOINT).unlink(missing_ok=True)


def _write(unit: Unit[TrainSpec], folder: Path, result: TrainingResult) -> list[Path]:
    info = {
        "spec": without_folders(unit.spec.model_dump(mode="json")),
        "spec_hash": unit.hash,
        "parameters": result.parameters,
        "steps": len(result.log),
        "versions": library_versions(),
    }
    result.save(folder / LEARNED, info)
    (folder / LOG).write_text("".join(json.dumps(row) + "\n" for row in result.log))
    return [folder / LEARNED, folder / LOG]


def _share(facts: dict[str, Any], results: list[TrainingResult], result: TrainingResult) -> dict[str, Any]:
    """The facts of one unit: its share of the seconds, its steps in this run, and in all (``of_steps``)."""
    before = max(len(one.log) for one in results) - facts.get("steps", 0)
    return facts | {
        "seconds": round(facts["seconds"] / len(results), 3),
        "units_per_batch": len(results),
        "parameters": result.parameters,
        "steps": max(0, len(result.log) - before),
        "of_steps": len(result.log),
    }
