"""Aggregations of the score rows.

``methods`` has every method over all that it drew. The paper's tables (``tables.rows``) compare like with like: each is
over the pictures, same concepts, same prompts, same noise, that all of its methods have.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from persres.metrics.paper_figures import MODEL, PAPER
from persres.metrics.summary import SCORES, difference, method_table, score_columns
from persres.report.plots import category_figure, group_figure
from persres.report.table_text import notes_of, write_table
from persres.units.context import Context
from persres.units.costs import read_costs
from persres.units.outputs import ConfigFacts, read_index, scores_path

PICTURE = ["concept", "prompt", "image"]


def write_tables(context: Context, out: Path) -> None:
    """The tables, the paired differences, and scores by prompt group and category."""
    rows, methods = pd.read_parquet(scores_path(context.data)), read_index(context).configs
    settings, columns = context.profile.tables, score_columns(rows)
    resample, names = (settings.bootstrap, settings.seed), list(dict.fromkeys(rows["method"]))
    overview = _about(method_table(rows, columns, *resample), rows, methods, read_costs(context))
    notes = notes_of(context, rows, columns)
    write_table(out, "methods", "Every method, over all that it drew", overview, columns, notes)
    for name, chosen in ({"table1": {m: m for m in names}} | settings.rows).items():
        shared = shared_pictures(rows, list(chosen))
        table = _about(method_table(shared, columns, *resample), shared, methods, read_costs(context))
        table = paper_table(table, name, chosen, context.profile.base.model)
        write_table(
            out, name, f"Table {name.removeprefix('table')}", table, columns, notes_of(context, shared, columns)
        )
    paired = [
        difference(shared_pictures(rows, [a, b]), columns, a, b, *resample) for a, b in _pairs(context, names, methods)
    ]
    write_table(
        out, "differences", "Paired differences (same prompts, same noise)", pd.DataFrame(paired), columns, notes
    )
    _by_kind(rows, columns, resample, notes, out)


def _by_kind(rows: pd.DataFrame, columns: list[str], resample: tuple[int, int], notes: str, out: Path) -> None:
    """Scores by prompt group and by category, as tables and figures."""
    for name, title, key, figure in (
        ("groups", "By prompt group", "prompt_group", group_figure),
        ("categories", "By category", "category", category_figure),
    ):
        parts = [
            method_table(part, columns, *resample).assign(**{key: value})
            for value, part in rows.groupby(key, sort=False)
        ]
        table = pd.concat(parts, ignore_index=True)
        write_table(out, name, title, table[[key, *table.columns[:-1]]], columns, notes)
        figure(table, out / f"{name}.png")


def shared_pictures(rows: pd.DataFrame, chosen: list[str]) -> pd.DataFrame:
    """The rows of the chosen methods, in that order, on pictures that all of them drew."""
    parts = [rows[rows["method"] == method] for method in chosen]
    common = set.intersection(*(set(part[PICTURE].itertuples(index=False, name=None)) for part in parts))
    kept = [[key in common for key in part[PICTURE].itertuples(index=False, name=None)] for part in parts]
    return pd.concat([part[mask] for part, mask in zip(parts, kept, strict=True)], ignore_index=True)


def _about(
    table: pd.DataFrame, rows: pd.DataFrame, methods: dict[str, ConfigFacts], costs: pd.DataFrame
) -> pd.DataFrame:
    """Parameters before the scores; behind them what they are over, and what training and drawing took."""
    table.insert(1, "params", [methods[m].parameters for m in table["method"]])
    table["concepts"] = [rows.loc[rows["method"] == m, "concept"].nunique() for m in table["method"]]
    table["images"] = [int((rows["method"] == m).sum()) for m in table["method"]]
    return table.join(costs, on="method")


def paper_table(table: pd.DataFrame, name: str, chosen: dict[str, str], model: str) -> pd.DataFrame:
    """The table under the paper's row names, the paper's own figures beside where the model is its."""
    table = table.set_index("method").loc[list(chosen)].reset_index()
    if any(method != row for method, row in chosen.items()):
        table.insert(1, "row", list(chosen.values()))
    if model == MODEL and name in PAPER:
        known = [PAPER[name].get(row, (float("nan"),) * 3) for row in chosen.values()]
        for i, score in enumerate(SCORES):
            table[f"paper {score}"] = [figures[i] for figures in known]
    return table


def _pairs(context: Context, names: list[str], methods: dict[str, ConfigFacts]) -> list[tuple[str, str]]:
    """Everything against the base model, LAG against the same residual without it, and a paper table's rows against its
    row "Ours", or its first where none is called so."""
    sampling = {m: methods[m].sampling for m in names}
    plain = [m for m in names if sampling[m].variant is None]
    pairs = [(m, plain[0]) for m in names if plain and m != plain[0]]
    for lag in (m for m in names if sampling[m].lag):
        twins = [m for m in names if not sampling[m].lag and sampling[m].variant == sampling[lag].variant]
        pairs += [(lag, m) for m in twins[:1]]
    for chosen in context.profile.tables.rows.values():
        ours = next((m for m, row in chosen.items() if row == "Ours"), next(iter(chosen)))
        pairs += [(m, ours) for m in chosen if m not in (ours, *plain[:1])]
    return list(dict.fromkeys(pairs))
