"""tables: aggregations of the score rows -> ``data/tables/``, and sheets to look at -> ``data/sheets/``."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no screen on an agent
import matplotlib.pyplot as plt
import pandas as pd

from persres.metrics.paper_figures import MODEL, PAPER
from persres.metrics.summary import SCORES, difference, method_table, score_columns
from persres.stages.context import Context
from persres.stages.packs import read_index
from persres.stages.sheets import write_sheets
from persres.units import publishing, stage_lock


def tables(context: Context) -> None:
    """Publish the tables, the paired differences, scores by prompt group and category, and one sheet per concept."""
    rows = pd.read_parquet(context.data / "scores" / "scores.parquet")
    with stage_lock(context.work, "tables"):
        with publishing(context.data / "tables") as out:
            _write_all(context, rows, read_index(context)["methods"], out)
        with publishing(context.data / "sheets") as out:
            write_sheets(context, out)
    print((context.data / "tables" / "table1.md").read_text(), flush=True)


def _write_all(context: Context, rows: pd.DataFrame, methods: dict[str, dict], out: Path) -> None:
    settings, columns, notes = context.profile.tables, score_columns(rows), _notes(context, rows)
    resample = (settings.bootstrap, settings.seed)
    everything = _main_table(rows, methods, columns, resample)
    for name, chosen in ({"table1": {m: m for m in everything["method"]}} | settings.rows).items():
        table = paper_table(everything, name, chosen, context.profile.base.model)
        _write(out, name, f"Table {name.removeprefix('table')}", table, columns, notes)
    pairs = _pairs(list(everything["method"]), methods)
    paired = pd.DataFrame([difference(rows, columns, a, b, *resample) for a, b in pairs])
    _write(out, "differences", "Paired differences (same prompts, same noise)", paired, columns, notes)
    for name, title, key in (("groups", "By prompt group", "prompt_group"), ("categories", "By category", "category")):
        parts = [
            method_table(part, columns, *resample).assign(**{key: value})
            for value, part in rows.groupby(key, sort=False)
        ]
        table = pd.concat(parts, ignore_index=True)
        _write(out, name, title, table[[key, *table.columns[:-1]]], columns, notes)
    category_figure(pd.read_csv(out / "categories.csv"), out / "categories.png")


def _main_table(
    rows: pd.DataFrame, methods: dict[str, dict], columns: list[str], resample: tuple[int, int]
) -> pd.DataFrame:
    table = method_table(rows, columns, *resample)
    table.insert(1, "params", [methods[m]["parameters"] for m in table["method"]])
    table["concepts"] = [rows.loc[rows["method"] == m, "concept"].nunique() for m in table["method"]]
    table["images"] = [int((rows["method"] == m).sum()) for m in table["method"]]
    return table


def paper_table(everything: pd.DataFrame, name: str, chosen: dict[str, str], model: str) -> pd.DataFrame:
    """The chosen methods in their order under the paper's row names, the paper's own figures beside where the model is its."""
    table = everything.set_index("method").loc[list(chosen)].reset_index()
    if any(method != row for method, row in chosen.items()):
        table.insert(1, "row", list(chosen.values()))
    if model == MODEL and name in PAPER:
        known = [PAPER[name].get(row, (float("nan"),) * 3) for row in chosen.values()]
        for i, score in enumerate(SCORES):
            table[f"paper {score}"] = [figures[i] for figures in known]
    return table


def category_figure(table: pd.DataFrame, path: Path) -> None:
    """CLIP image and DINO against CLIP text, a dot per method and category (paper figure 7)."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2))
    for axis, score in zip(axes, ("clip_image", "dino"), strict=True):
        for method, part in table.groupby("method", sort=False):
            axis.scatter(part["clip_text"], part[score], label=method, s=18)
        axis.set(xlabel="clip_text", ylabel=score)
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": ""})
    plt.close(figure)


def _pairs(names: list[str], methods: dict[str, dict]) -> list[tuple[str, str]]:
    """Everything against the base model, and LAG against the same residual without it."""
    plain = [m for m in names if methods[m]["drawing"]["residual"] is None]
    pairs = [(m, plain[0]) for m in names if plain and m != plain[0]]
    for lag in (m for m in names if methods[m]["drawing"]["lag"]):
        twin = [
            m
            for m in names
            if not methods[m]["drawing"]["lag"]
            and methods[m]["drawing"]["residual"] == methods[lag]["drawing"]["residual"]
        ]
        pairs += [(lag, m) for m in twin[:1]]
    return pairs


def _notes(context: Context, rows: pd.DataFrame) -> str:
    found = json.loads((context.data / "macro_class" / "macro_class.json").read_text())
    agree = sum(e["nearest"] == e["dataset"] for e in found["concepts"].values())
    lines = [
        f"{rows['concept'].nunique()} concepts; means over concepts of per-concept means; [low, high] is the 95% bootstrap interval over concepts.",
        f"Base model {context.profile.base.model}. Macro class from: {found['source']}.",
    ]
    if found["candidate_count"]:
        lines.append(
            f"Nearest-noun candidates: {found['candidate_count']} from {found['candidates']}; the nearest is the dataset's class for {agree} of {len(found['concepts'])}."
        )
    if "background_change" in rows and rows["background_change"].notna().any():
        lines += [
            "dino_object: DINO with everything outside the objects painted grey, in pictures and references.",
            "followed: share of what the prompt asks for around the concept (background, second object, style, colour) that the judge sees.",
            "background_change: mean squared difference from the base model's picture outside the objects (pixels in [0, 1]).",
        ]
    return "\n".join(f"- {line}" for line in lines)


def _write(out: Path, name: str, title: str, table: pd.DataFrame, columns: list[str], notes: str) -> None:
    table.to_csv(out / f"{name}.csv", index=False)
    shown = table.copy()
    for column in columns:
        digits = 5 if column == "background_change" else 4
        shown[column] = [_with_interval(row, column, digits) for _, row in table.iterrows()]
        shown = shown.drop(columns=[f"{column}_{end}" for end in ("low", "high", "p") if f"{column}_{end}" in shown])
    if "params" in shown:
        shown["params"] = [f"{int(p):,}" for p in shown["params"]]
    header = "| " + " | ".join(shown.columns) + " |\n|" + "---|" * len(shown.columns)
    body = "\n".join("| " + " | ".join(str(v) for v in row) + " |" for row in shown.itertuples(index=False))
    (out / f"{name}.md").write_text(f"# {title}\n\n{header}\n{body}\n\n{notes}\n")


def _with_interval(row: pd.Series, column: str, digits: int) -> str:
    value, low, high = row[column], row[f"{column}_low"], row[f"{column}_high"]
    if pd.isna(value):
        return "–"
    p = f", p {row[f'{column}_p']:.2g}" if f"{column}_p" in row else ""
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]{p}"
