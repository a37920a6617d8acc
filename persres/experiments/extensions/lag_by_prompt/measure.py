"""LAG or not, by itself: always, never, by what the prompt asks for, and by how sure the attention is.

The pictures are those of the profile ``masks``; a chooser takes for each of them the masked or the unmasked one from the same noise.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from persres.experiments.evidence.pages import COLUMNS as TITLES
from persres.experiments.evidence.pages import digits_of, interval
from persres.experiments.evidence.provenance import CHAIN_CODE
from persres.experiments.evidence.report import method_figures
from persres.experiments.extensions.lag_by_prompt import claims
from persres.experiments.extensions.lag_by_prompt.claims import CONFIGS
from persres.experiments.extensions.sampled import COLUMNS, PROFILE, scored_rows
from persres.experiments.extensions.study import Run, Study
from persres.experiments.run_profile import run_profile
from persres.report.table_text import markdown
from persres.sampling.prompt_intent import prompt_intent


def measure(run: Run, out: Path) -> dict:
    """Tables below ``out``."""
    context = run_profile(PROFILE, run.params, run.work, run.device)
    rows = scored_rows(context)
    rows = rows[rows["method"].isin(CONFIGS)]
    figures = method_figures(rows, context.profile.tables.bootstrap)
    summary = {
        "configs": {name: figures[name] for name in CONFIGS if name in figures},
        "words": _by_words(rows),
        "claims": list(claims.claims(rows)),
        "broken": claims.negative_controls(rows),
    }
    (out / "choosing.md").write_text(f"# LAG or not\n\n{methods(summary)}\n{groups(summary)}\n{words(summary)}")
    return summary


def _by_words(rows: pd.DataFrame) -> dict[str, dict[str, int]]:
    """How the words read the prompts of each group: group -> scene, look -> prompts."""
    prompts = rows[["prompt_group", "prompt"]].drop_duplicates()
    read = [prompt_intent(text.replace("{}", "<v*> thing"), "<v*> thing") for text in prompts["prompt"]]
    table = pd.crosstab(prompts["prompt_group"], pd.Series(read, index=prompts.index))
    return {group: {kind: int(n) for kind, n in row.items()} for group, row in table.to_dict("index").items()}


def methods(summary: dict) -> str:
    """Every chooser, overall."""
    rows = [
        [CONFIGS[name], *(interval(found["overall"][c], digits_of(c)) for c in COLUMNS)]
        for name, found in summary["methods"].items()
    ]
    return markdown(["", *(TITLES[c] for c in COLUMNS)], rows)


def groups(summary: dict) -> str:
    """Identity and text alignment by group of prompts."""
    names = list(next(iter(summary["methods"].values()))["groups"])
    rows = []
    for name, found in summary["methods"].items():
        cells = [found["groups"][g][c]["mean"] for c in ("dino", "clip_text") for g in names]
        rows.append([CONFIGS[name], *(f"{value:.3f}" for value in cells)])
    return markdown(["", *(f"{score}, {g}" for score in ("DINO", "CLIP text") for g in names)], rows)


def words(summary: dict) -> str:
    """How many prompts of each group the words read as a scene and as a look."""
    rows = [[group, str(n.get("scene", 0)), str(n.get("look", 0))] for group, n in summary["words"].items()]
    return markdown(["prompts", "scene", "look"], rows)


STUDY = Study(
    "choosing",
    measure,
    (*CHAIN_CODE, "persres.experiments.extensions.sampled", "persres.experiments.extensions.lag_by_prompt.claims"),
    {"methods": methods, "groups": groups, "words": words},
    PROFILE,
)
