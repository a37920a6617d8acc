"""The stages whose units can run on other machines: how a unit is read back from JSON, what does it, and whether this machine may.

An agent of another commit, or with another base model under the same name, would make results of another kind. It refuses.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from pydantic import ValidationError, create_model

from persres.datasets.registry import classifier_module
from persres.errors import PersresError
from persres.fleet.noop import NoopSpec
from persres.methods.common.registry import method_named
from persres.metrics.scores import SCORE_MODULES
from persres.models.loading import model_identity
from persres.units.batches import Batches, Work
from persres.units.code_digest import code_digest
from persres.units.specs import ClassImagesSpec, SampleSpec, ScoreSpec, Spec, TrainSpec
from persres.units.unit import Unit


class Unfit(PersresError):
    """This machine must not do the unit; another may."""


@dataclass(frozen=True)
class JobType:
    """``work`` names module and function; ``modules`` what a spec's code digest covers beside the stage's own; ``models`` what it says
    of models as (name, identity); ``size`` is in proportion to its cost within a stage. ``several`` names what can do more than one at
    once, where something can: it is called with the stage's options and how many, and gives :class:`persres.units.batches.Batches`."""

    spec: type[Spec]
    work: str
    modules: Callable[[Any], list[str]]
    models: Callable[[Any], list[tuple[str, str]]]
    size: Callable[[Any], float]
    several: str | None = None

    @property
    def function(self) -> Work:
        """What does a unit; imported when asked for, since it brings diffusers."""
        return _named(self.work)

    def batches(self, options: dict[str, Any], together: int | None) -> Batches | None:
        """What does several units at once, or None."""
        return None if self.several is None else _named(self.several)(**options, together=together)


def _named(place: str) -> Any:
    module, name = place.split(":")
    return getattr(import_module(module), name)


def _base(spec: Any) -> list[tuple[str, str]]:
    return [(spec.base.model, spec.model)]


JOB_TYPES = {
    "class_images": JobType(
        ClassImagesSpec,
        "persres.training.class_images:class_images_unit",
        lambda spec: [],
        _base,
        lambda spec: spec.count * spec.steps,
    ),
    "train": JobType(
        TrainSpec,
        "persres.methods.common.train_units:train_unit",
        lambda spec: [f"persres.methods.{spec.settings.method}"],
        _base,
        lambda spec: spec.settings.steps * spec.settings.batch_size,
        "persres.methods.common.batched_training:training_work",
    ),
    "sample": JobType(
        SampleSpec,
        "persres.methods.common.sample_units:sample_unit",
        lambda spec: [] if spec.method is None else [f"persres.methods.{spec.method}"],
        _base,
        lambda spec: len(spec.image_specs) * spec.sampling.steps,
    ),
    "score": JobType(
        ScoreSpec,
        "persres.metrics.score_units:score_unit",
        lambda spec: [
            *SCORE_MODULES,
            *([] if spec.classifier is None else [classifier_module(spec.classifier.dataset).__name__]),
        ],
        lambda spec: [(spec.clip.model, spec.models[0]), (spec.dino.model, spec.models[1])],
        lambda spec: len(spec.image_specs),
    ),
    "noop": JobType(NoopSpec, "persres.fleet.noop:noop_unit", lambda spec: [], lambda spec: [], lambda spec: 1.0),
}


def job_type(stage: str) -> JobType:
    """Raises PersresError for a stage that has no units."""
    if stage not in JOB_TYPES:
        raise PersresError(f"{stage} has no units that could run elsewhere; one of {', '.join(JOB_TYPES)}")
    return JOB_TYPES[stage]


def unit_from_json(raw: dict[str, Any]) -> Unit:
    """A unit from what :func:`as_raw` wrote. Raises Unfit where it is not the same here."""
    kind, spec = job_type(raw["stage"]), raw["spec"]
    try:
        unit = Unit(raw["stage"], raw["name"], _spec_type(kind, spec).model_validate_json(json.dumps(spec)))
    except (ValidationError, PersresError) as error:
        raise Unfit(
            f"{raw['name']}: this agent's persres can't read the unit ({error}); deploy the same commit"
        ) from error
    if unit.hash != raw["hash"]:
        raise Unfit(f"{raw['name']}: this agent's persres reads the unit otherwise; deploy the same commit everywhere")
    return unit


def _spec_type(kind: JobType, spec: dict[str, Any]) -> type[Spec]:
    """A method's settings have the method's own type."""
    if "settings" not in kind.spec.model_fields:
        return kind.spec
    return create_model(
        kind.spec.__name__, __base__=kind.spec, settings=(method_named(spec["settings"]["method"]).settings, ...)
    )


def unit_to_json(unit: Unit) -> dict[str, Any]:
    """A unit as JSON can hold it."""
    return {"stage": unit.stage, "name": unit.name, "hash": unit.hash, "spec": unit.spec.model_dump(mode="json")}


def check_worker(unit: Unit) -> None:
    """Whether this machine's code and models are those that the unit was made for. Raises Unfit."""
    kind = job_type(unit.stage)
    if unit.stage != "noop":
        here = code_digest(unit.stage, *kind.modules(unit.spec))
        if here != unit.spec.code:
            raise Unfit(
                f"{unit.name}: this agent's code is {here}, the unit wants {unit.spec.code}; deploy the same commit"
            )
    for name, wanted in kind.models(unit.spec):
        found = model_identity(name)
        if found != wanted:
            raise Unfit(
                f"{unit.name}: {name} is {found} on this agent, the unit wants {wanted}; put the same files there"
            )
