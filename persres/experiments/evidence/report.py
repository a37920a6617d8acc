"""The files of ``data/evidence/`` from one run: summary.json, tables and figures."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd

from persres.experiments.evidence import claims, figures, pages
from persres.experiments.evidence.claims import MARGINS
from persres.experiments.evidence.localisation import TOKENS, baselines, localisation_rows
from persres.experiments.evidence.provenance import WEIGHTS
from persres.experiments.evidence.scenes import concept_case, joined, nameable_case
from persres.experiments.miniworld_training.evaluate import base_quality, identity_auc
from persres.experiments.miniworld_training.recipe import RECIPE
from persres.metrics.clip_scores import load_clip
from persres.metrics.dino_scores import load_dino
from persres.metrics.scores import SCORES, score_columns
from persres.metrics.summary import config_table
from persres.miniworld.identities import concept_named
from persres.models.diffusion import load_diffusion
from persres.report.table_text import markdown
from persres.report.tables import ceiling_rows
from persres.residuals.file import load_bank
from persres.units.context import Context

QUALITY = {
    "class": "kind",
    "colour": "colour",
    "background": "background",
    "style": "style",
    "second_object": "second_object",
}


def localisation(context: Context, out: Path, scenes: int, views: int) -> dict:
    """Measure both sets of scenes; write ``localisation.csv``, ``.md`` and figures; return the summary's section."""
    base = context.profile.base
    diffusion = load_diffusion(base, context.profile.runtime.device)
    residuals = sorted((context.data / "learned" / "ours").glob("*.safetensors"))
    nameable = nameable_case(diffusion, scenes, base.token)
    concepts = [
        (concept_case(diffusion, concept_named(p.stem), views, base.token), load_bank(diffusion.unet, p))
        for p in residuals
    ]
    sets = {"nameable scenes, base model": [(nameable, None)], "concepts, residual under LAG": concepts}
    tables = {name: pd.DataFrame(localisation_rows(diffusion, cases)) for name, cases in sets.items()}
    plain = {name: baselines(joined([case for case, _ in cases])) for name, cases in sets.items()}
    table = pd.concat([t.assign(scenes=name) for name, t in tables.items()], ignore_index=True)
    table.to_csv(out / "localisation.csv", index=False)
    (out / "localisation.md").write_text(_localisation_text(tables, plain))
    figures.localisation_figure(tables, plain, out / "localisation.png")
    figures.attention_figure(diffusion, nameable, out / "attention.png")
    first, second = ({score: _nested(table, score) for score in ("auc", "iou")} for table in tables.values())
    table = tables["nameable scenes, base model"]
    return first | {
        "concepts": second,
        "without_attention": dict(zip(("nameable", "concepts"), plain.values(), strict=True)),
        "best_blocks": _ranking(table),
        "by_tokens": {which: float(table.loc[table["tokens"] == which, "auc"].mean()) for which in TOKENS},
    }


def _nested(table: pd.DataFrame, score: str) -> dict[str, dict[str, float]]:
    both = table[table["tokens"] == "both"]
    return {
        block: {str(t): round(v, 4) for t, v in zip(part["t"], part[score], strict=True)}
        for block, part in both.groupby("block", sort=False)
    }


def _ranking(table: pd.DataFrame) -> list[str]:
    both = table[table["tokens"] == "both"]
    return list(both.groupby("block")["auc"].mean().sort_values(ascending=False).index)


def _localisation_text(tables: dict[str, pd.DataFrame], plain: dict[str, dict]) -> str:
    parts = ["# Where the concept's attention lies", ""]
    for name, table in tables.items():
        known, both = plain[name], table[table["tokens"] == "both"]
        parts += [f"## {name} ({known['scenes']} scenes; the object fills {known['object_area']:.0%})", ""]
        for score, title in (("auc", "AUC"), ("iou", "IoU")):
            parts.append(_by_step(both, score, title))
        means = {w: table.loc[table["tokens"] == w, "auc"].mean() for w in TOKENS}
        parts += [
            f"Without attention: distance from the centre has AUC {known['centre_auc']:.3f}; a central disk has IoU "
            f"{known['disk_iou']:.3f}, a random half {known['random_half_iou']:.3f}, the best mask of half of the pixels "
            f"{known['half_mask_ceiling_iou']:.3f}.",
            "",
            "Mean AUC over blocks and t by token: " + ", ".join(f"{w} {v:.3f}" for w, v in means.items()) + ".",
            "",
        ]
    return "\n".join(parts)


