"""train: every concept learned by every variant -> ``data/learned/<variant>/<concept>.safetensors``."""

from __future__ import annotations

from pathlib import Path

from persres.config.schema import VariantSettings
from persres.datasets.layout import read_concepts, reference_photos, spread_concepts
from persres.images import list_photos
from persres.methods.common.train_units import LEARNED, LOG
from persres.models.loading import model_identity
from persres.prompts import fill
from persres.stages.checks import check_profile, check_prompts
from persres.stages.jobs import job_type, make_unit
from persres.training.class_images import ARCHIVE
from persres.units.context import Context
from persres.units.costs import write_train_costs
from persres.units.files import link_file, publishing
from persres.units.locks import stage_lock
from persres.units.outputs import read_macro_classes
from persres.units.specs import ClassImagesSpec, FileRef, TrainSpec
from persres.units.unit import Unit
from persres.untrusted.names import relative_path

ClassImages = dict[tuple[str, int], Unit[ClassImagesSpec]]  # by prompt and count


def class_image_units(context: Context) -> ClassImages:
    """The units of class images, one per class and shared by all concepts and variants."""
    profile, concepts = context.profile, read_concepts(context.data / "concepts")
    sampling, units = profile.train.class_images, {}
    for settings in profile.train.variants.values():
        request = settings.class_images()
        if request is None or request.folder is not None:
            continue
        classes = read_macro_classes(context, settings.class_source)
        for macro_class in sorted({classes[c.name] for c, _ in spread_concepts(concepts, settings.concepts)}):
            prompt = fill(request.prompt, macro_class)
            units[prompt, request.count] = make_unit(
                "class_images",
                prompt.replace(" ", "_"),
                base=profile.base,
                model=model_identity(profile.base.model),
                prompt=prompt,
                count=request.count,
                steps=sampling.steps,
                cfg_scale=sampling.cfg_scale,
            )
    return units


def _class_images(
    context: Context, sampled: ClassImages, settings: VariantSettings, macro_class: str
) -> FileRef | None:
    """A variant's class images. Raises PersresError if a folder of real ones has none."""
    request = settings.class_images()
    if request is None:
        return None
    if request.folder is not None:
        folder = Path(request.folder) / relative_path(macro_class, "macro class")
        list_photos(folder)
        return FileRef.of(folder)
    return FileRef.of(sampled[fill(request.prompt, macro_class), request.count].folder(context.work) / ARCHIVE)


def train_units(context: Context) -> list[Unit[TrainSpec]]:
    """The training units, one per concept and variant. Their class images must exist."""
    base, units = context.profile.base, []
    concepts, sampled = read_concepts(context.data / "concepts"), class_image_units(context)
    for variant, settings in context.profile.train.variants.items():
        classes = read_macro_classes(context, settings.class_source)
        for concept, folder in spread_concepts(concepts, settings.concepts):
            unit = make_unit(
                "train",
                f"{variant}/{concept.name}",
                base=base,
                model=model_identity(base.model),
                concept=concept.name,
                variant=variant,
                settings=settings.model_copy(update={"concepts": None}),
                macro_class=classes[concept.name],
                photos=tuple(FileRef.of(path) for path in reference_photos(folder)),
                class_images=_class_images(context, sampled, settings, classes[concept.name]),
            )
            units.append(unit)
    return units


def train(context: Context) -> None:
    """Train what is missing, then publish. Raises UnitFailures naming the units that failed."""
    runtime = context.profile.runtime
    check_profile(context.profile)
    with stage_lock(context.work, "train"):
        check_prompts(context)
        images = list(class_image_units(context).values())
        job = job_type("class_images").job(images, cpu_offload=runtime.cpu_offload, batch=runtime.sample_batch)
        context.run_units(images, context.work, job, runtime.workers, runtime.device)
        units = train_units(context)
        job = job_type("train").job(
            units,
            cpu_offload=runtime.cpu_offload,
            gradient_checkpointing=runtime.gradient_checkpointing,
            concepts_per_batch=runtime.concepts_per_batch,
            **({} if runtime.previews is None else {"previews": runtime.previews.model_dump()}),
        )
        context.run_units(units, context.work, job, runtime.workers, runtime.device)
        write_train_costs(context, units, images)
        with publishing(context.data / "learned") as out:
            for unit in units:
                for name, suffix in ((LEARNED, ".safetensors"), (LOG, ".log.jsonl")):
                    link_file(unit.folder(context.work) / name, out / f"{unit.name}{suffix}")
