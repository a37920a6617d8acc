"""``data/evidence/``: summary.json, the tables and figures that README and model card quote, from one run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd

from persres.evidence import claims, figures
from persres.evidence.localisation import TOKENS, baselines, measure
from persres.evidence.scenes import concept_case, concept_named, joined, nameable_case
from persres.loading import model_identity
from persres.metrics.clip_scores import load_clip
from persres.metrics.dino_scores import load_dino
from persres.metrics.summary import method_table, score_columns
from persres.miniworld.evaluate import base_quality, identity_auc
from persres.miniworld.recipe import RECIPE
from persres.models import load_diffusion
from persres.provenance import versions
from persres.residual_file import load_residual
from persres.residuals import ResidualBank, find_targets
from persres.stages.context import Context

WEIGHTS = Path(__file__).parent.parent / "miniworld" / "weights"
QUALITY = {
    "class": "kind",
    "colour": "colour",
    "background": "background",
    "style": "style",
    "second_object": "second_object",
}
GROUP_COLUMNS = ["clip_text", "followed", "clip_image", "dino", "dino_object", "background_change"]


def localisation(context: Context, out: Path, scenes: int, views: int) -> dict:
    """Both sets of scenes; writes ``localisation.csv``, ``.md`` and the figures, returns the summary's part."""
    base = context.profile.base
    diffusion = load_diffusion(base, context.profile.runtime.device)
    residuals = sorted((context.data / "residuals" / "ours").glob("*.safetensors"))
    nameable = nameable_case(diffusion, scenes, base.token)
    concepts = [
        (concept_case(diffusion, concept_named(p.stem), views, base.token), _bank(diffusion, p)) for p in residuals
    ]
    sets = {"nameable scenes, base model": [(nameable, None)], "concepts, residual under LAG": concepts}
    tables = {name: pd.DataFrame(measure(diffusion, cases, base.token)) for name, cases in sets.items()}
    plain = {name: baselines(joined([case for case, _ in cases])) for name, cases in sets.items()}
    table = pd.concat([t.assign(scenes=name) for name, t in tables.items()], ignore_index=True)
    table.to_csv(out / "localisation.csv", index=False)
    (out / "localisation.md").write_text(_localisation_text(tables, plain))
    figures.localisation_figure(tables, plain, out / "localisation.png")
    figures.attention_figure(diffusion, nameable, base.token, out / "attention.png")
    first, second = tables.values()
    found = {score: _nested(first, score) for score in ("auc", "iou")}
    found["concepts"] = {score: _nested(second, score) for score in ("auc", "iou")}
    found["without_attention"] = dict(zip(("nameable", "concepts"), plain.values(), strict=True))
    found["best_blocks"] = _ranking(first)
    return found | {"by_tokens": {w: float(first.loc[first["tokens"] == w, "auc"].mean()) for w in TOKENS}}


def _bank(diffusion, path: Path) -> ResidualBank:
    state, info = load_residual(path)
    settings = info["spec"]["settings"]
    targets = find_targets(diffusion.unet, settings["rank_ratio"], settings["rank"])
    return ResidualBank.from_states(targets, [state]).to(diffusion.unet.device)


def _nested(table: pd.DataFrame, score: str) -> dict[str, dict[str, float]]:
    both = table[table["tokens"] == "both"]
    return {block: {str(t): round(v, 4) for t, v in zip(part["t"], part[score], strict=True)}
            for block, part in both.groupby("block", sort=False)}  # fmt: skip


def _ranking(table: pd.DataFrame) -> list[str]:
    both = table[table["tokens"] == "both"]
    return list(both.groupby("block")["auc"].mean().sort_values(ascending=False).index)


def _localisation_text(tables: dict[str, pd.DataFrame], plain: dict[str, dict]) -> str:
    parts = ["# Where the concept's attention lies", ""]
    for name, table in tables.items():
        known = plain[name]
        parts += [f"## {name} ({known['scenes']} scenes; the object fills {known['object_area']:.0%})", ""]
        both = table[table["tokens"] == "both"]
        for score in ("auc", "iou"):
            wide = both.pivot(index="block", columns="t", values=score).loc[list(dict.fromkeys(both["block"]))]
            parts += [
                f"| {score.upper()}, block | " + " | ".join(f"t={t}" for t in wide.columns) + " |",
                "|---" * (1 + len(wide.columns)) + "|",
            ]
            parts += [
                f"| {block} | " + " | ".join(f"{v:.3f}" for v in row) + " |"
                for block, row in zip(wide.index, wide.to_numpy(), strict=True)
            ]
            parts.append("")
        parts += [f"Without attention: distance from the centre AUC {known['centre_auc']:.3f}; IoU of a central disk {known['disk_iou']:.3f}, of a random half "
                  f"{known['random_half_iou']:.3f}; the best that a mask of half of the pixels can reach {known['half_mask_ceiling_iou']:.3f}.", ""]  # fmt: skip
        means = {w: table.loc[table["tokens"] == w, "auc"].mean() for w in TOKENS}
        parts += [
            "Mean AUC over blocks and t by token: " + ", ".join(f"{w} {v:.3f}" for w, v in means.items()) + ".",
            "",
        ]
    return "\n".join(parts)


