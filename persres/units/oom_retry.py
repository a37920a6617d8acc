"""Retries a batch that runs out of memory with half of it. A unit's result does not depend on its batch, only its speed does."""

from __future__ import annotations

import logging
import sys
import traceback
from functools import partial
from pathlib import Path

from persres.errors import PersresError
from persres.units.batches import Job, UnitFunction, split_evenly
from persres.units.unit import Unit, amend, is_done

log = logging.getLogger(__name__)
# What CUDA, torch on the CPU and the system say.
_MESSAGES = ("out of memory", "can't allocate memory", "cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it is torch's or Python's own exception, or a RuntimeError with such a message, as torch raises on the CPU."""
    message = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(text in message for text in _MESSAGES)
    )


def run_batch(job: Job, units: list[Unit], work: Path, device: str) -> dict[str, Exception]:
    """Run units in one batch and return errors by unit name.

    A batch that fails as a whole is halved, down to single units, so that an error stays with the unit that causes it. A single unit
    that runs out of memory and has an image batch (``batch``) runs once more with half of it. Manifests record both, as
    ``halved_from`` and ``batch_halved_to``.
    """
    errors: dict[str, Exception] = {}
    notes: dict[str, dict[str, int]] = {}  # facts about the retries, by unit name
    queue: list[tuple[list[Unit], UnitFunction]] = [(units, job.run)]
    while queue:
        batch, run = queue.pop(0)
        try:
            failed = job.run_many(batch, work, device) if len(batch) > 1 else run(batch[0], work, device) or {}
            for unit in batch:
                if unit.name in notes and unit.name not in failed:
                    amend(unit, work, notes[unit.name])
            errors |= failed
            continue
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # they hold the tensors that did not fit
            failure = error
        name, half = batch[0].name, _image_batch(run) // 2
        if len(batch) > 1:
            left = [unit for unit in batch if not is_done(unit, work)]
            log.warning("%s: %s; trying halves", ", ".join(unit.name for unit in batch), _first_line(failure))
            queue[:0] = [(part, job.run) for part in split_evenly(left, max(1, -(-len(left) // 2)))]
            if is_out_of_memory(failure):
                notes = {unit.name: {"halved_from": len(batch)} for unit in left} | notes
        elif is_out_of_memory(failure) and run is job.run and half:
            log.warning("%s: out of memory at batch %d; trying %d", name, _image_batch(run), half)
            queue.insert(0, (batch, partial(run, batch=half)))
            notes[name] = notes.get(name, {}) | {"batch_halved_to": half}
        else:
            errors[name] = _explained(failure, job.run, run)
        _empty_cache()
    return errors


def _image_batch(run: UnitFunction) -> int:
    return run.keywords.get("batch", 1) if isinstance(run, partial) else 1


def _explained(failure: Exception, first: UnitFunction, last: UnitFunction) -> Exception:
    """The error of a single unit, with the setting to change if memory was too small."""
    if not is_out_of_memory(failure):
        return failure
    if last is not first:
        tried = f"at batch {_image_batch(first)} and at {_image_batch(last)}"
        return PersresError(f"out of memory {tried}; lower runtime.sample_batch")
    return PersresError(
        f"out of memory ({_first_line(failure)}); set runtime.cpu_offload: true, a lower batch_size or resolution, or use a larger GPU"
    )


def _first_line(failure: Exception) -> str:
    return str(failure).partition("\n")[0][:200] or type(failure).__name__


def _empty_cache() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
