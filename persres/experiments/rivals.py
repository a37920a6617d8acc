"""The paper's tables 1, 3, 4 and 5 with every rival and ablation (``make tables``).

The profile ``tables`` runs in ``.work/tables``. Tables and sheets go to ``data/tables`` and ``data/sheets``, as ``make repro`` publishes
them; what the pages quote goes to ``data/rivals``.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd

from persres.experiments.evidence.pages import NOT_MEASURED
from persres.experiments.evidence.provenance import measured_line, provenance
from persres.metrics.paper_figures import PAPER
from persres.metrics.scores import PAPER_SCORES, SCORES
from persres.report.sheets import write_sheets
from persres.report.table_text import markdown, parameter_text
from persres.units.context import Context
from persres.units.files import publishing
from persres.workflow import load_context, run_chain

TABLES = ("table1", "table3", "table4", "table5")
PUBLISHED = (*TABLES, "methods", "differences", "groups", "categories")
SHEETS = ("rally_car", "heart_mug")
TITLES = {name: SCORES[name].title for name in PAPER_SCORES}


def run(params: Path, work: Path, out: Path) -> None:
    """Run the pipeline and publish. Raises PersresError at the end if a unit failed; the other rows are published."""
    context = load_context(params, "tables", work / "tables" / "data", work)
    failure = run_chain(context)
    for name in ("tables", "sheets"):
        with publishing(out / name) as fresh:
            shutil.copytree(context.data / name, fresh, dirs_exist_ok=True)
    if failure is not None:
        raise failure
    with publishing(out / "rivals") as fresh:
        _publish(context, fresh)


def _publish(context: Context, fresh: Path) -> None:
    for name in PUBLISHED:
        for suffix in ("csv", "md", "png"):
            path = context.data / "tables" / f"{name}.{suffix}"
            if path.exists():
                shutil.copyfile(path, fresh / path.name)
    write_sheets(
        context,
        fresh,
        configs=("base", *(m for m in context.profile.tables.rows["table1"] if m != "base")),
        concepts=SHEETS,
    )
    (fresh / "settings.json").write_text(json.dumps(provenance(context.profile), indent=1) + "\n")
    write_comparison(fresh)


def write_comparison(folder: Path) -> None:
    """Write ``comparison.md``: differences to the base model, and the paper's differences with ours."""
    tables = summary_of(folder)
    parts = [
        f"## {block.__doc__.split('.')[0]}\n\n{block(tables)}" for block in (_over_base, _against_paper, _detectable)
    ]
    (folder / "comparison.md").write_text("\n".join(["# Differences\n", *parts]))


def summary_of(folder: Path) -> dict:
    """Return the published tables by name, and ``settings``."""
    tables: dict = {path.stem: pd.read_csv(path) for path in folder.glob("*.csv")}
    return tables | {"settings": json.loads((folder / "settings.json").read_text())}


def _cells(row: pd.Series, signed: bool = False) -> list[str]:
    sign = "+" if signed else ""
    return [f"{row[s]:{sign}.3f} [{row[f'{s}_low']:{sign}.3f}, {row[f'{s}_high']:{sign}.3f}]" for s in TITLES]


def _table(table: pd.DataFrame) -> str:
    rows = [
        [
            str(row["row"]),
            parameter_text(row["params"]),
            "–" if pd.isna(row["train_s"]) else f"{row['train_s']:.0f}",
            *_cells(row),
        ]
        for _, row in table.iterrows()
    ]
    return markdown(["", "parameters", "training, s", *TITLES.values()], rows)


def _over_base(tables: dict) -> str:
    """Each method of table 1 minus the base model."""
    pairs = tables["differences"].set_index(["config", "against"])
    base = tables["differences"]["against"].iloc[0]  # its first pair is against the base model
    rows = [
        [
            row["row"],
            *_cells(pairs.loc[(row["config"], base)], signed=True),
            f"{pairs.loc[(row['config'], base), 'dino_p']:.2g}",
        ]
        for _, row in tables["table1"].iterrows()
        if row["config"] != base
    ]
    return markdown(["minus the base model", *TITLES.values(), "p (DINO)"], rows)


def _detectable(tables: dict) -> str:
    """The smallest difference that the paired test finds.

    Over the pairs of methods of table 1, with a power of 80%.
    """
    pairs, methods = tables["differences"], set(tables["table1"]["config"])
    if f"{next(iter(TITLES))}_detectable" not in pairs:
        return NOT_MEASURED
    pairs = pairs[pairs["config"].isin(methods) & pairs["against"].isin(methods)]
    detectable = [pairs[f"{score}_detectable"] for score in TITLES]
    rows = [[name, *(f"{getattr(column, name)():.3f}" for column in detectable)] for name in ("min", "median", "max")]
    return markdown(["over pairs of methods", *TITLES.values()], rows)


PAPER_RANK = "0.05 m"  # the paper's rank, as its table 5 names it
SAME_ROW = {("table5", "half the ratio"): "0.025 m", ("table5", "Ours"): PAPER_RANK}  # other names in the paper
LEVEL = 0.05


def verdict(paper: float, here: float, p: float) -> str:
    """Return whether a difference has the paper's sign, by the paired test; empty if the paper's difference is zero."""
    if abs(paper) < 5e-5:
        return ""
    if pd.isna(p) or p >= LEVEL:
        return "not significant"
    return "same sign" if paper * here > 0 else "**opposite sign**"


def _against_paper(tables: dict) -> str:
    """Each row of the paper's tables minus its reference row (Ours, in table 4 the first), in the paper and here."""
    pairs = tables["differences"].set_index(["config", "against"])
    lines = []
    for name in TABLES:
        configs = {_paper_row(name, row): config for config, row in zip(*_columns(tables[name]), strict=True)}
        reference = next((row for row in ("Ours", PAPER_RANK) if row in configs), next(iter(configs)))
        for row in (r for r in configs if r in PAPER[name] and r != reference):
            key = (configs[row], configs[reference])
            if key not in pairs.index:
                key = key[::-1]
            cells = [_cell(PAPER[name], row, reference, pairs.loc[key], s, key[0] == configs[row]) for s in TITLES]
            lines.append([name.removeprefix("table"), f"{row} − {reference}", *cells])
    return markdown(["table", "difference", *TITLES.values()], lines)


def _paper_row(table: str, row: str) -> str:
    return SAME_ROW.get((table, row), row)


def _columns(table: pd.DataFrame) -> tuple[list[str], list[str]]:
    return [str(v) for v in table["config"]], [str(v) for v in table["row"]]


def _cell(paper: dict, row: str, reference: str, pair: pd.Series, score: str, forward: bool) -> str:
    index = list(TITLES).index(score)
    theirs = paper[row][index] - paper[reference][index]
    here, p = pair[score] if forward else -pair[score], pair[f"{score}_p"]
    label = verdict(theirs, here, p)
    return f"{label}{': ' if label else ''}paper {theirs:+.3f}, here {here:+.3f}, p {p:.2g}"


def _measured(tables: dict) -> str:
    """Commit and date of the measurement."""
    return measured_line(tables["settings"])


BLOCKS = {"table1": lambda tables: _table(tables["table1"]), "measured": _measured}
