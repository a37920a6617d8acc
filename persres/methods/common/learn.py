"""A unit of training: one concept by one variant, whatever its method."""

from __future__ import annotations

import json
from pathlib import Path

import persres.models.ready  # noqa: F401  (in the process that workers are forked from)
from persres.images import load_photo, square
from persres.methods.common.base import Material
from persres.methods.common.registry import method_named
from persres.models.diffusion import load_diffusion
from persres.models.loading import pick_device
from persres.progress import progress
from persres.runs.provenance import library_versions, measured
from persres.runs.specs import TrainSpec
from persres.runs.units import Unit, finish
from persres.training.class_images import read_class_images

LEARNED, LOG = "learned.safetensors", "log.jsonl"


def read_material(spec: TrainSpec) -> Material:
    """Photos and class images. Raises PersresError naming the first that can't be read."""
    size = spec.base.resolution
    photos = [square(load_photo(Path(photo.path)), size) for photo in spec.photos]
    images = read_class_images(Path(spec.class_images.path), size) if spec.class_images else []
    return Material(spec.concept, spec.macro_class, spec.base, photos, images)


def learn_unit(unit: Unit[TrainSpec], work: Path, device: str, offload: bool = False) -> None:
    """Learn one concept and write ``learned.safetensors`` and ``log.jsonl``; goes on from its checkpoint after a kill."""
    spec, folder = unit.spec, unit.folder(work)
    method, checkpoint = method_named(spec.settings.method), folder / "checkpoint.safetensors"
    diffusion = load_diffusion(method.base_for(spec.base), device, offload and method.can_offload(spec.settings))
    with measured(pick_device(device)) as facts, progress(unit.name, spec.settings.steps) as advance:

        def on_step(step: int, loss: float) -> None:
            facts["steps"] = facts.get("steps", 0) + 1  # of this run: a resumed one's seconds are not the whole
            advance(note=f"loss {loss:.4f}")

        learned = method.train(diffusion, read_material(spec), spec.settings, checkpoint, on_step)
    facts |= {
        "parameters": learned.parameters,
        "of_steps": len(learned.log),
    }  # fewer than the settings' where it settled
    info = {
        "spec": spec.model_dump(mode="json"),
        "spec_hash": unit.hash,
        "parameters": learned.parameters,
        "steps": len(learned.log),
        "versions": library_versions(),
    }
    learned.save(folder / LEARNED, info)
    (folder / LOG).write_text("".join(json.dumps(row) + "\n" for row in learned.log))
    finish(unit, work, [folder / LEARNED, folder / LOG], facts)
    checkpoint.unlink(missing_ok=True)
