"""LAG by prompt: mask always, never, by what the prompt asks for, or by the attention's confidence.

The images are those of the profile ``masks``; every config starts from the same noise.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from persres.experiments.evidence.pages import COLUMNS as TITLES
from persres.experiments.evidence.pages import digits_of, interval
from persres.experiments.evidence.report import config_figures
from persres.experiments.extensions.lag_by_prompt import claims
from persres.experiments.extensions.lag_by_prompt.claims import CONFIGS
from persres.experiments.extensions.sampled import COLUMNS, PROFILE, scored_rows
from persres.experiments.extensions.study import Run, Study
from persres.experiments.run_profile import run_profile
from persres.report.table_text import markdown
from persres.sampling.prompt_intent import prompt_intent


def measure(run: Run, out: Path) -> dict:
    """Score the configs by prompt group; return the summary."""
    context = run_profile(PROFILE, run.params, run.work, run.device)
    rows = scored_rows(context)
    rows = rows[rows["config"].isin(CONFIGS)]
    figures = config_figures(rows, context.profile.tables.bootstrap)
    return {
        "configs": {name: figures[name] for name in CONFIGS if name in figures},
        "prompt_intent": _intents(rows),
        "claims": list(claims.claims(rows)),
        "negative_controls": claims.negative_controls(rows),
    }


def _intents(rows: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Number of prompts by group and intent."""
    prompts = rows[["prompt_group", "prompt"]].drop_duplicates()
    scene = [prompt_intent(text.replace("{}", "<v*> thing"), "<v*> thing") == "scene" for text in prompts["prompt"]]
    intents = np.where(scene, "scene", "appearance")
    table = pd.crosstab(prompts["prompt_group"], pd.Series(intents, index=prompts.index))
    return {group: {intent: int(n) for intent, n in row.items()} for group, row in table.to_dict("index").items()}


def configs(summary: dict) -> str:
    """Every config, overall."""
    rows = [
        [CONFIGS[name], *(interval(scores["overall"][c], digits_of(c)) for c in COLUMNS)]
        for name, scores in summary["configs"].items()
    ]
    return markdown(["masked", *(TITLES[c] for c in COLUMNS)], rows)


def groups(summary: dict) -> str:
    """Identity and text alignment by prompt group."""
    names = list(next(iter(summary["configs"].values()))["groups"])
    rows = []
    for name, scores in summary["configs"].items():
        cells = [scores["groups"][g][c]["mean"] for c in ("dino", "clip_text") for g in names]
        rows.append([CONFIGS[name], *(f"{value:.3f}" for value in cells)])
    return markdown(["masked", *(f"{score}, {g}" for score in ("DINO", "CLIP text") for g in names)], rows)


def intents(summary: dict) -> str:
    """Number of prompts that the words classify as scene and as appearance."""
    rows = [[group, str(n.get("scene", 0)), str(n.get("appearance", 0))] for group, n in summary["prompt_intent"].items()]  # fmt: skip
    return markdown(["prompt group", "scene", "appearance"], rows)


BLOCKS = {"configs": configs, "groups": groups, "intents": intents}
STUDY = Study("lag_by_prompt", "LAG by prompt", measure, BLOCKS, PROFILE)
