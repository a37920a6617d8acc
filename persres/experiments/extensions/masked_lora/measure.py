"""LAG for any LoRA: files of diffusers' DreamBooth-LoRA recipe, loaded and masked to their subject.

Each LoRA is sampled unmasked, with our masks, with the paper's masks, with control masks of equal area, and at half strength.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from persres.datasets.layout import Concept, read_concepts, reference_photos, spread_prompts
from persres.datasets.registry import DRAWN
from persres.experiments.evidence.pages import COLUMNS as TITLES
from persres.experiments.evidence.pages import digits_of, interval
from persres.experiments.evidence.provenance import code_of
from persres.experiments.extensions.masked_lora import figures
from persres.experiments.extensions.masked_lora.claims import COLUMNS, RECIPE, claims, negative_controls, per_concept
from persres.experiments.extensions.masked_lora.sampling import CONFIGS, ROWS, SHOWN, LoraSampleSpec, sample_unit
from persres.experiments.extensions.masked_lora.train import KOHYA_FILE, PEFT_FILE, VARIANTS, LoraTrainSpec, train_unit
from persres.experiments.extensions.study import Run, Study
from persres.metrics.summary import bootstrap_interval
from persres.models.loading import model_identity, pick_device
from persres.package_paths import located
from persres.report.table_text import markdown
from persres.units.context import Context
from persres.units.pool import run_units
from persres.units.specs import FileRef, Prompt
from persres.units.unit import Unit
from persres.workflow import run_stage

STEPS, CFG_SCALE = 25, 6.0
GPU_WORKERS = 6  # processes per GPU: these models are too small to fill one
TRAIN_CODE = ("persres.experiments.extensions.masked_lora.train",)
SAMPLE_CODE = ("persres.experiments.extensions.masked_lora.sampling",)
SHEETS = ("heart_mug", "rally_car")
GROUP_COLUMNS = ("clip_text", "dino_object", "followed", "background_change")
GROUP_CONFIGS = ("base", "lora", "auto", "paper")


@dataclass(frozen=True)
class Amount:
    """How much to sample: prompts per concept, images per prompt, and the concepts (none: all)."""

    prompts: int = 20
    images: int = 2
    concepts: tuple[str, ...] = ()


def measure(run: Run, out: Path) -> dict:
    """Train, sample and score what is not finished; write ``concepts.csv``, sheets and figures below ``out``; return the summary."""
    amount = Amount()
    units = sampled_units(run, tuple(VARIANTS), amount)
    rows = pd.concat([pd.read_parquet(unit.folder(run.work) / ROWS) for unit in units], ignore_index=True)
    means, variants = per_concept(rows), list(dict.fromkeys(rows["variant"]))
    means.reset_index().to_csv(out / "concepts.csv", index=False)
    summary = {
        "settings": {name: recipe.model_dump(mode="json") for name, recipe in VARIANTS.items()},
        "sampling": {"prompts": amount.prompts, "images": amount.images, "steps": STEPS, "cfg_scale": CFG_SCALE},
        "configs": {v: {config: _intervals(means.loc[v, config]) for config in CONFIGS} for v in variants},
        "groups": _groups(rows),
        "claims": claims(means, variants),
        "negative_controls": negative_controls(means),
    }
    figures.frontier_figure(summary, out / "frontier.png")
    for concept in SHEETS:
        shown = [unit for unit in units if unit.spec.concept == concept]
        figures.image_sheet(shown, [unit.folder(run.work) / SHOWN for unit in shown], out / f"{concept}.png")
    return summary


def sampled_units(run: Run, variants: tuple[str, ...], amount: Amount) -> list[Unit[LoraSampleSpec]]:
    """Return finished sampling units, after training where necessary.

    LoRAs train on the CPU: one is too small to fill a GPU, and the weights do not depend on the machine.
    """
    context = Context(run.profile, run.work / "masked_lora" / "data", run.work)
    run_stage("fetch", context)
    concepts = [
        c for c in read_concepts(context.data / "concepts") if not amount.concepts or c[0].name in amount.concepts
    ]
    trained = [_training_unit(context, variant, *concept) for variant in variants for concept in concepts]
    run_units(trained, run.work, train_unit, 0, "cpu")
    pairs = zip(trained, [concept for _ in variants for concept in concepts], strict=True)
    units = [_sampling_unit(context, unit, concept, amount) for unit, concept in pairs]
    gpu = pick_device(run.device).type != "cpu"
    sample = partial(sample_unit, batch=amount.prompts * amount.images if gpu else 10)
    run_units(units, run.work, sample, GPU_WORKERS if gpu else 0, run.device)
    return units


def _training_unit(context: Context, variant: str, concept: Concept, folder: Path) -> Unit[LoraTrainSpec]:
    base = context.profile.base
    spec = LoraTrainSpec(
        base=base,
        model=model_identity(base.model),
        concept=concept.name,
        macro_class=concept.macro_class,
        recipe=VARIANTS[variant],
        photos=tuple(FileRef.of(path) for path in reference_photos(folder)),
        code=code_of(TRAIN_CODE),
    )
    return Unit("masked_lora_train", f"{variant}/{concept.name}", spec)


def _sampling_unit(
    context: Context, trained: Unit[LoraTrainSpec], concept: tuple[Concept, Path], amount: Amount
) -> Unit[LoraSampleSpec]:
    profile, (about, folder), variant = context.profile, concept, trained.name.split("/")[0]
    file = KOHYA_FILE if variant == "convolutions" else PEFT_FILE  # both key formats are measured
    models = (profile.base.model, profile.encoders.clip.model, profile.encoders.dino.model)
    prompts = spread_prompts(about.prompts, amount.prompts)
    spec = LoraSampleSpec(
        base=profile.base,
        clip=profile.encoders.clip,
        dino=profile.encoders.dino,
        models=tuple(model_identity(model) for model in models),
        classifier=FileRef.of(Path(located(profile.score.attribute_classifier))),
        concept=about.name,
        macro_class=about.macro_class,
        variant=variant,
        lora=FileRef.of(trained.folder(context.work) / file),
        photos=tuple(FileRef.of(path) for path in reference_photos(folder)),
        prompts=tuple(Prompt(number=n, group=g, text=t) for n, g, t in prompts),
        images=amount.images,
        steps=STEPS,
        cfg_scale=CFG_SCALE,
        configs=tuple(CONFIGS),
        code=code_of((*SAMPLE_CODE, DRAWN["miniworld"].classifier)),
    )
    return Unit("masked_lora_sample", trained.name, spec)


def _intervals(part: pd.DataFrame) -> dict[str, dict[str, float | None]]:
    """Mean over concepts and interval by column."""
    result = {}
    for column in (*COLUMNS, "gained"):
        values = part[column].to_numpy()
        low, high = bootstrap_interval(values, 10_000, 0)
        bounds = {"mean": float(values.mean()), "low": low, "high": high}
        result[column] = dict.fromkeys(bounds) if np.isnan(values).any() else bounds
    return result


def _groups(rows: pd.DataFrame) -> dict[str, dict[str, dict[str, float]]]:
    """Means of the recipe's LoRA by prompt group and config."""
    part = rows[rows["variant"] == RECIPE]
    means = (
        part[part["config"].isin(GROUP_CONFIGS)].groupby(["group", "config"], sort=False)[list(GROUP_COLUMNS)].mean()
    )
    return {
        group: {name: {c: float(v) for c, v in means.loc[(group, name)].items()} for name in means.loc[group].index}
        for group in dict.fromkeys(part["group"])
    }  # fmt: skip


