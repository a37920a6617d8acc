"""Masks of the object's size: their IoU with true masks, the identity they retain, and the background change they cause.

Every mask is compared with control masks of the same area that ignore the attention (a disk, random pixels), which the paper lacks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from persres.experiments.evidence.pages import COLUMNS as TITLES
from persres.experiments.evidence.pages import digits_of, interval
from persres.experiments.evidence.report import config_figures
from persres.experiments.evidence.scenes import concept_case, nameable_case, two_object_case
from persres.experiments.extensions.masks import claims, figures
from persres.experiments.extensions.masks.coverage import GROUPS, Scenes, by_group, coverage_rows
from persres.experiments.extensions.sampled import COLUMNS, PROFILE, scored_rows
from persres.experiments.extensions.study import Run, Study
from persres.experiments.run_profile import run_profile
from persres.miniworld.identities import concept_named
from persres.models.diffusion import load_diffusion
from persres.report.sheets import write_sheets
from persres.report.table_text import markdown
from persres.residuals.file import load_bank
from persres.units.context import Context

SCENES, VIEWS = 300, 27  # nameable scenes; scenes per concept, with one object and with two
SHEET_CONFIGS, SHEET_CONCEPTS = ("base", "ours", "ours_lag", "auto", "auto_disk"), ("rally_car", "heart_mug")
PAGE_CONFIGS = ("base", "ours", "ours_lag", "per_block_otsu", "best_otsu", "auto", "auto_disk", "auto_random", "disk_30", "weaker")  # fmt: skip


def measure(run: Run, out: Path) -> dict:
    """Measure coverage and scores; write ``coverage.csv``, figures and sheets below ``out``; return the summary."""
    context = run_profile(PROFILE, run.params, run.work, run.device)
    rows, rounds = scored_rows(context), context.profile.tables.bootstrap
    coverage = pd.DataFrame(_coverage(context, run))
    coverage.to_csv(out / "coverage.csv", index=False)
    summary = {
        "coverage": by_group(coverage),
        "configs": _overall(rows, rounds),
        "groups": {group: _overall(part, rounds) for group, part in rows.groupby("group")},
        "images": {group: int(n) for group, n in rows[rows["config"] == "auto"]["group"].value_counts().items()},
        "claims": list(claims.claims(rows, coverage)),
        "negative_controls": claims.negative_controls(rows, coverage),
    }
    figures.frontier_figure(summary, out / "frontier.png")
    figures.coverage_figure(summary, out / "coverage.png")
    write_sheets(context, out, configs=SHEET_CONFIGS, concepts=SHEET_CONCEPTS)
    return summary


def _overall(rows: pd.DataFrame, rounds: int) -> dict[str, dict]:
    return {name: scores["overall"] for name, scores in config_figures(rows, rounds).items()}


def _coverage(context: Context, run: Run) -> Iterator[dict]:
    """Rows of nameable scenes under the base model, and of every concept with its residual, with one object and with two."""
    base = context.profile.base
    diffusion = load_diffusion(base, run.device)
    case = nameable_case(diffusion, SCENES, base.token)
    second = [" next to " in prompt for prompt in case.prompts]
    yield from coverage_rows(diffusion, Scenes(case, second, None, {"set": "nameable", "concept": ""}))
    for path in sorted((context.data / "learned" / "ours").glob("*.safetensors")):
        concept, bank = concept_named(path.stem), load_bank(diffusion.unet, path).to(diffusion.unet.device)
        labels = {"set": "concepts", "concept": concept.name}
        for make, two in ((concept_case, False), (two_object_case, True)):
            case = make(diffusion, concept, VIEWS, base.token)
            yield from coverage_rows(diffusion, Scenes(case, [two] * len(case.prompts), bank, labels))


def configs(summary: dict) -> str:
    """Every config, overall."""
    return _configs_table(summary, tuple(summary["configs"]))


def main_configs(summary: dict) -> str:
    """The main configs, overall."""
    return _configs_table(summary, PAGE_CONFIGS)


def _configs_table(summary: dict, names: tuple[str, ...]) -> str:
    scores = summary["configs"]
    rows = [[f"`{name}`", *(interval(scores[name][c], digits_of(c)) for c in COLUMNS)] for name in names]
    return markdown(["config", *(TITLES[c] for c in COLUMNS)], rows)


def by_position(summary: dict) -> str:
    """Identity and background change by the object's position."""
    groups = [g for g in GROUPS if g in summary["groups"]]
    rows = []
    for name in ("ours", "ours_lag", "best_otsu", "auto", "auto_disk", "disk_30"):
        scores = [summary["groups"][g][name] for g in groups]
        cells = [interval(s[c], digits_of(c)) for c in ("dino", "background_change") for s in scores]
        rows.append([f"`{name}`", *cells])
    heads = [f"{score}, {g}" for score in ("DINO", "background change") for g in groups]
    return markdown(["config", *heads], rows)


def coverage(summary: dict) -> str:
    """IoU with the true masks by group, and the marked share."""
    rows = []
    for name, concepts in summary["coverage"]["concepts"].items():
        nameable = summary["coverage"]["nameable"][name]
        cells = [f"{nameable['all']:.2f}", *(f"{concepts[g]:.2f}" if g in concepts else "–" for g in GROUPS)]
        rows.append([f"`{name}`", f"{concepts['area']:.0%}", *cells])
    return markdown(["mask", "area", "IoU, nameable scenes", *(f"IoU, concepts, {g}" for g in GROUPS)], rows)


BLOCKS = {"configs": configs, "main_configs": main_configs, "by_position": by_position, "coverage": coverage}
STUDY = Study("masks", "Masks of the object's size", measure, BLOCKS, PROFILE)
