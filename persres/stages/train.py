"""train: what every variant learns of every concept -> ``data/learned/<variant>/<concept>.safetensors``."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from persres.config.schema import VariantSettings
from persres.datasets.layout import read_concepts, reference_photos, spread_concepts
from persres.images import list_photos
from persres.methods.common.batched_training import training_work
from persres.methods.common.registry import check_available
from persres.methods.common.train_units import LEARNED, LOG
from persres.models.loading import model_identity
from persres.prompts import fill
from persres.training.class_images import ARCHIVE, class_images_unit
from persres.units.code_digest import code_digest
from persres.units.context import Context
from persres.units.costs import write_train_costs
from persres.units.files import publishing
from persres.units.locks import stage_lock
from persres.units.outputs import read_macro_classes
from persres.units.specs import ClassImagesSpec, FileRef, TrainSpec
from persres.units.unit import Unit

ClassImages = dict[tuple[str, int], Unit[ClassImagesSpec]]  # by prompt and count


def class_image_units(context: Context) -> ClassImages:
    """Class images to draw first: one unit per class, shared by all concepts and variants."""
    profile, concepts = context.profile, read_concepts(context.data / "concepts")
    sampling, units = profile.train.class_images, {}
    for settings in profile.train.variants.values():
        request = settings.class_images()
        if request is None or request.folder is not None:
            continue
        classes = read_macro_classes(context, settings.class_source)
        for macro_class in sorted({classes[c.name] for c, _ in spread_concepts(concepts, settings.concepts)}):
            prompt = fill(request.prompt, macro_class)
            spec = ClassImagesSpec(
                base=profile.base,
                model=model_identity(profile.base.model),
                prompt=prompt,
                count=request.count,
                steps=sampling.steps,
                cfg_scale=sampling.cfg_scale,
                code=code_digest("class_images"),
            )
            units[prompt, request.count] = Unit("class_images", prompt.replace(" ", "_"), spec)
    return units


def _class_images(context: Context, drawn: ClassImages, settings: VariantSettings, macro_class: str) -> FileRef | None:
    """Where a variant's class images are. Raises PersresError where a folder of real ones has none."""
    request = settings.class_images()
    if request is None:
        return None
    if request.folder is not None:
        folder = Path(request.folder) / macro_class
        list_photos(folder)
        return FileRef.of(folder)
    return FileRef.of(drawn[fill(request.prompt, macro_class), request.count].folder(context.work) / ARCHIVE)


def train_units(context: Context) -> list[Unit[TrainSpec]]:
    """One unit per concept and variant. Class images must have been drawn."""
    base = context.profile.base
    units, concepts, drawn = [], read_concepts(context.data / "concepts"), class_image_units(context)
    for variant, settings in context.profile.train.variants.items():
        classes = read_macro_classes(context, settings.class_source)
        code = code_digest("train", f"persres.methods.{settings.method}")
        for concept, folder in spread_concepts(concepts, settings.concepts):
            macro_class = classes[concept.name]
            spec = TrainSpec(
                base=base,
                model=model_identity(base.model),
                concept=concept.name,
                variant=variant,
                settings=settings.model_copy(update={"concepts": None}),
                macro_class=macro_class,
                photos=tuple(FileRef.of(path) for path in reference_photos(folder)),
                class_images=_class_images(context, drawn, settings, macro_class),
                code=code,
            )
            units.append(Unit("train", f"{variant}/{concept.name}", spec))
    return units


def train(context: Context) -> None:
    """Train what is not trained yet, then publish. Raises UnitFailures naming the units that failed."""
    runtime = context.profile.runtime
    check_available(context.profile.base, context.profile.train)
    with stage_lock(context.work, "train"):
        draw = partial(class_images_unit, cpu_offload=runtime.cpu_offload, batch=runtime.sample_batch)
        drawn = list(class_image_units(context).values())
        context.place(drawn, context.work, draw, runtime.workers, runtime.device)
        most = None if runtime.concepts_per_batch == "auto" else runtime.concepts_per_batch
        units, learn = train_units(context), training_work(runtime.cpu_offload, runtime.gradient_checkpointing, most)
        context.place(units, context.work, learn, runtime.workers, runtime.device)
        write_train_costs(context, units, drawn)
        with publishing(context.data / "learned") as out:
            for unit in units:
                (out / unit.name).parent.mkdir(exist_ok=True)
                for name, suffix in ((LEARNED, ".safetensors"), (LOG, ".log.jsonl")):
                    shutil.copyfile(unit.folder(context.work) / name, out / f"{unit.name}{suffix}")
