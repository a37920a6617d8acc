"""Masks past the median: where they lie, what they keep of the identity, and how little of the rest they change.

Every masking stands beside masks of the same area that do not look (a disk, a random choice), which is what the paper's evidence lacks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from persres.evidence.beyond import mask_figures
from persres.evidence.beyond.drawn import COLUMNS, paired, ratio, scored
from persres.evidence.beyond.judging import at_most, claim, verdict
from persres.evidence.beyond.part import Part, Run
from persres.evidence.beyond.places import GROUPS, MOVED, by_group, rows_of
from persres.evidence.pages import COLUMNS as TITLES
from persres.evidence.provenance import CHAIN_CODE
from persres.evidence.report import method_figures
from persres.evidence.scenes import beside_case, concept_case, concept_named, nameable_case
from persres.models.diffusion import load_diffusion
from persres.report.sheets import write_sheets
from persres.report.table_text import markdown
from persres.residuals.file import load_bank
from persres.runs.context import Context

SCENES, VIEWS = 300, 27  # nameable ones; of each concept, alone and beside another object
SHARES = (10, 20, 30, 40, 50)
SHEETS = ("rally_car", "heart_mug")
KEPT = 0.02  # DINO that a mask may cost
QUARTER = 0.25  # of the unmasked residual's background change


def measure(run: Run, out: Path) -> dict:
    """Both measurements; tables, figures and sheets below ``out``."""
    context, rows = scored(run)
    lying = pd.DataFrame(_places(context, run))
    lying.to_csv(out / "places.csv", index=False)
    figures = method_figures(rows, context.profile.tables.bootstrap)
    groups = {group: method_figures(part, context.profile.tables.bootstrap) for group, part in rows.groupby("group")}
    summary = {
        "places": by_group(lying),
        "methods": {name: found["overall"] for name, found in figures.items()},
        "groups": {g: {name: found["overall"] for name, found in by.items()} for g, by in groups.items()},
        "pictures": {group: int(n) for group, n in rows[rows["method"] == "auto"]["group"].value_counts().items()},
        "claims": list(_claims(rows, lying)),
        "broken": _broken(rows, lying),
    }
    mask_figures.frontier(summary["methods"], out / "frontier.png")
    mask_figures.places(summary["places"], out / "places.png")
    shown = ("base", "ours", "ours_lag", "auto", "auto_disk")
    write_sheets(context, out, methods=shown, concepts=SHEETS)
    (out / "methods.md").write_text(f"# Masks\n\n{methods(summary)}\n{by_place(summary)}\n{places(summary)}")
    return summary


def _places(context: Context, run: Run) -> Iterator[dict]:
    """Nameable scenes under the base model; every concept's, alone and beside another object, with its residual acting."""
    base = context.profile.base
    diffusion = load_diffusion(base, run.device)
    case = nameable_case(diffusion, SCENES, base.token)
    beside = [" next to " in prompt for prompt in case.prompts]
    yield from rows_of(diffusion, case, base.token, None, {"set": "nameable", "concept": ""}, beside)
    for path in sorted((context.data / "learned" / "ours").glob("*.safetensors")):
        concept, bank = concept_named(path.stem), load_bank(diffusion.unet, path).to(diffusion.unet.device)
        labels = {"set": "concepts", "concept": concept.name}
        for make, second in ((concept_case, False), (beside_case, True)):
            case = make(diffusion, concept, VIEWS, base.token)
            yield from rows_of(diffusion, case, base.token, bank, labels, [second] * len(case.prompts))


def _iou(lying: pd.DataFrame, masking: str, column: str = "iou", alone: bool = True) -> np.ndarray:
    """Per-concept means on the concepts' scenes, alone or beside another object."""
    part = lying[(lying["set"] == "concepts") & (lying["masking"] == masking)]
    part = part[(part["group"] != GROUPS[2]) if alone else (part["group"] == GROUPS[2])]
    return part.groupby("concept")[column].mean().to_numpy()


def _claims(rows: pd.DataFrame, lying: pd.DataFrame) -> Iterator[dict]:
    yield from _place_claims(lying, "auto")
    yield from _identity_claims(rows, "auto")
    for share in SHARES:
        values = paired(rows, "dino", f"share_{share}", f"disk_{share}")
        yield claim(f"share_{share}", f"{share}% by attention keeps more than a disk of {share}%", "dino", values, 0.0)
    off, beside = (rows["group"] == g for g in GROUPS[1:])
    for name, where, says in (
        ("off", off, "where the thing stands off-centre"),
        ("beside", beside, "beside a second object"),
    ):
        values = paired(rows, "dino", "auto", "auto_disk", where)
        yield claim(f"disk_{name}", f"{says} it keeps more than a disk of its area", "dino", values, 0.02)


