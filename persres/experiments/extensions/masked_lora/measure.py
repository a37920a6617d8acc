"""LAG for any LoRA: files of diffusers' own DreamBooth-LoRA recipe, loaded and confined to their subject.

Each is drawn whole, confined by our masks and by the paper's, and beside masks of the same area that do not look, a LoRA that is simply
weaker, and masks turned inside out.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from persres.datasets.layout import Concept, read_concepts, reference_photos, spread_prompts
from persres.datasets.registry import classifier_module
from persres.experiments.evidence.pages import COLUMNS as TITLES
from persres.experiments.evidence.pages import digits_of, interval
from persres.experiments.evidence.provenance import CHAIN_CODE, code_of
from persres.experiments.extensions.masked_lora import figures
from persres.experiments.extensions.masked_lora.sampling import CONFIGS, ROWS, SHOWN, LoraSampleSpec, sample_unit
from persres.experiments.extensions.masked_lora.train import KOHYA_FILE, PEFT_FILE, VARIANTS, LoraTrainSpec, train_unit
from persres.experiments.extensions.study import Run, Study
from persres.experiments.extensions.verdicts import at_most, claim, verdict
from persres.metrics.summary import bootstrap_interval
from persres.models.loading import model_identity, pick_device
from persres.package_paths import located
from persres.report.table_text import markdown
from persres.units.context import Context
from persres.units.pool import run_units
from persres.units.specs import FileRef, Prompt
from persres.units.unit import Unit
from persres.workflow import run_stage

PROMPTS, IMAGES, STEPS, CFG_SCALE = 20, 2, 25, 6.0  # prompts of each concept, pictures of each, sampling
ON_A_GPU = 6  # processes that draw on one GPU; these models leave it waiting
CODE = ("persres.experiments.extensions.masked_lora.train", "persres.experiments.extensions.masked_lora.sampling")
COLUMNS = ("clip_text", "clip_image", "dino", "dino_object", "followed", "background_change", "area")
SHARE = 2 / 3  # of the LoRA's gain that must be kept
KEPT = {"dino_object": 0.07, "dino": 0.08}  # what confining may cost
AGAINST = {
    "lora": "the whole LoRA",
    "disk": "a disk of the same area",
    "random": "a random choice of the same area",
    "weaker": "the whole LoRA at half its strength",
    "paper": "the paper's masks",
}
SHEETS = ("heart_mug", "rally_car")
SHARED = "attention"  # the variant that is the recipe itself


def measure(run: Run, out: Path) -> dict:
    """Train, draw and score what is not done yet; tables, sheets and figures below ``out``."""
    found = sampled_units(run, tuple(VARIANTS), PROMPTS, IMAGES)
    rows = pd.concat([pd.read_parquet(unit.folder(run.work) / ROWS) for unit in found], ignore_index=True)
    means = per_concept(rows)
    means.reset_index().to_csv(out / "concepts.csv", index=False)
    claims = [c | {"claim": f"{v}_{c['claim']}", "says": f"{v}: {c['says']}"} for v in _variants(rows) for c in _claims(means.loc[v])]  # fmt: skip
    summary = {
        "settings": {name: recipe.model_dump(mode="json") for name, recipe in VARIANTS.items()},
        "drawn": {"prompts": PROMPTS, "images": IMAGES, "steps": STEPS, "cfg_scale": CFG_SCALE},
        "ways": {v: {way: _figures(means.loc[v, way]) for way in CONFIGS} for v in _variants(rows)},
        "groups": _groups(rows),
        "claims": claims,
        "broken": _broken(means),
    }
    figures.frontier_figure(summary["ways"], out / "frontier.png")
    for concept in SHEETS:
        shown = [unit for unit in found if unit.spec.concept == concept]
        figures.image_sheet(shown, [unit.folder(run.work) / SHOWN for unit in shown], out / f"{concept}.png")
    (out / "ways.md").write_text(f"# LAG for any LoRA\n\n{ways(summary)}\n{groups(summary)}")
    return summary


def sampled_units(run: Run, variants: tuple[str, ...], prompts: int, images: int, concepts: tuple[str, ...] = ()) -> list[Unit[LoraSampleSpec]]:  # fmt: skip
    """Finished units of drawing, trained first where need be. LoRAs are trained on the CPU: one is too small to fill a GPU, and the same
    weights come of it wherever it runs."""
    context = Context(run.profile, run.work / "loras" / "data", run.work)
    run_stage("fetch", context)
    chosen = [c for c in read_concepts(context.data / "concepts") if not concepts or c[0].name in concepts]
    trained = [_training(context, variant, *concept) for variant in variants for concept in chosen]
    run_units(trained, run.work, train_unit, 0, "cpu")
    units = [_drawing(context, unit, variant, *concept, prompts, images) for unit, (variant, concept) in zip(
        trained, [(v, c) for v in variants for c in chosen], strict=True)]  # fmt: skip
    gpu = pick_device(run.device).type != "cpu"
    draw = partial(sample_unit, batch=prompts * images if gpu else 10)
    run_units(units, run.work, draw, ON_A_GPU if gpu else 0, run.device)
    return units


def _training(context: Context, variant: str, concept: Concept, folder: Path) -> Unit[LoraTrainSpec]:
    base = context.profile.base
    spec = LoraTrainSpec(
        base=base,
        model=model_identity(base.model),
        concept=concept.name,
        macro_class=concept.macro_class,
        recipe=VARIANTS[variant],
        photos=tuple(FileRef.of(path) for path in reference_photos(folder)),
        code=code_of(CODE[:1]),
    )
    return Unit("loras-train", f"{variant}/{concept.name}", spec)


def _drawing(
    context: Context,
    trained: Unit[LoraTrainSpec],
    variant: str,
    concept: Concept,
    folder: Path,
    prompts: int,
    images: int,
) -> Unit[LoraSampleSpec]:
    profile = context.profile
    file = KOHYA_FILE if variant == "convolutions" else PEFT_FILE  # both spellings are measured
    spec = LoraSampleSpec(
        base=profile.base,
        clip=profile.encoders.clip,
        dino=profile.encoders.dino,
        models=tuple(model_identity(m) for m in (profile.base.model, profile.encoders.clip.model, profile.encoders.dino.model)),
        judge=FileRef.of(Path(located(profile.score.attribute_classifier))),
        concept=concept.name,
        macro_class=concept.macro_class,
        variant=variant,
        lora=FileRef.of(trained.folder(context.work) / file),
        photos=tuple(FileRef.of(path) for path in reference_photos(folder)),
        prompts=tuple(Prompt(number=n, group=g, text=t) for n, g, t in spread_prompts(concept.prompts, prompts)),
        images=images,
        steps=STEPS,
        cfg_scale=CFG_SCALE,
        ways=tuple(CONFIGS),
        code=code_of((*CODE[1:], classifier_module("miniworld").__name__)),
    )  # fmt: skip
    return Unit("loras-draw", f"{variant}/{concept.name}", spec)


def _variants(rows: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(rows["variant"]))


def per_concept(rows: pd.DataFrame) -> pd.DataFrame:
    """Means by (variant, way, concept); ``gained``: DINO of the object over the base model's; ``worth``: that per
    unit of background change (NaN for the base model, which has neither)."""
    means = rows.groupby(["variant", "way", "concept"], sort=False)[list(COLUMNS)].mean()
    base = means.xs("base", level="way")["dino_object"]
    gained = means["dino_object"] - base.reindex(means.index.droplevel("way")).to_numpy()
    means["gained"] = gained
    means["worth"] = gained / means["background_change"]
    return means.sort_index()


def _claims(means: pd.DataFrame) -> Iterator[dict]:
    """Of one variant, ``means`` by (way, concept); ``auto`` is what is claimed of."""
    yield claim("learned", "the LoRA has learned its subject (object's DINO over the base model)", "dino_object", _values(means, "lora", "gained"), 0.05)  # fmt: skip
    yield from _confined(means, "auto")


def _confined(means: pd.DataFrame, way: str) -> Iterator[dict]:
    mine, whole = partial(_values, means, way), partial(_values, means, "lora")
    over = mine("gained") - SHARE * whole("gained")
    yield claim("kept", "identity is kept: at least two thirds of what the LoRA adds to the object's DINO", "dino_object", over, 0.0)  # fmt: skip
    for column, bound in KEPT.items():
        yield at_most(f"kept_{column}", f"at most {bound} of {TITLES[column]} lost", column, whole(column) - mine(column), bound)  # fmt: skip
    yield claim("gained", "it stays above the base model's", "dino_object", mine("gained"), 0.05)
    share = mine("background_change") / whole("background_change")
    yield at_most("halved", "the background's change is halved or better", "share_of_the_LoRA's_change", share, 0.5)
    yield claim("text", "text alignment is given back", "clip_text", mine("clip_text") - whole("clip_text"), 0.0)
    for other, says in AGAINST.items():
        more = mine("worth") - _values(means, other, "worth")
        yield claim(f"worth_{other}", f"more identity per unit of background change than {says}", "dino_object_per_change", more, 1.0)  # fmt: skip


def _values(means: pd.DataFrame, way: str, column: str) -> np.ndarray:
    return means.loc[way, column].to_numpy()


def _broken(means: pd.DataFrame) -> dict[str, dict[str, str]]:
    """The recipe's LoRA with its masks inverted, all over, and nowhere."""
    part = means.loc[SHARED]
    whole = {c["claim"]: c for c in _claims(part)}
    worth = tuple(f"worth_{other}" for other in AGAINST)
    fallen = {
        "masks inverted": ("inverted", ("kept", "halved", *worth)),
        "masks of ones: the whole LoRA": ("lora", ("halved", "text", *(w for w in worth if w != "worth_lora"))),
        "masks of zeros: the base model": ("base", ("kept", "gained", *worth)),
    }
    found = {}
    for what, (way, names) in fallen.items():
        instead = {c["claim"]: c for c in _confined(part, way)}
        held = [
            name for name in names if whole[name]["holds"]
        ]  # one that does not hold whole proves nothing by falling
        found[what] = {f"{SHARED}_{name}": verdict(whole[name], instead[name]) for name in held}
    return found


