"""Tables as CSV and Markdown, with what a reader must know below them."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from persres.metrics.paper_figures import MODEL
from persres.units.context import Context

COLUMNS = {
    "dino_object": "DINO with everything outside the objects painted grey, in pictures and references.",
    "followed": "share of what the prompt asks for around the concept (background, second object, style, colour) that the judge sees.",
    "background_change": "mean squared difference from the base model's picture outside the objects (pixels in [0, 1]).",
}
COSTS = {"train_s": 1, "class_images_s": 1, "train_mib": 0, "picture_s": 3}  # digits shown


def notes_of(context: Context, rows: pd.DataFrame, columns: list[str]) -> str:
    """Lines below a table over these rows."""
    found = json.loads((context.data / "macro_class" / "macro_class.json").read_text())
    agree = sum(e["nearest"] == e["dataset"] for e in found["concepts"].values())
    lines = [
        f"{rows['concept'].nunique()} concepts; means over concepts of per-concept means; [low, high] is the 95% bootstrap interval over concepts, from five concepts on.",
        f"Base model {context.profile.base.model}. Macro class from: {found['source']}.",
        "params: numbers learned for one concept; for the base model its U-Net and text encoder"
        + (
            " (859.5 M + 123.1 M, the paper's 983M, which it also states for DreamBooth)."
            if context.profile.base.model == MODEL
            else "."
        ),
        "train_s: least seconds of training one concept, class_images_s of drawing the class images that it needs, train_mib: highest "
        "memory (the GPU's, else the process's), picture_s: least seconds of drawing one picture. From the run at hand: they vary.",
    ]
    if found["candidate_count"]:
        lines.append(
            f"Nearest-noun candidates: {found['candidate_count']} from {found['candidates']}; the nearest is the dataset's class for {agree} of {len(found['concepts'])}."
        )
    if all("zero_shot" in entry for entry in found["concepts"].values()):
        lines.append(_found_line(found["concepts"]))
    lines += [f"{column}: {text}" for column, text in COLUMNS.items() if column in columns]
    return "\n".join(f"- {line}" for line in lines)


def _found_line(concepts: dict) -> str:
    agree = sum(e["zero_shot"] == e["dataset"] for e in concepts.values())
    sure = ", ".join(f"{name} {e['found']} ({e['confidence']:.0%})" for name, e in concepts.items())
    return f"The class found by itself is the dataset's for {agree} of {len(concepts)}; with its confidence: {sure}."


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def write_table(out: Path, name: str, title: str, table: pd.DataFrame, columns: list[str], notes: str) -> None:
    """``<name>.csv`` with everything, ``<name>.md`` to read."""
    table.to_csv(out / f"{name}.csv", index=False)
    shown = table.copy()
    for column in columns:
        digits = 5 if column == "background_change" else 4
        shown[column] = [_with_interval(row, column, digits) for _, row in table.iterrows()]
        shown = shown.drop(columns=[f"{column}_{end}" for end in ("low", "high", "p") if f"{column}_{end}" in shown])
    if "params" in shown:
        shown["params"] = [f"{int(p):,}" for p in shown["params"]]
    for column, digits in COSTS.items():
        if column in shown:
            shown[column] = ["–" if pd.isna(v) else f"{v:.{digits}f}" for v in table[column]]
    rows = [[str(v) for v in row] for row in shown.itertuples(index=False)]
    (out / f"{name}.md").write_text(f"# {title}\n\n{markdown(list(shown.columns), rows)}\n{notes}\n")


def _with_interval(row: pd.Series, column: str, digits: int) -> str:
    value, low, high = row[column], row[f"{column}_low"], row[f"{column}_high"]
    if pd.isna(value):
        return "–"
    if pd.isna(low):
        return f"{value:.{digits}f}"  # below five concepts an interval, or a p, would say more than they know
    p = f", p {row[f'{column}_p']:.2g}" if f"{column}_p" in row else ""
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]{p}"