def method_figures(rows: pd.DataFrame, rounds: int) -> dict[str, dict]:
    """method -> ``overall`` and ``groups`` -> score -> mean and interval; None where a score does not apply."""
    columns = score_columns(rows)
    found: dict[str, dict] = {m: {"groups": {}} for m in dict.fromkeys(rows["method"])}
    parts = {None: rows} | dict(iter(rows.groupby("prompt_group", sort=False)))
    for group, part in parts.items():
        for _, row in method_table(part, columns, rounds, 0).iterrows():
            scores = {
                c: {k: _number(row[f"{c}{s}"]) for k, s in (("mean", ""), ("low", "_low"), ("high", "_high"))}
                for c in columns
            }
            if group is None:
                found[row["method"]]["overall"] = scores
                found[row["method"]]["images"] = int((rows["method"] == row["method"]).sum())
            else:
                found[row["method"]]["groups"][group] = scores
    return found


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 5)


def quality(context: Context, prompts: int) -> dict:
    """The base model by the judge, and how well the encoders tell a concept from its like."""
    drawing = context.profile.sample
    accuracy, _ = base_quality(WEIGHTS, RECIPE, prompts, drawing.cfg_scale, drawing.steps)
    encoders, device = context.profile.encoders, context.profile.runtime.device
    by_encoder = {
        "clip": identity_auc(load_clip(encoders.clip, device), RECIPE),
        "dino": identity_auc(load_dino(encoders.dino, device), RECIPE),
    }
    return {"base": {name: accuracy[head] for name, head in QUALITY.items()}, "base_prompts": prompts,
            "identity_auc": min(by_encoder.values()), "identity_auc_by_encoder": by_encoder}  # fmt: skip


def effects(context: Context, out: Path) -> dict:
    """Methods, claims and broken methods from the score rows; writes their tables and figures."""
    rows = pd.read_parquet(context.data / "scores" / "scores.parquet")
    methods = method_figures(rows, context.profile.tables.bootstrap)
    found = claims.examine(rows)
    groups = claims.by_group(rows, GROUP_COLUMNS)
    (out / "methods.md").write_text(
        (context.data / "tables" / "table1.md").read_text().replace("# Table 1", "# Methods and controls", 1)
    )
    (out / "groups.md").write_text((context.data / "tables" / "groups.md").read_text())
    (out / "claims.md").write_text(_claims_text(found, claims.examine_broken(rows)))
    figures.frontier_figure(methods, out / "frontier.png")
    figures.claims_figure(found, out / "claims.png")
    figures.group_figure(groups, out / "lag_by_group.png")
    return {
        "methods": methods,
        "claims": found,
        "broken_still_hold": claims.examine_broken(rows),
        "lag_minus_ours": groups,
    }


def _claims_text(found: list[dict], broken: dict[str, dict[str, bool]]) -> str:
    lines = ["# Claims", "", "| claim | score | effect [95%] | margin | holds |", "|---|---|---|---|---|"]
    lines += [
        f"| {c['says']} | {c['column']} | {c['effect']:+.4f} [{c['low']:+.4f}, {c['high']:+.4f}] | {c['margin']} | {'yes' if c['holds'] else '**no**'} |"
        for c in found
    ]
    lines += ["", "## Broken on purpose", "", "| broken | must fail | fails |", "|---|---|---|"]
    lines += [
        f"| {what} | {name} | {'**no**' if holds else 'yes'} |"
        for what, names in broken.items()
        for name, holds in names.items()
    ]
    return "\n".join(lines) + "\n"


def provenance(context: Context) -> dict:
    """Which weights and settings the figures belong to; a test compares the weights with those that ship."""
    return {"weights": {name: model_identity(str(WEIGHTS / name)) for name in ("sd", "clip", "dino", "judge")},
            "settings": context.profile.model_dump(mode="json", exclude={"runtime"}), "versions": versions()}  # fmt: skip


def write(out: Path, summary: dict) -> None:
    """``summary.json``."""
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
