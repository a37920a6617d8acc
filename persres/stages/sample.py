"""sample: pictures of every concept by every method -> ``data/samples/<method>/<concept>.zip``, and ``index.json`` over them."""

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
    """One unit per concept and method."""
    train, concepts, units = context.profile.train, read_concepts(context.data / "concepts"), []
    for method in context.profile.sample.configs:
        sampling_work = context.profile.sample.config(method)
        wanted = train.variant(sampling_work.variant).concepts if sampling_work.variant else None
        for concept, folder in spread_concepts(concepts, wanted):
            spec = _spec(context, method, sampling_work, concept, folder)
            units.append(Unit("sample", f"{method}/{concept.name}", spec))
    return units


def _spec(context: Context, method: str, sampling_work: SamplingConfig, concept: Concept, folder: Path) -> SampleSpec:
    base, named = context.profile.base, read_macro_classes(context, sampling_work.class_source)
    settings = context.profile.train.variant(sampling_work.variant) if sampling_work.variant else None
    learner = method_named(settings.method) if settings else None
    phrase = named[concept.name] if learner is None else learner.phrase(settings, base, named[concept.name])
    shown = learner is not None and learner.needs_photo
    return SampleSpec(
        base=base,
        model=model_identity(base.model),
        concept=concept.name,
        method=method,
        sampling_work=sampling_work.model_copy(update={"prompts": None}),
        prompts=tuple(
            Prompt(number=n, group=g, text=t) for n, g, t in spread_prompts(concept.prompts, sampling_work.prompts)
        ),
        macro_class=read_macro_classes(context)[concept.name],
        phrase=phrase,
        learner=None if learner is None else learner.name,
        learned=_learned(context, sampling_work, concept.name),
        photos=(FileRef.of(reference_photos(folder)[0]),) if shown else (),
        code=code_digest("sample", *([] if learner is None else [f"persres.methods.{learner.name}"])),
    )


def _learned(context: Context, sampling_work: SamplingConfig, concept: str) -> FileRef | None:
    """What the method draws with: the concept's own, or as a control the next concept's."""
    if sampling_work.variant is None:
        return None
    if sampling_work.wrong_concept:
        concepts = list(read_macro_classes(context))
        if len(concepts) < 2:
            raise PersresError("sample: other_concept needs at least two concepts; fetch another")
        concept = concepts[(concepts.index(concept) + 1) % len(concepts)]
    path = learned_path(context.data, sampling_work.variant, concept)
    if not path.exists():
        raise PersresError(f"nothing learned at {path}; run the train stage first")
    return FileRef.of(path)


def sample(context: Context) -> None:
    """Draw what is not drawn yet, then publish. Raises UnitFailures naming the units that failed."""
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
            write_index(Index(methods=_methods(context, units), archives=archives), out)


def _methods(context: Context, units: list[Unit[SampleSpec]]) -> dict[str, ConfigFacts]:
    """What the tables say of each method. Times stay in the manifests."""
    return {
        unit.spec.method: ConfigFacts(parameters=facts(unit, context.work)["parameters"], sampling=unit.spec.sampling)
        for unit in units
    }
