"""Tables as CSV and Markdown, with notes below them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from pydantic import BaseModel

from persres.metrics.paper_figures import MODEL
from persres.metrics.scores import SCORES
from persres.units.context import Context
from persres.untrusted.documents import read_json
from persres.untrusted.text import markdown as literal

RUN = "run.json"  # next to the tables: what they are of
COSTS = {"train_s": 1, "class_images_s": 1, "train_mib": 0, "image_s": 3}  # digits shown


def table_notes(context: Context, rows: pd.DataFrame, columns: list[str]) -> str:
    """Markdown list of notes for a table over these score rows."""
    classes = read_json(context.data / "macro_class" / "macro_class.json", _Classes, "run persres run macro_class")
    model = context.profile.base.model
    paper = " (859.5 M + 123.1 M, the paper's 983M, which it also states for DreamBooth)" if model == MODEL else ""
    lines = [
        f"{rows['concept'].nunique()} concepts; means over concepts of per-concept means; [low, high] is the 95% bootstrap interval over concepts, from five concepts on.",
        f"Base model {literal(model)}. Macro class from: {literal(classes.source)}.",
        f"params: parameters trained for one concept; for the base model its U-Net and text encoder{paper}.",
        "train_s: least seconds of training one concept, class_images_s of sampling its class images, train_mib: highest "
        "memory (the GPU's, else the process's), image_s: least seconds of sampling one image. They vary from run to run.",
        *_class_notes(classes),
    ]
    lines += [f"{name}: {SCORES[name].note}" for name in columns if SCORES[name].note]
    return "\n".join(f"- {line}" for line in lines)


class _Class(BaseModel):
    dataset: str
    nearest: str | None = None
    zero_shot: str | None = None
    confidence: float = 0.0


class _Classes(BaseModel):
    """What the notes read of ``macro_class.json``."""

    source: str
    candidates: str | None = None
    candidate_count: int | None = None
    concepts: dict[str, _Class]


def _class_notes(classes: _Classes) -> list[str]:
    """How often the nearest noun and the zero-shot class are the dataset's class."""
    entries, count = classes.concepts, len(classes.concepts)
    lines = []
    if classes.candidate_count:
        agree = sum(e.nearest == e.dataset for e in entries.values())
        lines.append(
            f"Nearest-noun candidates: {classes.candidate_count} from {literal(classes.candidates)}; the nearest is the dataset's class for {agree} of {count}."
        )
    if all(entry.zero_shot is not None for entry in entries.values()):
        agree = sum(e.zero_shot == e.dataset for e in entries.values())
        names = ", ".join(f"{literal(name)} {literal(e.zero_shot)} ({e.confidence:.0%})" for name, e in entries.items())
        lines.append(
            f"The zero-shot class is the dataset's class for {agree} of {count}; with its confidence: {names}."
        )
    return lines


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def parameter_text(count: float) -> str:
    """A number of parameters; a dash for the ground truth, which has none."""
    return f"{int(count):,}" if count else "–"


def write_table(path: Path, title: str, table: pd.DataFrame, notes: str) -> None:
    """``<path>.csv`` with every column; ``<path>.md`` with intervals next to the scores and the notes below."""
    table.to_csv(path.with_suffix(".csv"), index=False)
    shown = table.map(lambda value: literal(value) if isinstance(value, str) else value)
    for column in (name for name in table if f"{name}_low" in table):
        digits = SCORES[column].digits + 1 if column in SCORES else 3
        shown[column] = [_with_interval(row, column, digits) for _, row in table.iterrows()]
        shown = shown.drop(
            columns=[f"{column}_{end}" for end in ("low", "high", "p", "detectable") if f"{column}_{end}" in shown]
        )
    if "params" in shown:
        shown["params"] = [parameter_text(p) for p in shown["params"]]
    for column, digits in COSTS.items():
        if column in shown:
            shown[column] = ["–" if pd.isna(v) else f"{v:.{digits}f}" for v in table[column]]
    rows = [[str(v) for v in row] for row in shown.itertuples(index=False)]
    header = [literal(name) for name in shown.columns]
    path.with_suffix(".md").write_text(f"# {literal(title)}\n\n{markdown(header, rows)}\n{notes}\n", encoding="utf-8")


def _with_interval(row: pd.Series, column: str, digits: int) -> str:
    value, low, high = row[column], row[f"{column}_low"], row[f"{column}_high"]
    if pd.isna(value):
        return "–"
    if pd.isna(low):  # too few concepts for an interval
        return f"{value:.{digits}f}"
    p = f", p {row[f'{column}_p']:.2g}" if f"{column}_p" in row else ""
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]{p}"
