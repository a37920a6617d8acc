"""train: one residual per concept and variant -> ``data/residuals/<variant>/<concept>.safetensors``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from persres.conditioning import Conditioning
from persres.datasets.layout import read_concepts, reference_photos, spread_concepts
from persres.images import list_photos, load_photo, square, to_tensor
from persres.loading import model_identity, pick_device
from persres.methods.prior import PACK, prior_unit, read_prior
from persres.methods.registry import check_available, phrase_for
from persres.methods.settings import Settings
from persres.methods.unit import rival_unit
from persres.methods.weights import replaced, start_values
from persres.models import Diffusion, load_diffusion
from persres.params import Base, Variant
from persres.prompt_text import fill
from persres.provenance import code_fingerprint, library_versions, measured
from persres.residual_file import TOKEN, save_residual
from persres.residuals import find_targets
from persres.stages.context import Context
from persres.stages.costs import write_train_costs
from persres.stages.macro_class import read_macro_classes
from persres.training import Lesson, Log, new_bank
from persres.training import train as train_bank
from persres.units import Unit, digest_file, digest_folder, finish, publishing, run_units, stage_lock


def prior_units(context: Context) -> dict[tuple[str, int], Unit]:
    """Class images to draw first, by (prompt, count): one unit per class, shared by all concepts and rivals."""
    profile, units, concepts = context.profile, {}, read_concepts(context.data / "concepts")
    for settings in map(profile.train.variant, profile.train.variants):
        classes = read_macro_classes(context, getattr(settings, "class_source", "chosen"))
        if getattr(settings, "prior_images", 0) and not getattr(settings, "prior_folder", None):
            for macro_class in sorted({classes[c.name] for c, _ in spread_concepts(concepts, settings.concepts)}):
                prompt, count = fill(settings.prompt, macro_class), settings.prior_images
                spec = {"base": profile.base.model_dump(), "model": model_identity(profile.base.model), "prompt": prompt, "count": count,
                        "steps": profile.sample.steps, "cfg_scale": profile.sample.cfg_scale,
                        "batch": profile.runtime.sample_batch, "code": code_fingerprint("train")}  # fmt: skip
                units[prompt, count] = Unit.of("prior", prompt.replace(" ", "_"), spec)
    return units


def _prior_source(
    context: Context, drawn: dict[tuple[str, int], Unit], settings: Variant | Settings, macro_class: str
) -> dict[str, str] | None:
    """Where a rival's class images are, with a digest."""
    if not getattr(settings, "prior_images", 0):
        return None
    if getattr(settings, "prior_folder", None):
        folder = Path(settings.prior_folder) / macro_class
        list_photos(folder)
        return {"path": str(folder), "digest": digest_folder(folder)}
    path = drawn[fill(settings.prompt, macro_class), settings.prior_images].folder(context.work) / PACK
    return {"path": str(path), "digest": digest_file(path)}


def train_units(context: Context) -> list[Unit]:
    """One unit per concept and variant; the spec holds all that the result depends on."""
    base = context.profile.base
    shared = {"base": base.model_dump(), "model": model_identity(base.model), "code": code_fingerprint("train")}
    units, concepts, drawn = [], read_concepts(context.data / "concepts"), prior_units(context)
    for variant in context.profile.train.variants:
        settings = context.profile.train.variant(variant)
        named = read_macro_classes(context, getattr(settings, "class_source", "chosen"))
        for concept, folder in spread_concepts(concepts, settings.concepts):
            photos = {str(path): digest_file(path) for path in reference_photos(folder)}
            spec = shared | {"concept": concept.name, "variant": variant, "settings": settings.model_dump(exclude={"concepts"}),
                             "macro_class": named[concept.name], "photos": photos,
                             "prior": _prior_source(context, drawn, settings, named[concept.name])}  # fmt: skip
            units.append(Unit.of("train", f"{variant}/{concept.name}", spec))
    return units


