"""Units of sampling that share a batch: images of several concepts and configs, where one unit has too few to fill it."""

from __future__ import annotations

import hashlib
import shutil
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from persres.logging import progress
from persres.methods.common.base import LoadedMethod
from persres.methods.common.registry import method_named
from persres.methods.common.sample_units import ARCHIVE, archive_bytes, load_method, sample_unit
from persres.models.diffusion import Diffusion, load_diffusion
from persres.models.loading import pick_device
from persres.sampling.mask_config import mask_config_of
from persres.sampling.sample import Request, sample_batch
from persres.units.batches import Job
from persres.units.files import write_atomic
from persres.units.provenance import measured
from persres.units.specs import SampleSpec
from persres.units.unit import Unit, finish

Units = list[Unit[SampleSpec]]


def sampling_job(units: Units, cpu_offload: bool = False, batch: int = 8) -> Job:
    """The job that samples units: one by one if a unit fills a batch of images, else as many at once as fill one."""
    run = partial(sample_unit, cpu_offload=cpu_offload, batch=batch)
    size = batch // max((len(unit.spec.image_specs) for unit in units), default=batch)
    if size < 2:
        return Job(run)
    return Job(run, partial(sample_units, cpu_offload=cpu_offload), batch_key, size)


def batch_key(unit: Unit[SampleSpec]) -> str | None:
    """A key that units share which may share a batch: of one model, with the same number of steps and the same masks.

    None where the unit's method does more than add a residual, or no model samples.
    """
    spec, sampling = unit.spec, unit.spec.sampling
    if sampling.ground_truth is not None:
        return None
    if spec.method is not None and not getattr(method_named(spec.method), "batched_sampling", False):
        return None
    masks = (mask_config_of(sampling), sampling.uncond_rule) if sampling.lag else None
    key = f"{spec.base.model_dump_json()}{spec.model}{sampling.steps}{masks}"
    return hashlib.sha256(key.encode()).hexdigest()


def sample_units(units: Units, work: Path, device: str, cpu_offload: bool = False) -> dict[str, Exception]:
    """Sample all images of several units in one batch; leaves each unit's archive and manifest as :func:`sample_unit` does.

    Returns errors by name of the units whose residual can't be read. Raises an error of the whole batch.
    """
    loaded, errors = {}, {}
    diffusion = load_diffusion(units[0].spec.base, device, cpu_offload)
    for unit in units:
        try:
            loaded[unit.name] = load_method(diffusion, unit.spec)
        except Exception as error:
            errors[unit.name] = error
    units = [unit for unit in units if unit.name in loaded]
    batch = [unit for unit in units if needs_bank_only(loaded[unit.name])]
    for unit in units:
        if unit not in batch or len(batch) == 1:
            sample_unit(unit, work, device, cpu_offload, batch=len(unit.spec.image_specs))
    if len(batch) > 1:
        _sample(diffusion, batch, loaded, work, device)
    return errors


def needs_bank_only(loaded: LoadedMethod) -> bool:
    """Whether a method needs only residuals on output projections, or nothing, besides the base model."""
    if loaded.patch is not nullcontext or loaded.predictor is not None:
        return False
    return loaded.bank is None or all(target.path.endswith("proj_out") for target in loaded.bank.targets)


def _sample(diffusion: Diffusion, units: Units, loaded: dict[str, LoadedMethod], work: Path, device: str) -> None:
    requests = [Request(unit.spec.image_specs, unit.spec.sampling, loaded[unit.name].bank) for unit in units]
    total = sum(len(request.images) for request in requests)
    names = ", ".join(unit.name for unit in units)
    with measured(pick_device(device)) as run, progress(names, total, "image") as advance:
        results = sample_batch(diffusion, requests, units[0].spec.base.resolution)
        advance(total)
    for unit, request, (images, masks) in zip(units, requests, results, strict=True):
        folder, count = unit.folder(work), len(request.images)
        write_atomic(
            folder / ARCHIVE, archive_bytes(request.images, images.cpu(), None if masks is None else masks.cpu())
        )
        facts = {"seconds": round(run["seconds"] * count / total, 3), "sampled": count, "images": count}
        facts |= {"parameters": loaded[unit.name].parameters, "units_per_batch": len(units)}
        finish(unit, work, [folder / ARCHIVE], run | facts)
        shutil.rmtree(folder / "parts", ignore_errors=True)  # of an interrupted run of this unit alone
