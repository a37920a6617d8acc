"""The job types: what runs the units of a stage, by which code, on which models, at what cost.

The stages, the code digest, the fleet and the cost estimate all read this registry, so a new kind of unit is one entry of
:data:`JOB_TYPES`. Modules are imported when a job runs, since they bring in diffusers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any

from pydantic import create_model

from persres.config.schema import SamplingConfig, VariantSettings
from persres.datasets.registry import DRAWN
from persres.errors import PersresError
from persres.methods.common.registry import method_named
from persres.metrics.scores import SCORE_MODULES
from persres.stages.noop import NoopSpec
from persres.units.batches import Job
from persres.units.code_digest import code_digest
from persres.units.specs import ClassImagesSpec, SampleSpec, ScoreSpec, Spec, TrainSpec
from persres.units.unit import Unit


def no_names(spec: Any) -> list:
    """The modules or models of a spec that names none."""
    return []


def base_model(spec: Any) -> list[tuple[str, str]]:
    """The base model of a spec, as (name, identity)."""
    return [(spec.base.model, spec.model)]


@dataclass(frozen=True)
class JobType:
    """One kind of unit. ``run`` and ``run_many`` name functions as ``module:function``.

    ``run(unit, work, device, **options)`` runs a unit. ``run_many(units, **options)`` returns a :class:`persres.units.batches.Job`
    that also runs several units in one batch. ``modules`` gives the modules that a spec names, next to those of ``run``, for its
    code digest; ``models`` its models as (name, identity). ``cost`` is in training samples, denoising steps or images, and ``rate``
    names the property of :class:`persres.planning.estimate.MeasuredSeconds` with the seconds of one.
    """

    spec: type[Spec]
    run: str
    run_many: str | None = None
    modules: Callable[[Any], list[str]] = no_names
    models: Callable[[Any], list[tuple[str, str]]] = no_names
    cost: Callable[[Any], float] = lambda spec: 1.0
    rate: str = "unit_s"

    def job(self, units: list[Unit], **options: Any) -> Job:
        """The job that runs these units with the stage's options."""
        if self.run_many is not None:
            return replace(_load(self.run_many)(units, **options), options=options)
        return Job(partial(_load(self.run), **options), options=options)

    def code(self, spec: Spec | None = None) -> str:
        """The digest of the code that computes a spec's result (see :mod:`persres.units.code_digest`)."""
        return code_digest(*self.code_modules(), *([] if spec is None else self.modules(spec)))

    def code_modules(self) -> list[str]:
        """The modules of ``run`` and ``run_many``."""
        return [name.partition(":")[0] for name in (self.run, self.run_many) if name is not None]

    def read_spec(self, raw: dict[str, Any]) -> Spec:
        """The spec in a manifest or a shard. Raises pydantic's ValidationError, or PersresError for an unknown method."""
        kind = self.spec
        if "settings" in kind.model_fields:  # a method's settings have a type of the method
            settings = method_named(raw["settings"]["method"]).settings
            kind = create_model(kind.__name__, __base__=kind, settings=(settings, ...))
        return kind.model_validate_json(json.dumps(raw))


def _load(name: str) -> Any:
    module, function = name.split(":")
    return getattr(import_module(module), function)


def train_cost(settings: VariantSettings) -> float:
    """Training samples of one concept; class images double a step."""
    return settings.steps * settings.batch_size * (2 if settings.class_images() else 1)


def sample_cost(images: int, sampling: SamplingConfig) -> float:
    """Denoising steps of so many images."""
    return 0 if sampling.ground_truth else images * sampling.steps


def sampled_by(spec: SampleSpec) -> list[str]:
    """The modules that a sampling spec names."""
    names = [] if spec.method is None else [f"persres.methods.{spec.method}"]
    return names + ([] if spec.renderer is None else [DRAWN[spec.renderer].renderer])


JOB_TYPES = {
    "class_images": JobType(
        ClassImagesSpec,
        "persres.training.class_images:class_images_unit",
        models=base_model,
        cost=lambda spec: spec.count * spec.steps,
        rate="denoising_step_s",
    ),
    "train": JobType(
        TrainSpec,
        "persres.methods.common.train_units:train_unit",
        "persres.methods.common.batched_training:training_job",
        modules=lambda spec: [f"persres.methods.{spec.settings.method}"],
        models=base_model,
        cost=lambda spec: train_cost(spec.settings),
        rate="train_sample_s",
    ),
    "sample": JobType(
        SampleSpec,
        "persres.methods.common.sample_units:sample_unit",
        "persres.methods.common.batched_sampling:sampling_job",
        modules=sampled_by,
        models=base_model,
        cost=lambda spec: sample_cost(len(spec.image_specs), spec.sampling),
        rate="denoising_step_s",
    ),
    "score": JobType(
        ScoreSpec,
        "persres.metrics.score_units:score_unit",
        modules=lambda spec: [
            *SCORE_MODULES,
            *([DRAWN[spec.classifier.dataset].classifier] if spec.classifier else []),
        ],
        models=lambda spec: [(spec.clip.model, spec.models[0]), (spec.dino.model, spec.models[1])],
        cost=lambda spec: len(spec.image_specs),
        rate="scored_image_s",
    ),
    "noop": JobType(NoopSpec, "persres.stages.noop:noop_unit"),
}


def job_type(stage: str) -> JobType:
    """The job type of a stage. Raises PersresError for a stage without units."""
    if stage not in JOB_TYPES:
        raise PersresError(f"{stage} has no job type; register one in persres/stages/jobs.py ({', '.join(JOB_TYPES)})")
    return JOB_TYPES[stage]


def make_unit(stage: str, name: str, **fields: Any) -> Unit:
    """A unit whose spec has these fields and the digest of the code behind it."""
    kind = job_type(stage)
    spec = kind.spec(code="", **fields)
    return Unit(stage, name, spec.model_copy(update={"code": kind.code(spec)}))
