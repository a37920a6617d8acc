"""The golden run's chain: every stage on the mini world, with every method, mask and control cut down to a few steps."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from persres.datasets.layout import read_concepts, reference_photos
from persres.experiments.golden.figures import Collector, weight_changes
from persres.methods.common.registry import make_profile
from persres.package_paths import located
from persres.stages import STAGES
from persres.units.context import Context
from persres.workflow import run_stage

CONCEPTS = ("heart_mug", "star_robot", "banded_cat")  # a pair and a triple for multi-concept sampling
STEPS, FEW = 12, 2  # of training and sampling: of one concept, of everything else
BEST_BLOCK = "up_blocks.1.attentions.0"
BLENDED = {"lag": True, "mask": "otsu", "mask_blocks": "confidence_weighted"}

# `ours` learns all concepts in one pass, which the studies ask for; `alone` learns one. The others are cut down further.
RESIDUAL = {
    "early_stopping": {"concepts": 2, "stop": "early", "steps": 6, "early_stop_every": 2, "early_stop_below": 0.9, "early_stop_draws": 4},
    "attn_kv": {"target": "attn_kv"},
    "proj_in": {"target": "proj_in"},
    "no_class": {"name_class": False},
    "class_images": {"num_class_images": 2},
    "train_token": {"train_token": True},
    "nearest_noun": {"class_source": "wordnet"},
    "zero_shot_class": {"class_source": "zero_shot"},
    "fixed_rank": {"rank": 8, "init": "lora"},
    "unit_variance": {"init": "normal", "init_gain": 1.0},
}  # fmt: skip
OTHERS = {
    "textual_inversion": {"method": "textual_inversion", "lr": 0.05, "templates": "neutral"},
    "dreambooth": {"method": "dreambooth", "batch_size": 1, "lr": 0.0003, "num_class_images": 2},
    "custom_diffusion": {"method": "custom_diffusion", "concepts": None, "lr": 0.001, "num_class_images": 2, "resize": False},
    "custom_diffusion_resized": {"method": "custom_diffusion", "lr": 0.001, "num_class_images": 0},
    "vico": {"method": "vico", "lr": 0.0002, "token_lr": 0.02, "templates": "prompt"},
}  # fmt: skip
VARIANTS = {"ours": {"steps": STEPS // 3}, "alone": {"steps": STEPS, "concepts": 1}} | {
    name: {"steps": 2, "batch_size": 2, "concepts": 1} | settings for name, settings in (RESIDUAL | OTHERS).items()
}

# Sampled in one batch with other concepts, then one concept by itself, then with one variant each.
BATCHED = {
    "base": {"prompts": 2},
    "ours": {"variant": "ours"},
    "wrong_concept": {"variant": "ours", "wrong_concept": True},
    "lag_batched": {"variant": "ours", "lag": True},
}
ALONE = {
    "alone": {"steps": FEW + 1},  # other steps than the rest: sampled by itself, with W + ΔW in W's place
    "lag_paper": {"lag": True, "steps": STEPS},
    "lag_auto": {"lag": "auto", "steps": STEPS},
    "weaker": {"strength": 0.6},
    "zero_strength": {"strength": 0.0},
    "uncond_base": {"lag": True, "uncond_rule": "base"},
    "uncond_full": {"lag": True, "uncond_rule": "full"},
    "lag_otsu": {"lag": True, "mask": "otsu"},
    "lag_soft": {"lag": True, "mask": "soft"},
    "lag_quantile": {"lag": True, "mask": "quantile", "mask_area": 0.3},
    "lag_best_block": {"lag": True, "mask_blocks": [BEST_BLOCK]},
    "lag_smooth": {**BLENDED, "mask_smooth": 0.7},
    "lag_disk": {"lag": True, "mask_control": "disk"},
    "lag_random": {"lag": True, "mask_control": "random"},
    "lag_inverted": {**BLENDED, "mask_control": "inverted"},
    "lag_scenes": {**BLENDED, "mask_when": "scenes"},
    "lag_high_confidence": {**BLENDED, "mask_when": "high_confidence"},
}
CLASSES = {"nearest_noun": "wordnet", "zero_shot_class": "zero_shot"}  # variants whose prompts name another class
CONFIGS = BATCHED | {name: {"variant": "alone", "prompts": 2} | config for name, config in ALONE.items()}
CONFIGS |= {
    name: {"variant": name} | ({"class_source": CLASSES[name]} if name in CLASSES else {})
    for name in (RESIDUAL | OTHERS)
    if name not in ("unit_variance", "early_stopping")
}
PROFILE = {
    "base": {"model": "package:miniworld/weights/sd", "resolution": 64, "rare_token": "sks"},
    "encoders": {
        "clip": {"model": "local-dir:package:miniworld/weights/clip", "pretrained": None},
        "dino": {"model": "local-dir:package:miniworld/weights/dino", "resize": 64, "crop": 64},
    },
    "fetch": {"dataset": "miniworld", "references": 4, "held_out": 1, "concepts": list(CONCEPTS)},
    "macro_class": {
        "source": "dataset",
        "nearest": True,
        "zero_shot": True,
        "candidates": "package:miniworld/weights/nouns.txt",
        "template": "a photo of a {}",
        "zero_shot_settings": {"templates": ["a photo of a {}"], "num_candidates": 3, "noise_levels": 1},
    },
    "train": {"rank_ratio": 0.4, "class_images": {"steps": FEW}, "variants": VARIANTS},
    "sample": {"images_per_prompt": 1, "prompts": 1, "steps": FEW, "configs": CONFIGS},
    "score": {"attribute_classifier": "package:miniworld/weights/judge"},
    "tables": {"bootstrap": 200, "rows": {"table1": {"ours": "Ours", "lag_batched": "Ours w/ LAG sampling"}}},
    "runtime": {"workers": 1, "device": "cpu", "sample_batch": 10},
}
STABLE = {"ours": "residual"}  # names that studies ask for -> names of figures


def golden_context(folder: Path) -> Context:
    """Run every stage in a fresh folder; returns the context."""
    context = Context(make_profile(PROFILE), folder / "data", folder / "work")
    for stage in STAGES:
        run_stage(stage, context)
    return context


def chain_figures(context: Context, out: Collector) -> None:
    """Figures of everything that the stages published."""
    for concept, folder in read_concepts(context.data / "concepts"):
        out.add_photos(f"photos/{concept.name}", reference_photos(folder))
        out.add("text", f"prompts/{concept.name}", " | ".join(text for _, text in concept.prompts[:4]))
    _classes(context.data / "macro_class", out)
    for log in sorted((context.data / "learned").glob("*/*.log.jsonl")):
        _trained(log, out)
    for archive in sorted((context.data / "samples").glob("*/*.zip")):
        config = archive.parent.name
        out.add_archive(f"samples/{STABLE.get(config, config)}/{archive.stem}", archive)
    _scores(context.data / "scores", out)
    _tables(context.data / "tables", out)


def _classes(folder: Path, out: Collector) -> None:
    """Nearest noun and zero-shot class of each concept."""
    for concept, entry in json.loads(next(folder.glob("*.json")).read_text())["concepts"].items():
        out.add("text", f"class/{concept}", ", ".join(str(entry[key]) for key in ("selected", "nearest", "zero_shot")))
        ranked = {f"nearest_{i}": cosine for i, (_, cosine) in enumerate(entry["top"])}
        ranked |= {f"zero_shot_{i}": share for i, (_, share) in enumerate(entry["zero_shot_top"])}
        out.add_all("class", f"class/{concept}", ranked | {"confidence": entry["confidence"], "agreement": entry["agreement"]})  # fmt: skip


def _trained(log: Path, out: Collector) -> None:
    """Losses of every step, and the change of the weights."""
    concept, variant = log.name.removesuffix(".log.jsonl"), log.parent.name
    name = f"train/{STABLE.get(variant, variant)}/{concept}"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    out.add("text", f"{name}/steps", str(len(rows)))
    for row in rows:
        out.add("loss", f"{name}/step_{row['step'] + 1:02d}", row["loss"])
        out.add("loss", f"{name}/check_{row['step'] + 1:02d}", row.get("fixed_loss"))
    changes = weight_changes(log.parent / f"{concept}.safetensors", Path(located(PROFILE["base"]["model"])))
    for group, (size, projection) in changes.items():
        out.add("weights", f"{name}/{group}", size)
        out.add("direction", f"{name}/{group}", projection)


def _scores(folder: Path, out: Collector) -> None:
    rows = pd.read_parquet(next(folder.glob("*.parquet")))
    columns = [c for c in rows.select_dtypes("number").columns if c not in ("seed", "image")]
    for (config, concept), part in rows.groupby(["config", "concept"], sort=False):
        for number, (_, row) in enumerate(part.iterrows()):
            out.add_scores(f"scores/{STABLE.get(config, config)}/{concept}/{number:02d}", row[columns].to_dict())


def _tables(folder: Path, out: Collector) -> None:
    """The paired differences; the other tables are means of scores."""
    for number, row in pd.read_csv(folder / "differences.csv").iterrows():
        values = row.drop(["config", "against"]).to_dict()
        out.add_scores(f"differences/{number:02d}", {name: float(value) for name, value in values.items()})
