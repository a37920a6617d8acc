"""Masks past the median: where they lie, what they keep of the identity, and how little of the rest they change.

Every masking stands beside masks of the same area that do not look (a disk, a random choice), which is what the paper's evidence lacks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from persres.experiments.evidence.pages import COLUMNS as TITLES
from persres.experiments.evidence.pages import digits_of, interval
from persres.experiments.evidence.provenance import CHAIN_CODE
from persres.experiments.evidence.report import method_figures
from persres.experiments.evidence.scenes import concept_case, concept_named, nameable_case, two_object_case
from persres.experiments.extensions.masks import claims
from persres.experiments.extensions.masks.coverage import GROUPS, by_group, coverage_rows
from persres.experiments.extensions.sampled import COLUMNS, PROFILE, scored_rows
from persres.experiments.extensions.study import Run, Study
from persres.experiments.run_profile import run_profile
from persres.models.diffusion import load_diffusion
from persres.report.sheets import write_sheets
from persres.report.table_text import markdown
from persres.residuals.file import load_bank
from persres.units.context import Context

SCENES, VIEWS = 300, 27  # nameable ones; of each concept, alone and beside another object
SHEETS = ("rally_car", "heart_mug")


def measure(run: Run, out: Path) -> dict:
    """Both measurements; tables, figures and sheets below ``out``."""
    context = run_profile(PROFILE, run.params, run.work, run.device)
    rows = scored_rows(context)
    lying = pd.DataFrame(_places(context, run))
    lying.to_csv(out / "places.csv", index=False)
    figures = method_figures(rows, context.profile.tables.bootstrap)
    groups = {group: method_figures(part, context.profile.tables.bootstrap) for group, part in rows.groupby("group")}
    summary = {
        "places": by_group(lying),
        "configs": {name: found["overall"] for name, found in figures.items()},
        "groups": {g: {name: found["overall"] for name, found in by.items()} for g, by in groups.items()},
        "pictures": {group: int(n) for group, n in rows[rows["method"] == "auto"]["group"].value_counts().items()},
        "claims": list(claims.claims(rows, lying)),
        "broken": claims.negative_controls(rows, lying),
    }
    figures.frontier(summary["methods"], out / "frontier.png")
    figures.places(summary["places"], out / "places.png")
    shown = ("base", "ours", "ours_lag", "auto", "auto_disk")
    write_sheets(context, out, configs=shown, concepts=SHEETS)
    (out / "methods.md").write_text(f"# Masks\n\n{methods(summary)}\n{by_place(summary)}\n{places(summary)}")
    return summary


def _places(context: Context, run: Run) -> Iterator[dict]:
    """Nameable scenes under the base model; every concept's, alone and beside another object, with its residual acting."""
    base = context.profile.base
    diffusion = load_diffusion(base, run.device)
    case = nameable_case(diffusion, SCENES, base.token)
    beside = [" next to " in prompt for prompt in case.prompts]
    yield from coverage_rows(diffusion, case, base.token, None, {"set": "nameable", "concept": ""}, beside)
    for path in sorted((context.data / "learned" / "ours").glob("*.safetensors")):
        concept, bank = concept_named(path.stem), load_bank(diffusion.unet, path).to(diffusion.unet.device)
        labels = {"set": "concepts", "concept": concept.name}
        for make, second in ((concept_case, False), (two_object_case, True)):
            case = make(diffusion, concept, VIEWS, base.token)
            yield from coverage_rows(diffusion, case, base.token, bank, labels, [second] * len(case.prompts))


def methods(summary: dict) -> str:
    """Every masking and control, overall."""
    rows = [
        [f"`{name}`", *(interval(found[c], digits_of(c)) for c in COLUMNS)]
        for name, found in summary["methods"].items()
    ]
    return markdown(["", *(TITLES[c] for c in COLUMNS)], rows)


def by_place(summary: dict) -> str:
    """Identity and background change by where the thing stands."""
    names = ("ours", "ours_lag", "best_otsu", "auto", "auto_disk", "disk_30")
    rows, groups = [], [g for g in GROUPS if g in summary["groups"]]
    for name in names:
        cells = [summary["groups"][g][name] for g in groups]
        rows.append(
            [
                f"`{name}`",
                *(interval(c["dino"], 3) for c in cells),
                *(interval(c["background_change"], 4) for c in cells),
            ]
        )
    heads = [f"{score}, {g}" for score in ("DINO", "background change") for g in groups]
    return markdown(["", *heads], rows)


def places(summary: dict) -> str:
    """IoU with the true masks by group, and the marked share."""
    rows = []
    for name, concepts in summary["places"]["concepts"].items():
        nameable = summary["places"]["nameable"][name]
        cells = [f"{nameable['all']:.2f}", *(f"{concepts[g]:.2f}" if g in concepts else "–" for g in GROUPS)]
        rows.append([f"`{name}`", f"{concepts['area']:.0%}", *cells])
    return markdown(["mask", "marks", "IoU, nameable scenes", *(f"concepts {g}" for g in GROUPS)], rows)


STUDY = Study(
    "masks",
    measure,
    (*CHAIN_CODE, "persres.experiments.evidence.localisation", "persres.experiments.evidence.scenes", "persres.experiments.extensions.masks.coverage",
     "persres.experiments.extensions.sampled", "persres.experiments.extensions.masks.claims"),
    {"methods": methods, "by_place": by_place, "places": places},
    PROFILE,
)  # fmt: skip
