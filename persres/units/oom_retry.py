"""Too little memory for a batch: half of it is tried. What a unit makes does not depend on its batch, only how fast."""

from __future__ import annotations

import logging
import sys
import traceback
from functools import partial
from pathlib import Path

from persres.errors import PersresError
from persres.units.batches import Batches, split_evenly
from persres.units.unit import Unit, amend, is_done

log = logging.getLogger(__name__)
_SAYS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
)  # CUDA's, torch's own on the CPU, the system's


def is_out_of_memory(error: BaseException) -> bool:
    """Torch's own exception, Python's, or a RuntimeError that says so, as torch raises on the CPU."""
    told = str(error).lower()
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(text in told for text in _SAYS))


def with_memory_guard(function, unit: Unit, work: Path, device: str) -> None:
    """Call ``function(unit, work, device)``; where it runs out of memory and has a ``batch``, once more with half of it, which the
    manifest records as ``batch_halved_to``. Raises PersresError with the mend where that is too much too, or there is no batch."""
    try:
        function(unit, work, device)
        return
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    # outside of the except block: there the traceback would still hold the tensors that did not fit
    batch = function.keywords.get("batch", 1) if isinstance(function, partial) else 1
    if batch < 2:
        raise PersresError(
            f"out of memory ({said}); set runtime.cpu_offload: true, a lower batch_size or resolution, or take a larger GPU"
        )
    _free()
    half = batch // 2
    log.warning("%s: out of memory at batch %d; trying %d", unit.name, batch, half)
    try:
        partial(function, batch=half)(unit, work, device)
    except Exception as error:
        if is_out_of_memory(error):
            raise PersresError(f"out of memory at batch {batch} and at {half}; lower runtime.sample_batch") from None
        raise
    amend(unit, work, {"batch_halved_to": half})


def run_batch(function: Batches, units: list[Unit], work: Path, device: str) -> dict[str, Exception]:
    """Do units in one go; where that fails as a whole, in halves, down to one by one, so that a fault stays with the unit that has it.
    Returns errors by name. Where memory was too little, manifests say so in ``halved_from``."""
    if len(units) == 1:
        return _do_one(function, units[0], work, device)
    names = ", ".join(unit.name for unit in units)
    try:
        return function.many(units, work, device)
    except Exception as error:
        too_much = is_out_of_memory(error)
        log.warning("%s: %s; trying halves", names, str(error).partition("\n")[0][:200] or type(error).__name__)
    _free()  # outside of the except block, as above
    errors: dict[str, Exception] = {}
    left = [unit for unit in units if not is_done(unit, work)]
    for half in split_evenly(left, max(1, -(-len(left) // 2))):
        errors |= run_batch(function, half, work, device)
    for unit in left if too_much else []:
        if unit.name not in errors:
            amend(unit, work, {"halved_from": len(units)})
    return errors


def _do_one(function: Batches, unit: Unit, work: Path, device: str) -> dict[str, Exception]:
    try:
        with_memory_guard(function.one, unit, work, device)
    except Exception as error:
        traceback.clear_frames(error.__traceback__)  # they would hold tensors while the others are done
        return {unit.name: error}
    return {}


def _free() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
