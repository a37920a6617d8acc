"""sample: images of every concept by every config -> ``data/samples/<config>/<concept>.zip``, and ``index.json`` over them."""

from __future__ import annotations

import shutil
from pathlib import Path

from persres.config.schema import SamplingConfig
from persres.datasets.layout import Concept, read_concepts, reference_photos, spread_concepts, spread_prompts
from persres.errors import PersresError
from persres.methods.common.batched_sampling import sampling_work
from persres.methods.common.registry import method_named
from persres.methods.common.sample_units import ARCHIVE
from persres.models.loading import model_identity
from persres.units.code_digest import code_digest
from persres.units.context import Context
from persres.units.costs import write_sample_costs
from persres.units.files import publishing
from persres.units.locks import stage_lock
from persres.units.outputs import ConfigFacts, Index, learned_path, read_macro_classes, write_index
from persres.units.outputs import ImageArchive as PublishedPack
from persres.units.specs import FileRef, Prompt, SampleSpec
from persres.units.unit import Unit, facts


def sample_units(context: Context) -> list[Unit[SampleSpec]]:
    """The sampling units: one per concept and config."""
    train, concepts, units = context.profile.train, read_concepts(context.data / "concepts"), []
    for config in context.profile.sample.configs:
        sampling = context.profile.sample.config(config)
        wanted = train.variant(sampling.variant).concepts if sampling.variant else None
        for concept, folder in spread_concepts(concepts, wanted):
            spec = _spec(context, config, sampling, concept, folder)
            units.append(Unit("sample", f"{config}/{concept.name}", spec))
    return units


def _spec(context: Context, config: str, sampling: SamplingConfig, concept: Concept, folder: Path) -> SampleSpec:
    base, named = context.profile.base, read_macro_classes(context, sampling.class_source)
    settings = context.profile.train.variant(sampling.variant) if sampling.variant else None
    method = method_named(settings.method) if settings else None
    phrase = named[concept.name] if method is None else method.phrase(settings, base, named[concept.name])
    shown = method is not None and method.needs_photo
    return SampleSpec(
        base=base,
        model=model_identity(base.model),
        concept=concept.name,
        config=config,
        sampling=sampling.model_copy(update={"prompts": None}),
        prompts=tuple(
            Prompt(number=n, group=g, text=t) for n, g, t in spread_prompts(concept.prompts, sampling.prompts)
        ),
        macro_class=read_macro_classes(context)[concept.name],
        phrase=phrase,
        method=None if method is None else method.name,
        learned=_learned(context, sampling, concept.name),
        photos=(FileRef.of(reference_photos(folder)[0]),) if shown else (),
        code=code_digest("sample", *([] if method is None else [f"persres.methods.{method.name}"])),
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
        raise PersresError(f"nothing learned at {path}; run the train stage first")
    return FileRef.of(path)


def sample(context: Context) -> None:
    """Sample what is missing, then publish. Raises UnitFailures naming the units that failed."""
    runtime = context.profile.runtime
    with stage_lock(context.work, "sample"):
        units = sample_units(context)
        work = sampling_work(units, runtime.cpu_offload, runtime.sample_batch)
        context.place(units, context.work, work, runtime.workers, runtime.device)
        with publishing(context.data / "samples") as out:
            for unit in units:
                (out / unit.name).parent.mkdir(exist_ok=True)
                shutil.copyfile(unit.folder(context.work) / ARCHIVE, out / f"{unit.name}.zip")
            write_sample_costs(context, units)
            archives = [PublishedPack(name=unit.name, hash=unit.hash, spec=unit.spec) for unit in units]
            write_index(Index(configs=_configs(context, units), archives=archives), out)


def _configs(context: Context, units: list[Unit[SampleSpec]]) -> dict[str, ConfigFacts]:
    """What the tables report of each config. Times stay in the manifests."""
    return {
        unit.spec.config: ConfigFacts(parameters=facts(unit, context.work)["parameters"], sampling=unit.spec.sampling)
        for unit in units
    }
