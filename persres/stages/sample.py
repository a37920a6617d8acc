"""sample: images of every concept by every config -> ``data/samples/<config>/<concept>.zip``, and ``index.json`` over them."""

from __future__ import annotations

from pathlib import Path

from persres.config.schema import SamplingConfig
from persres.datasets.layout import Concept, read_concepts, reference_photos, spread_concepts, spread_prompts
from persres.errors import PersresError
from persres.methods.common.registry import method_named
from persres.methods.common.sample_units import ARCHIVE
from persres.models.loading import model_identity
from persres.stages.checks import check_profile, check_prompts
from persres.stages.jobs import job_type, make_unit
from persres.units.context import Context
from persres.units.costs import write_sample_costs
from persres.units.files import link_file, publishing
from persres.units.locks import stage_lock
from persres.units.outputs import ConfigFacts, ImageArchive, Index, learned_path, read_macro_classes, write_index
from persres.units.specs import FileRef, Prompt, SampleSpec
from persres.units.unit import Unit, facts


def sample_units(context: Context) -> list[Unit[SampleSpec]]:
    """The sampling units, one per concept and config."""
    train, concepts, units = context.profile.train, read_concepts(context.data / "concepts"), []
    for config in context.profile.sample.configs:
        variant = context.profile.sample.config(config).variant
        limit = train.variant(variant).concepts if variant else None
        units += [_unit(context, config, concept, folder) for concept, folder in spread_concepts(concepts, limit)]
    return units


def _unit(context: Context, config: str, concept: Concept, folder: Path) -> Unit[SampleSpec]:
    base, sampling = context.profile.base, context.profile.sample.config(config)
    phrase, method = read_macro_classes(context, sampling.class_source)[concept.name], None
    if sampling.variant:
        settings = context.profile.train.variant(sampling.variant)
        method = method_named(settings.method)
        phrase = method.phrase(settings, base, phrase)
    prompts = spread_prompts(concept.prompts, sampling.prompts)
    return make_unit(
        "sample",
        f"{config}/{concept.name}",
        base=base,
        model=model_identity(base.model),
        concept=concept.name,
        config=config,
        sampling=sampling.model_copy(update={"prompts": None}),
        prompts=tuple(Prompt(number=number, group=group, text=text) for number, group, text in prompts),
        macro_class=read_macro_classes(context)[concept.name],
        phrase=phrase,
        method=method and method.name,
        learned=_learned(context, sampling, concept.name),
        photos=(FileRef.of(reference_photos(folder)[0]),) if method and method.needs_photo else (),
        renderer=context.profile.fetch.dataset if sampling.ground_truth else None,
    )


def _learned(context: Context, sampling: SamplingConfig, concept: str) -> FileRef | None:
    """The learned file that the config samples with: the concept's, or the next concept's as a negative control."""
    if sampling.variant is None:
        return None
    if sampling.wrong_concept:
        concepts = list(read_macro_classes(context))
        if len(concepts) < 2:
            raise PersresError("sample: wrong_concept needs at least two concepts; fetch another")
        concept = concepts[(concepts.index(concept) + 1) % len(concepts)]
    path = learned_path(context.data, sampling.variant, concept)
    if not path.exists():
        raise PersresError(f"no learned file {path}; run the train stage first")
    return FileRef.of(path)


def sample(context: Context) -> None:
    """Sample what is missing, then publish. Raises UnitFailures naming the units that failed."""
    runtime = context.profile.runtime
    check_profile(context.profile)
    with stage_lock(context.work, "sample"):
        check_prompts(context)
        units = sample_units(context)
        job = job_type("sample").job(units, cpu_offload=runtime.cpu_offload, batch=runtime.sample_batch)
        context.run_units(units, context.work, job, runtime.workers, runtime.device)
        with publishing(context.data / "samples") as out:
            for unit in units:
                link_file(unit.folder(context.work) / ARCHIVE, out / f"{unit.name}.zip")
            write_sample_costs(context, units)
            archives = [ImageArchive(name=unit.name, hash=unit.hash, spec=unit.spec) for unit in units]
            write_index(Index(configs=_configs(context, units), archives=archives), out)


def _configs(context: Context, units: list[Unit[SampleSpec]]) -> dict[str, ConfigFacts]:
    """What the tables report of each config. Times stay in the manifests."""
    return {
        unit.spec.config: ConfigFacts(parameters=facts(unit, context.work)["parameters"], sampling=unit.spec.sampling)
        for unit in units
    }
