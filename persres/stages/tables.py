"""tables: aggregations of the score rows -> ``data/tables/``, and sheets to look at -> ``data/sheets/``."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from persres.metrics.summary import difference, method_table, score_columns
from persres.stages.context import Context
from persres.stages.packs import read_index
from persres.stages.sheets import write_sheets
from persres.units import publishing, stage_lock


def tables(context: Context) -> None:
    """Publish table 1, the paired differences, scores by prompt group and one sheet per concept."""
    rows = pd.read_parquet(context.data / "scores" / "scores.parquet")
    methods = read_index(context)["methods"]
    settings = context.profile.tables
    columns = score_columns(rows)
    with stage_lock(context.work, "tables"):
        with publishing(context.data / "tables") as out:
            table = method_table(rows, columns, settings.bootstrap, settings.seed)
            table.insert(1, "params", [methods[m]["parameters"] for m in table["method"]])
            table["concepts"] = [rows.loc[rows["method"] == m, "concept"].nunique() for m in table["method"]]
            table["images"] = [int((rows["method"] == m).sum()) for m in table["method"]]
            _write(out, "table1", "Table 1", table, columns, _notes(context, rows))
            pairs = _pairs(list(table["method"]), methods)
            paired = pd.DataFrame(
                [difference(rows, columns, a, b, settings.bootstrap, settings.seed) for a, b in pairs]
            )
            _write(
                out,
                "differences",
                "Paired differences (same prompts, same noise)",
                paired,
                columns,
                _notes(context, rows),
            )
            groups = [method_table(part, columns, settings.bootstrap, settings.seed).assign(prompt_group=group)
                      for group, part in rows.groupby("prompt_group", sort=False)]  # fmt: skip
            by_group = pd.concat(groups, ignore_index=True)
            _write(
                out,
                "groups",
                "By prompt group",
                by_group[["prompt_group", *by_group.columns[:-1]]],
                columns,
                _notes(context, rows),
            )
        with publishing(context.data / "sheets") as out:
            write_sheets(context, out)
    print((context.data / "tables" / "table1.md").read_text(), flush=True)


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
        shown = shown.drop(columns=[f"{column}_low", f"{column}_high"])
    if "params" in shown:
        shown["params"] = [f"{int(p):,}" for p in shown["params"]]
    header = "| " + " | ".join(shown.columns) + " |\n|" + "---|" * len(shown.columns)
    body = "\n".join("| " + " | ".join(str(v) for v in row) + " |" for row in shown.itertuples(index=False))
    (out / f"{name}.md").write_text(f"# {title}\n\n{header}\n{body}\n\n{notes}\n")


def _with_interval(row: pd.Series, column: str, digits: int) -> str:
    value, low, high = row[column], row[f"{column}_low"], row[f"{column}_high"]
    if pd.isna(value):
        return "–"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