def _place_claims(lying: pd.DataFrame, name: str) -> Iterator[dict]:
    iou = _iou(lying, name)
    yield claim("iou", "its masks reach IoU .70 with the true ones on the concepts", "iou", iou - 0.70, 0.0)
    over = iou - _iou(lying, "auto", "ceiling")
    yield claim("iou_ceiling", "and pass what any half of the picture can reach", "iou", over, 0.10)
    yield claim("iou_disk", "and a disk of their own area", "iou", iou - _iou(lying, "auto_disk"), 0.05)
    both = _iou(lying, name, alone=False) - _iou(lying, "auto_disk", alone=False)
    yield claim("iou_beside", "and do so beside a second object", "iou", both, 0.05)


def _identity_claims(rows: pd.DataFrame, name: str) -> Iterator[dict]:
    lost = paired(rows, "dino", "ours", name)
    yield at_most("kept", f"identity of the unmasked residual is kept (at most {KEPT} lost)", "dino", lost, KEPT)
    share = ratio(rows, "background_change", name, "ours")
    yield at_most("quarter", "at a quarter of its background change", "background_change", share, QUARTER)
    yield claim("median", "it keeps more than the paper's masks", "dino", paired(rows, "dino", name, "ours_lag"), 0.01)
    less = paired(rows, "background_change", "ours_lag", name)
    yield claim("median_background", "and changes less of the background", "background_change", less, 0.005)
    for other, says in (("auto_disk", "a disk"), ("auto_random", "a random choice")):
        values = paired(rows, "dino", name, other)
        yield claim(other, f"it keeps more than {says} of its own area", "dino", values, 0.01)
    values = paired(rows, "dino", name, "weaker")
    yield claim("weaker", "and more than a weaker residual", "dino", values, 0.01)


def _broken(rows: pd.DataFrame, lying: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Claims that must fall when auto's masks are inverted, and when they are another scene's."""
    whole = {c["claim"]: c for c in _claims(rows, lying)}
    inverted = {c["claim"]: c for c in _identity_claims(rows, "auto_inverted")}
    moved = {c["claim"]: c for c in _place_claims(lying, MOVED)}
    fell = ("kept", "median", "auto_disk", "auto_random", "weaker", "quarter")
    return {
        "masks inverted": {name: verdict(whole[name], inverted[name]) for name in fell},
        "masks of another scene": {
            name: verdict(whole[name], moved[name]) for name in ("iou", "iou_ceiling", "iou_disk")
        },
    }


def _interval(found: dict, digits: int) -> str:
    return (
        "–"
        if found["mean"] is None
        else f"{found['mean']:.{digits}f} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"
    )


def methods(summary: dict) -> str:
    """Every masking and control, overall."""
    rows = [
        [f"`{name}`", *(_interval(found[c], 4 if c == "background_change" else 3) for c in COLUMNS)]
        for name, found in summary["methods"].items()
    ]
    return markdown(["", *(TITLES[c] for c in COLUMNS)], rows)


def by_place(summary: dict) -> str:
    """Identity and background change by where the thing stands."""
    names = ("ours", "ours_lag", "best_otsu", "auto", "auto_disk", "disk_30")
    rows = []
    for name in names:
        cells = [summary["groups"][g][name] for g in GROUPS]
        rows.append(
            [
                f"`{name}`",
                *(_interval(c["dino"], 3) for c in cells),
                *(_interval(c["background_change"], 4) for c in cells),
            ]
        )
    heads = [f"{score}, {g}" for score in ("DINO", "background change") for g in GROUPS]
    return markdown(["", *heads], rows)


def places(summary: dict) -> str:
    """IoU with the true masks by group, and the marked share."""
    rows = []
    for name, concepts in summary["places"]["concepts"].items():
        nameable = summary["places"]["nameable"][name]
        cells = [f"{nameable['all']:.2f}", *(f"{concepts[g]:.2f}" if g in concepts else "–" for g in GROUPS)]
        rows.append([f"`{name}`", f"{concepts['area']:.0%}", *cells])
    return markdown(["mask", "marks", "IoU, nameable scenes", *(f"concepts {g}" for g in GROUPS)], rows)


PART = Part(
    "masks",
    measure,
    (*CHAIN_CODE, "persres.evidence.localisation", "persres.evidence.scenes", "persres.evidence.beyond.places",
     "persres.evidence.beyond.drawn", "persres.evidence.beyond.masks"),
    {"methods": methods, "by_place": by_place, "places": places},
)  # fmt: skip