def _figures(part: pd.DataFrame) -> dict[str, dict[str, float | None]]:
    """Mean over concepts and interval by column."""
    found = {}
    for column in (*COLUMNS, "gained"):
        values = part[column].to_numpy()
        low, high = bootstrap_interval(values, 10_000, 0)
        known = not np.isnan(values).any()
        found[column] = {"mean": float(values.mean()) if known else None, "low": low if known else None, "high": high if known else None}  # fmt: skip
    return found


def _groups(rows: pd.DataFrame) -> dict[str, dict[str, dict[str, float]]]:
    """Of the recipe's LoRA: means by prompt group and way."""
    part = rows[rows["variant"] == SHARED]
    columns = ["clip_text", "dino_object", "followed", "background_change"]
    by = part[part["way"].isin(("base", "lora", "auto", "paper"))].groupby(["group", "way"], sort=False)[columns].mean()
    return {group: {way: {c: float(v) for c, v in by.loc[(group, way)].items()} for way in by.loc[group].index} for group in dict.fromkeys(part["group"])}  # fmt: skip


LABELS = {
    "base": "base model",
    "lora": "the LoRA, whole",
    "auto": "confined, our masks",
    "paper": "confined, the paper's masks",
    "share": "confined, the 35% with the most attention",
    "disk": "a disk of our masks' area",
    "random": "a random choice of that area",
    "weaker": "whole, at half strength",
    "inverted": "our masks inverted",
}


