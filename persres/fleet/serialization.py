"""Units as JSON, and whether a worker may run one.

A worker of another commit, or with other files of a model under the same name, would compute something else. It refuses the unit.
"""

from __future__ import annotations

from typing import Any

from persres.errors import PersresError
from persres.models.loading import model_identity
from persres.stages.jobs import job_type
from persres.units.unit import Unit
from persres.untrusted.text import printable


class UnfitWorkerError(PersresError):
    """This worker must not run the unit; another one may."""


def unit_to_json(unit: Unit) -> dict[str, Any]:
    """A unit as a mapping that JSON can hold."""
    return {"stage": unit.stage, "name": unit.name, "hash": unit.hash, "spec": unit.spec.model_dump(mode="json")}


def unit_from_json(raw: dict[str, Any]) -> Unit:
    """A unit from what :func:`unit_to_json` wrote. Raises UnfitWorkerError if this code reads another unit from it."""
    try:
        unit = Unit(raw["stage"], raw["name"], job_type(raw["stage"]).read_spec(raw["spec"]))
        same = unit.hash == raw["hash"]
    except Exception as error:  # whatever this code raises when it reads another's spec
        raise UnfitWorkerError(
            f"{_name(raw)}: this worker's persres cannot read the unit ({printable(repr(error))}); deploy the same commit"
        ) from error
    if not same:
        raise UnfitWorkerError(
            f"{_name(raw)}: this worker's persres reads another unit from the same spec; deploy the same commit"
        )
    return unit


def _name(raw: Any) -> str:
    return printable(raw.get("name") if isinstance(raw, dict) else raw)


def check_worker(unit: Unit) -> None:
    """Raises UnfitWorkerError if this machine's code or models are not those that the unit was made for."""
    kind = job_type(unit.stage)
    try:
        code, models = kind.code(unit.spec), kind.models(unit.spec)
    except KeyError as error:
        raise UnfitWorkerError(
            f"{unit.name}: this worker's persres has no {printable(error)}; deploy the same commit"
        ) from error
    if unit.stage != "noop" and code != unit.spec.code:
        raise UnfitWorkerError(
            f"{unit.name}: this worker's code is {code}, the unit needs {unit.spec.code}; deploy the same commit"
        )
    for name, expected in models:
        identity = model_identity(name)
        if identity != expected:
            raise UnfitWorkerError(
                f"{unit.name}: {name} is {identity} on this worker, the unit needs {expected}; install the same files"
            )