def _by_step(table: pd.DataFrame, score: str, title: str) -> str:
    wide = table.pivot(index="block", columns="t", values=score).loc[list(dict.fromkeys(table["block"]))]
    header = [f"{title}, block", *(f"t={t}" for t in wide.columns)]
    body = [[block, *(f"{v:.3f}" for v in row)] for block, row in zip(wide.index, wide.to_numpy(), strict=True)]
    return markdown(header, body)


def config_figures(rows: pd.DataFrame, rounds: int) -> dict[str, dict]:
    """Return config -> ``overall`` and ``groups`` -> score -> mean and interval; None if a score does not apply."""
    overall = _scores(rows, rounds)
    groups = {group: _scores(part, rounds) for group, part in rows.groupby("prompt_group", sort=False)}
    return {
        config: {
            "overall": scores,
            "images": int((rows["config"] == config).sum()),
            "groups": {group: by_config[config] for group, by_config in groups.items() if config in by_config},
        }
        for config, scores in overall.items()
    }


def _scores(rows: pd.DataFrame, rounds: int) -> dict[str, dict]:
    columns, ends = score_columns(rows), {"mean": "", "low": "_low", "high": "_high"}
    return {
        row["config"]: {c: {name: _number(row[c + end]) for name, end in ends.items()} for c in columns}
        for _, row in config_table(rows, columns, rounds, 0).iterrows()
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 5)


def quality(context: Context, prompts: int) -> dict:
    """Return the base model's accuracy by the attribute classifier, and the encoders' identity AUC."""
    sampling = context.profile.sample
    accuracy, _ = base_quality(WEIGHTS, RECIPE, prompts, sampling.cfg_scale, sampling.steps)
    encoders, device = context.profile.encoders, context.profile.runtime.device
    loaded = {"clip": load_clip(encoders.clip, device), "dino": load_dino(encoders.dino, device)}
    by_encoder = {name: identity_auc(encoder, RECIPE) for name, encoder in loaded.items()}
    return {
        "base": {name: accuracy[head] for name, head in QUALITY.items()},
        "base_prompts": prompts,
        "identity_auc": min(by_encoder.values()),
        "identity_auc_by_encoder": by_encoder,
    }


def effects(context: Context, out: Path) -> dict:
    """Return configs, claims and negative controls from the score rows; write their tables and figures."""
    rows = pd.read_parquet(context.data / "scores" / "scores.parquet")
    result = {
        "configs": config_figures(rows, context.profile.tables.bootstrap),
        "ceiling": _ceiling(context, rows),
        "claims": claims.examine_claims(rows),
        "negative_controls": claims.examine_negative_controls(rows),
        "lag_minus_ours": claims.by_group(rows, list(SCORES)),
    }
    for source, target, title in (
        ("methods", "configs", "Configs and controls"),
        ("groups", "groups", "By prompt group"),
    ):
        lines = (context.data / "tables" / f"{source}.md").read_text().split("\n", 1)
        (out / f"{target}.md").write_text(f"# {title}\n{lines[1]}")
    figures.frontier_figure(result["configs"], out / "frontier.png")
    figures.claims_figure(result["claims"], out / "claims.png")
    figures.group_figure(result["lag_minus_ours"], out / "lag_by_group.png")
    return result


def _ceiling(context: Context, rows: pd.DataFrame) -> dict[str, dict[str, float | None]]:
    """Config -> share of the way to the ground truth and distance to it, with intervals."""
    sampling = {name: context.profile.sample.config(name) for name in context.profile.sample.configs}
    lines = ceiling_rows(rows, sampling, (context.profile.tables.bootstrap, 0))
    return {str(line.pop("config")): {name: _number(value) for name, value in line.items()} for line in lines}


def claims_text(summary: dict) -> str:
    """Return claims, negative controls, LAG by prompt group and localisation as Markdown (``claims.md``)."""
    blocks = (pages.negative_controls, pages.groups, pages.localisation, pages.time)
    parts = [f"## {block.__doc__.split('.')[0]}\n\n{block(summary)}" for block in blocks]
    return "\n".join([f"# Claims\n\n{MARGINS}\n\n{pages.claims(summary)}", *parts])


def write(out: Path, summary: dict) -> None:
    """Write ``summary.json`` and ``claims.md``."""
    (out / "claims.md").write_text(claims_text(summary))
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
