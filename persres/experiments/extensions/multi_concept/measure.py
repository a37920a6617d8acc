"""Several concepts in one picture (the paper's future work): measured on pairs and triples, beside what else can be done without training
again. Any profile named ``several`` will do: without a judge the regions are LAG's own masks (CustomConcept101's list of pairs)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from persres.experiments.evidence.pages import interval
from persres.experiments.evidence.provenance import CHAIN_CODE
from persres.experiments.extensions.multi_concept import figures as plots
from persres.experiments.extensions.multi_concept.cases import Case, cases_of, rendered_pairs
from persres.experiments.extensions.multi_concept.claims import (
    COLUMNS,
    RegionScorer,
    examine_claims,
    negative_controls,
    score_images,
    with_best_halves,
)
from persres.experiments.extensions.multi_concept.sampling import (
    CODE,
    CONFIGS,
    TRIPLE_CONFIGS,
    MultiConceptSampler,
    SampledImages,
)
from persres.experiments.extensions.study import Run, Study
from persres.experiments.run_profile import run_profile
from persres.metrics.clip_scores import load_clip
from persres.metrics.dino_scores import load_dino
from persres.metrics.summary import bootstrap_interval
from persres.models.diffusion import load_diffusion
from persres.report.table_text import markdown
from persres.units.context import Context

PROFILE = "several"
STAGES = ("fetch", "macro_class", "train")
ROUNDS = 10_000
CACHE = "beyond-several"  # below the work folder: pictures by what they depend on


def measure(run: Run, out: Path, count: int | None = None, **changes) -> dict:
    """Draw, score, compare; ``count`` takes so many pairs, ``changes`` other settings of ``sample`` (both for a quick look)."""
    context = run_profile(PROFILE, run.params, run.work, run.device, STAGES)
    if changes:
        sample = context.profile.sample.model_copy(update=changes)
        context = Context(context.profile.model_copy(update={"sample": sample}), context.data, context.work)
    cases = cases_of(context, count)
    pairs, triples = ([c for c in cases if len(c.names) == k] for k in (2, 3))
    studio = MultiConceptSampler(context, load_diffusion(context.profile.base, run.device), run.work / CACHE)
    encoders = context.profile.encoders
    reader = RegionScorer(
        context, run.device, load_clip(encoders.clip, run.device), load_dino(encoders.dino, run.device), studio.names
    )
    drawn = {method: studio.draw(method, pairs) for method in CONFIGS}
    rows = with_best_halves(score_configs(reader, drawn, pairs))
    summary = {"pairs": len({c.group for c in pairs}), "pictures": len(pairs), "judged": reader.judge is not None,
               "methods": figures(rows), "masks": mask_facts(drawn["ours"].masks)}  # fmt: skip
    found = examine_claims(rows)
    summary |= {"claims": list(found.values()), "broken": negative_controls(rows, found)}
    summary["triples"] = _triples(studio, reader, triples)
    rows.round(5).to_csv(out / "rows.csv", index=False)
    plots.image_sheet(context, pairs, drawn, out / "sheet.png")
    plots.scores_figure(summary["methods"], TITLES, out / "scores.png")
    (out / "methods.md").write_text(f"# Several concepts in one picture\n\n{methods(summary)}\n{threes(summary)}")
    return summary


def score_configs(reader: RegionScorer, drawn: dict[str, SampledImages], cases: list[Case]) -> pd.DataFrame:
    """Rows of every method; of pairs that a judge can read also of ``rendered``, the renderer's own pictures."""
    base, masks = drawn["base"], drawn["ours"].masks
    found = [score_images(reader, method, one, cases, base, masks) for method, one in drawn.items()]
    if reader.judge is not None and len(cases[0].names) == 2:
        found.append(score_images(reader, "rendered", SampledImages(rendered_pairs(cases), None), cases, base, masks))
    return pd.concat(found, ignore_index=True)


def _triples(studio: MultiConceptSampler, reader: RegionScorer, triples: list[Case]) -> dict:
    if not triples:
        return {}
    return figures(score_configs(reader, {method: studio.draw(method, triples) for method in TRIPLE_CONFIGS}, triples))


def figures(rows: pd.DataFrame) -> dict:
    """By method and column: mean and 95% interval over pairs."""
    found: dict = {}
    for (method, _), part in rows.groupby(["method", "group"]):
        for column in COLUMNS:
            found.setdefault(method, {}).setdefault(column, []).append(part[column].mean())
    return {m: {column: _figure(np.array(values)) for column, values in by.items()} for m, by in found.items()}


def _figure(values: np.ndarray) -> dict:
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return {"mean": None, "low": None, "high": None}
    low, high = bootstrap_interval(values, ROUNDS, 0)
    known = low == low  # NaN below five pairs
    return {"mean": float(values.mean()), "low": float(low) if known else None, "high": float(high) if known else None}


def mask_facts(masks: np.ndarray) -> dict[str, float]:
    """What our masks [n, K, s, s] cover on average, and the most that any pixel has."""
    first, second = masks.mean((0, 2, 3))[:2]
    return {"first": float(first), "second": float(second), "most": float(masks.sum(1).max())}


TITLES = {
    "base": "base model", "added": "both LoRAs added", "merged": "Custom Diffusion, merged", "halves": "halves, prompt's order",
    "halves_back": "halves, other order", "halves_best": "*the better of both halves*", "one_mask": "one mask for both",
    "own_blocks": "each block's own map, median", "ours": "**ours**", "swapped": "*masks swapped*", "one_zeroed": "*second residual zeroed*",
    "rendered": "*the renderer's own pictures*",
}  # fmt: skip


def _table(found: dict, columns: tuple[str, ...]) -> str:
    rows = [[TITLES[m], *(interval(found[m][c], 3) for c in columns)] for m in TITLES if m in found]
    return markdown(["", *(COLUMNS[c] for c in columns)], rows)


def methods(summary: dict) -> str:
    """Every method on pairs."""
    return _table(summary["methods"], tuple(COLUMNS)[:9])


def threes(summary: dict) -> str:
    """Three concepts in one picture."""
    return _table(summary["triples"], ("worse", "contrast", "leakage", "missing", "background_change"))


def size(summary: dict) -> str:
    """How much was measured, and what the masks cover."""
    masks = summary["masks"]
    return (
        f"{summary['pairs']} pairs, {summary['pictures']} pictures by each method. Our masks cover {masks['first']:.0%} of the picture for"
        f" the first concept and {masks['second']:.0%} for the second; no pixel has more than {masks['most']:.2f} in sum.\n"
    )


STUDY = Study(
    "several",
    measure,
    (*CHAIN_CODE, *CODE, "persres.experiments.extensions.regions", "persres.experiments.extensions.multi_concept.sampling", "persres.experiments.extensions.multi_concept.claims"),
    {"methods": methods, "threes": threes, "size": size},
    PROFILE,
)  # fmt: skip
