"""Several concepts in one image (the paper's future work), on pairs and triples, against baselines that need no further training.

Any profile named ``multi_concept`` works. Without an attribute classifier (CustomConcept101's pairs) LAG's masks give the regions.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from persres.experiments.evidence.pages import interval
from persres.experiments.extensions.multi_concept import figures
from persres.experiments.extensions.multi_concept.cases import Case, cases_of
from persres.experiments.extensions.multi_concept.claims import claims, negative_controls
from persres.experiments.extensions.multi_concept.sampling import CONFIGS, TRIPLE_CONFIGS, MultiConceptSampler
from persres.experiments.extensions.multi_concept.scores import COLUMNS, RegionScorer, score_configs, with_best_halves
from persres.experiments.extensions.study import Run, Study
from persres.experiments.run_profile import run_profile
from persres.metrics.clip_scores import load_clip
from persres.metrics.dino_scores import load_dino
from persres.metrics.summary import bootstrap_interval
from persres.models.diffusion import load_diffusion
from persres.report.table_text import markdown

PROFILE = "multi_concept"
STAGES = ("fetch", "macro_class", "train")
ROUNDS = 10_000
CACHE = "multi_concept_images"  # below the work folder
TITLES = {
    "base": "base model",
    "added": "both residuals added",
    "merged": "Custom Diffusion, merged",
    "halves": "halves, prompt order",
    "halves_back": "halves, other order",
    "halves_best": "*the better order of halves*",
    "one_mask": "one mask for both",
    "per_block_median": "each block's map at its median",
    "ours": "**ours**",
    "swapped": "*masks swapped*",
    "one_zeroed": "*second residual zeroed*",
    "rendered": "*the renderer's images*",
}
PAGE_COLUMNS = ("worse", "contrast", "leakage", "missing", "background_change", "mask_accuracy", "clip_text")
TRIPLE_COLUMNS = ("worse", "contrast", "leakage", "missing", "background_change")


def measure(run: Run, out: Path) -> dict:
    """Sample and score every config; write ``rows.csv`` and figures below ``out``; return the summary."""
    context = run_profile(PROFILE, run.params, run.work, run.device, STAGES)
    cases = cases_of(context)
    pairs, triples = ([c for c in cases if len(c.names) == k] for k in (2, 3))
    sampler = MultiConceptSampler(context, load_diffusion(context.profile.base, run.device), run.work / CACHE)
    encoders = context.profile.encoders
    clip, dino = load_clip(encoders.clip, run.device), load_dino(encoders.dino, run.device)
    scorer = RegionScorer(context, clip, dino, sampler.names)
    sampled = {config: sampler.sample(config, pairs) for config in CONFIGS}
    rows = with_best_halves(score_configs(scorer, sampled, pairs))
    original = claims(rows)
    summary = {
        "pairs": len({c.group for c in pairs}), "images": len(pairs), "classified": scorer.classifier is not None,
        "configs": config_intervals(rows), "masks": mask_facts(sampled["ours"].masks),
        "claims": original, "negative_controls": negative_controls(rows, original),
        "triples": _triples(sampler, scorer, triples),
    }  # fmt: skip
    rows.round(5).to_csv(out / "rows.csv", index=False)
    figures.image_sheet(context, pairs, sampled, out / "sheet.png")
    figures.scores_figure(summary, out / "scores.png")
    return summary


def _triples(sampler: MultiConceptSampler, scorer: RegionScorer, triples: list[Case]) -> dict:
    if not triples:
        return {}
    sampled = {config: sampler.sample(config, triples) for config in TRIPLE_CONFIGS}
    return config_intervals(score_configs(scorer, sampled, triples))


def config_intervals(rows: pd.DataFrame) -> dict:
    """Return config -> column -> mean and 95% interval over pairs."""
    means: dict = {}
    for (config, _), part in rows.groupby(["config", "group"]):
        for column in COLUMNS:
            means.setdefault(config, {}).setdefault(column, []).append(part[column].mean())
    return {m: {column: _interval(np.array(values)) for column, values in by.items()} for m, by in means.items()}


def _interval(values: np.ndarray) -> dict:
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return {"mean": None, "low": None, "high": None}
    low, high = bootstrap_interval(values, ROUNDS, 0)
    known = low == low  # NaN below five pairs
    return {"mean": float(values.mean()), "low": float(low) if known else None, "high": float(high) if known else None}


def mask_facts(masks: np.ndarray) -> dict[str, float]:
    """Return the mean area of the first two of our masks [n, K, s, s], and the largest sum at any pixel."""
    first, second = masks.mean((0, 2, 3))[:2]
    return {"first": float(first), "second": float(second), "max_sum": float(masks.sum(1).max())}


def _table(scores: dict, columns: tuple[str, ...]) -> str:
    rows = [[TITLES[m], *(interval(scores[m][c], 3) for c in columns)] for m in TITLES if m in scores]
    return markdown(["config", *(COLUMNS[c] for c in columns)], rows)


def configs(summary: dict) -> str:
    """Every config on pairs."""
    return _table(summary["configs"], tuple(COLUMNS))


def main_configs(summary: dict) -> str:
    """Every config on pairs, main scores."""
    return _table(summary["configs"], PAGE_COLUMNS)


def triples(summary: dict) -> str:
    """Three concepts in one image."""
    return _table(summary["triples"], TRIPLE_COLUMNS)


def size(summary: dict) -> str:
    """Amount of data, and the area of the masks."""
    masks = summary["masks"]
    return (
        f"{summary['pairs']} pairs, {summary['images']} images per config. Our masks cover {masks['first']:.0%} of the image for the first"
        f" concept and {masks['second']:.0%} for the second; their sum at a pixel is at most {masks['max_sum']:.2f}.\n"
    )


BLOCKS = {"main_configs": main_configs, "configs": configs, "triples": triples, "size": size}
STUDY = Study("multi_concept", "Several concepts in one image", measure, BLOCKS, PROFILE)