LABELS = {
    "base": "base model",
    "lora": "LoRA, unmasked",
    "auto": "LoRA, our masks",
    "paper": "LoRA, the paper's masks",
    "share": "LoRA, the 35% with the most attention",
    "disk": "LoRA, a disk of our masks' area",
    "random": "LoRA, random pixels of that area",
    "weaker": "LoRA, unmasked, half strength",
    "inverted": "LoRA, our masks inverted",
}


def configs(summary: dict) -> str:
    """Every variant and config."""
    return _configs_table(summary, tuple(summary["configs"]))


def recipe_configs(summary: dict) -> str:
    """Every config of the recipe's LoRA."""
    return _configs_table(summary, (RECIPE,))


def _configs_table(summary: dict, variants: tuple[str, ...]) -> str:
    titles = TITLES | {"area": "mask area"}
    rows = [
        [variant, LABELS[name], *(interval(scores[c], digits_of(c)) for c in COLUMNS)]
        for variant in variants
        for name, scores in summary["configs"][variant].items()
    ]
    return markdown(["variant", "config", *(titles[c] for c in COLUMNS)], rows)


def groups(summary: dict) -> str:
    """The recipe's LoRA by prompt group."""
    rows = [
        [group, LABELS[name], *(f"{value:.{digits_of(c)}f}" for c, value in scores.items())]
        for group, by_config in summary["groups"].items()
        for name, scores in by_config.items()
    ]
    return markdown(["prompts", "config", *(TITLES[c] for c in GROUP_COLUMNS)], rows)


def settings(summary: dict) -> str:
    """Training settings of the LoRAs."""
    rows = [
        [name, ", ".join(f"`{t}`" for t in (*r["targets"], *r["text"])), str(r["rank"]), f"{r['lr']:g}", str(r["steps"]), str(r["batch"])]
        for name, r in summary["settings"].items()
    ]  # fmt: skip
    return markdown(["variant", "layers", "rank", "lr", "steps", "batch size"], rows)


BLOCKS = {"recipe_configs": recipe_configs, "configs": configs, "groups": groups, "settings": settings}
STUDY = Study("masked_lora", "LAG for any LoRA", measure, BLOCKS)