def read_lesson(diffusion: Diffusion, spec: dict, settings: Variant, base: Base) -> Lesson:
    """Cached latents of the photos and the cached embedding of the training prompt, and of class images where asked."""
    photos = [square(load_photo(Path(path)), base.resolution) for path in spec["photos"]]
    phrase = phrase_for(spec["settings"], base, spec["macro_class"])
    prompts = [fill(settings.prompt, phrase), fill(settings.prompt, spec["macro_class"])]
    both = diffusion.encode(prompts)
    text, plain = both.rows(0, 1), both.rows(1, 2)
    if settings.train_token:

        def text() -> Conditioning:
            return diffusion.states(prompts[:1])

    prior = None
    if spec["prior"] is not None:
        images = read_prior(Path(spec["prior"]["path"]), base.resolution)[: settings.prior_images]
        prior = Lesson(f"{spec['concept']}/prior", *diffusion.posterior(to_tensor(images)), plain)
    return Lesson(spec["concept"], *diffusion.posterior(to_tensor(photos)), text, prior)


def train_unit(unit: Unit, work: Path, device: str, offload: bool = False) -> None:
    """Learn one concept's residual, or a rival's weights; goes on from its checkpoint after a kill.

    ``offload`` is for what reads the text once; where V*'s embedding learns, the text tower works in every step.
    """
    if "method" in unit.settings["settings"]:
        rival_unit(unit, work, device)
        return
    spec, folder = unit.settings, unit.folder(work)
    base, settings = Base(**spec["base"]), Variant(**spec["settings"])
    diffusion = load_diffusion(base, device, offload and not settings.train_token)
    with measured(pick_device(device)) as facts:
        lesson = read_lesson(diffusion, spec, settings, base)
        targets = find_targets(diffusion.unet, settings.rank_ratio, settings.rank, settings.target)
        bank = new_bank(targets, [lesson], settings).to(diffusion.unet.device)
        with _token(diffusion, base, settings) as extra:
            log = _train(diffusion, lesson, bank, settings, folder / "checkpoint.safetensors", unit.name, extra, facts)
    facts["parameters"] = bank.count() + sum(value.numel() for value in extra.values())
    residual, history = folder / "residual.safetensors", folder / "log.jsonl"
    info = {"spec": spec, "spec_hash": unit.hash, "parameters": facts["parameters"], "versions": library_versions()}
    save_residual(residual, bank.to_state(), targets, info, extra.get(TOKEN))
    _write_log(history, log)
    finish(unit, work, [residual, history], facts)
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)


@contextmanager
def _token(diffusion: Diffusion, base: Base, settings: Variant) -> Iterator[dict[str, torch.nn.Parameter]]:
    """V*'s embedding as a parameter in its place, where it learns too; else nothing."""
    if not settings.train_token:
        yield {}
        return
    token_id = diffusion.tokenizer.convert_tokens_to_ids(base.token)
    values = start_values(diffusion, [TOKEN], token_id)
    with replaced(diffusion, values, token_id):
        yield values


def _train(
    diffusion, lesson: Lesson, bank, settings: Variant, checkpoint: Path, name: str, extra: dict, facts: dict
) -> Log:
    with tqdm(total=settings.steps, desc=name, mininterval=2, leave=False, disable=None) as bar:

        def on_step(step: int, loss: float) -> None:
            bar.n = step + 1
            facts["steps"] = facts.get("steps", 0) + 1  # of this run: a resumed one's seconds are not the whole
            bar.set_postfix_str(f"loss {loss:.4f}")

        return train_bank(diffusion.unet, diffusion.scheduler, [lesson], bank, settings, checkpoint, on_step, extra)


def _write_log(path: Path, log: Log) -> None:
    rows = [
        {"step": r["step"], "loss": r["loss"][0]} | ({"norms": r["norms"][0]} if "norms" in r else {}) for r in log.rows
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def train(context: Context) -> None:
    """Train what is not trained yet, then publish. Raises UnitFailures naming the units that failed."""
    runtime = context.profile.runtime
    check_available(context.profile.base, context.profile.train)
    with stage_lock(context.work, "train"):
        draw, learn = (partial(work, offload=runtime.offload) for work in (prior_unit, train_unit))
        drawn = prior_units(context)
        run_units(list(drawn.values()), context.work, draw, runtime.workers, runtime.device)
        units = train_units(context)
        run_units(units, context.work, learn, runtime.workers, runtime.device)
        write_train_costs(context, units, list(drawn.values()))
        with publishing(context.data / "residuals") as out:
            for unit in units:
                (out / unit.name).parent.mkdir(exist_ok=True)
                for name, suffix in (("residual.safetensors", ".safetensors"), ("log.jsonl", ".log.jsonl")):
                    shutil.copyfile(unit.folder(context.work) / name, out / f"{unit.name}{suffix}")
