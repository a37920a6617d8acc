"""Units of sampling that share a batch: pictures of several concepts and methods, where one unit has too few to fill it."""

from __future__ import annotations

import hashlib
import shutil
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from persres.images import zip_bytes
from persres.logging import progress
from persres.methods.common.base import LoadedMethod
from persres.methods.common.registry import method_named
from persres.methods.common.sample_units import ARCHIVE, archive_files, load_method, sample_unit
from persres.models.diffusion import Diffusion, load_diffusion
from persres.models.loading import pick_device
from persres.sampling.batched_sampling import Request, sample_batch
from persres.sampling.sample import mask_config_from
from persres.units.batches import Batches, Work
from persres.units.files import write_atomic
from persres.units.provenance import measured
from persres.units.specs import SampleSpec
from persres.units.unit import Unit, finish

Units = list[Unit[SampleSpec]]


def sampling_work(units: Units, cpu_offload: bool = False, batch: int = 8) -> Work:
    """What draws units of a stage: one after another where a unit fills a batch by itself, else as many at once as fill one."""
    one = partial(sample_unit, cpu_offload=cpu_offload, batch=batch)
    most = batch // max((len(unit.spec.image_specs) for unit in units), default=batch)
    if most < 2:
        return one
    return Batches(one, partial(sample_units, cpu_offload=cpu_offload), batch_key, partial(_told, most=most), most)


def _told(units: Units, device: str, workers: int, most: int) -> int:
    return most


def batch_key(unit: Unit[SampleSpec]) -> str | None:
    """The same for units that may share a batch: of one model, with as many steps, under the same masks or none. None where their method
    does more than add a residual."""
    spec, drawn = unit.spec, unit.spec.sampling
    if spec.method is not None and not getattr(method_named(spec.method), "draws_mixed", False):
        return None
    masks = (mask_config_from(drawn), drawn.uncond_rule) if drawn.lag else None
    said = f"{spec.base.model_dump_json()}{spec.model}{drawn.steps}{masks}"
    return hashlib.sha256(said.encode()).hexdigest()


def sample_units(units: Units, work: Path, device: str, cpu_offload: bool = False) -> dict[str, Exception]:
    """Draw all pictures of several units in one batch; each unit's pack and manifest are as :func:`draw_unit` leaves them.

    Returns errors by name of the units whose residual can't be read. Raises what the whole batch fails of.
    """
    spec, loaded, errors = units[0].spec, {}, {}
    diffusion = load_diffusion(spec.base, device, cpu_offload)
    for unit in units:
        try:
            loaded[unit.name] = load_method(diffusion, unit.spec)
        except Exception as error:
            errors[unit.name] = error
    able = [unit for unit in units if unit.name in loaded]
    mixed = [unit for unit in able if is_residual(loaded[unit.name])]
    for unit in able:
        if unit not in mixed or len(mixed) == 1:
            sample_unit(unit, work, device, cpu_offload, batch=len(unit.spec.image_specs))
    if len(mixed) > 1:
        _draw(diffusion, mixed, loaded, work, device)
    return errors


def is_residual(loaded: LoadedMethod) -> bool:
    """Whether a method's pictures need nothing but residuals on output projections, or nothing at all."""
    plain = loaded.patch is nullcontext and loaded.predictor is None
    return plain and (loaded.bank is None or all(t.path.endswith("proj_out") for t in loaded.bank.targets))


def _draw(diffusion: Diffusion, units: Units, loaded: dict[str, LoadedMethod], work: Path, device: str) -> None:
    requests = [Request(unit.spec.image_specs, unit.spec.sampling, loaded[unit.name].bank) for unit in units]
    total = sum(len(request.items) for request in requests)
    names = ", ".join(unit.name for unit in units)
    with measured(pick_device(device)) as run, progress(names, total, "picture") as advance:
        drawn = sample_batch(diffusion, requests, units[0].spec.base.resolution)
        advance(total)
    for unit, request, (pictures, masks) in zip(units, requests, drawn, strict=True):
        folder, count = unit.folder(work), len(request.items)
        write_atomic(
            folder / ARCHIVE,
            zip_bytes(archive_files(request.items, pictures.cpu(), None if masks is None else masks.cpu())),
        )
        share = {"seconds": round(run["seconds"] * count / total, 3), "drawn": count, "pictures": count}
        finish(
            unit,
            work,
            [folder / ARCHIVE],
            run | share | {"parameters": loaded[unit.name].parameters, "units_per_batch": len(units)},
        )
        shutil.rmtree(folder / "parts", ignore_errors=True)  # of a run that had begun to draw it alone
