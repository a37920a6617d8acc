"""sample: pictures of every concept by every method -> ``data/samples/<method>/<concept>.zip``, and ``index.json`` over them."""

from __future__ import annotations

import shutil
from pathlib import Path

from persres.config import Drawing
from persres.datasets.layout import Concept, read_concepts, reference_photos, spread_concepts, spread_prompts
from persres.errors import PersresError
from persres.methods.common.draw import PACK
from persres.methods.common.mixed import drawing
from persres.methods.common.registry import method_named
from persres.models.loading import model_identity
from persres.runs.code import code_digest
from persres.runs.context import Context
from persres.runs.costs import write_sample_costs
from persres.runs.files import publishing
from persres.runs.locks import stage_lock
from persres.runs.outputs import Index, MethodFacts, learned_path, read_macro_classes, write_index
from persres.runs.outputs import Pack as PublishedPack
from persres.runs.specs import FileRef, Prompt, SampleSpec
from persres.runs.units import Unit, facts


def sample_units(context: Context) -> list[Unit[SampleSpec]]:
    """One unit per concept and method."""
    train, concepts, units = context.profile.train, read_concepts(context.data / "concepts"), []
    for method in context.profile.sample.methods:
        drawing = context.profile.sample.method(method)
        wanted = train.variant(drawing.variant).concepts if drawing.variant else None
        for concept, folder in spread_concepts(concepts, wanted):
            spec = _spec(context, method, drawing, concept, folder)
            units.append(Unit("sample", f"{method}/{concept.name}", spec))
    return units


def _spec(context: Context, method: str, drawing: Drawing, concept: Concept, folder: Path) -> SampleSpec:
    base, named = context.profile.base, read_macro_classes(context, drawing.class_source)
    settings = context.profile.train.variant(drawing.variant) if drawing.variant else None
    learner = method_named(settings.method) if settings else None
    phrase = named[concept.name] if learner is None else learner.phrase(settings, base, named[concept.name])
    shown = learner is not None and learner.needs_photo
    return SampleSpec(
        base=base,
        model=model_identity(base.model),
        concept=concept.name,
        method=method,
        drawing=drawing.model_copy(update={"prompts": None}),
        prompts=tuple(
            Prompt(number=n, group=g, text=t) for n, g, t in spread_prompts(concept.prompts, drawing.prompts)
        ),
        macro_class=read_macro_classes(context)[concept.name],
        phrase=phrase,
        learner=None if learner is None else learner.name,
        learned=_learned(context, drawing, concept.name),
        photos=(FileRef.of(reference_photos(folder)[0]),) if shown else (),
        code=code_digest("sample", *([] if learner is None else [f"persres.methods.{learner.name}"])),
    )


def _learned(context: Context, drawing: Drawing, concept: str) -> FileRef | None:
    """What the method draws with: the concept's own, or as a control the next concept's."""
    if drawing.variant is None:
        return None
    if drawing.other_concept:
        concepts = list(read_macro_classes(context))
        if len(concepts) < 2:
            raise PersresError("sample: other_concept needs at least two concepts; fetch another")
        concept = concepts[(concepts.index(concept) + 1) % len(concepts)]
    path = learned_path(context.data, drawing.variant, concept)
    if not path.exists():
        raise PersresError(f"nothing learned at {path}; run the train stage first")
    return FileRef.of(path)


def sample(context: Context) -> None:
    """Draw what is not drawn yet, then publish. Raises UnitFailures naming the units that failed."""
    runtime = context.profile.runtime
    with stage_lock(context.work, "sample"):
        units = sample_units(context)
        work = drawing(units, runtime.offload, runtime.sample_batch)
        context.place(units, context.work, work, runtime.workers, runtime.device)
        with publishing(context.data / "samples") as out:
            for unit in units:
                (out / unit.name).parent.mkdir(exist_ok=True)
                shutil.copyfile(unit.folder(context.work) / PACK, out / f"{unit.name}.zip")
            write_sample_costs(context, units)
            packs = [PublishedPack(name=unit.name, hash=unit.hash, spec=unit.spec) for unit in units]
            write_index(Index(methods=_methods(context, units), packs=packs), out)


def _methods(context: Context, units: list[Unit[SampleSpec]]) -> dict[str, MethodFacts]:
    """What the tables say of each method. Times stay in the manifests."""
    return {
        unit.spec.method: MethodFacts(parameters=facts(unit, context.work)["parameters"], drawing=unit.spec.drawing)
        for unit in units
    }