def ways(summary: dict) -> str:
    """Every variant drawn in every way."""
    titles = TITLES | {"area": "area of the mask"}
    rows = []
    for variant, by_way in summary["ways"].items():
        for way, found in by_way.items():
            cells = [interval(found[c], digits_of(c)) for c in COLUMNS]
            rows.append([variant, LABELS[way], *cells])
    return markdown(["LoRA", "drawn", *(titles[c] for c in COLUMNS)], rows)


def groups(summary: dict) -> str:
    """The recipe's LoRA by prompt group."""
    rows = [
        [group, LABELS[way], *(f"{found[c]:.4f}" if c == "background_change" else f"{found[c]:.3f}" for c in found)]
        for group, by_way in summary["groups"].items()
        for way, found in by_way.items()
    ]
    return markdown(["prompts", "drawn", *(TITLES[c] for c in ("clip_text", "dino_object", "followed", "background_change"))], rows)  # fmt: skip


def settings(summary: dict) -> str:
    """How the LoRAs were trained and drawn."""
    rows = [
        [name, ", ".join(f"`{t}`" for t in (*r["targets"], *r["text"])), str(r["rank"]), f"{r['lr']:g}", str(r["steps"]), str(r["batch"])]
        for name, r in summary["settings"].items()
    ]  # fmt: skip
    return markdown(["LoRA", "layers", "rank", "rate", "steps", "batch"], rows)


STUDY = Study(
    "loras",
    measure,
    (*CHAIN_CODE, *CODE, "persres.pipeline"),
    {"ways": ways, "groups": groups, "settings": settings},
)
