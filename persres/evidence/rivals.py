"""``make tables``: the paper's tables 1, 3, 4 and 5 with every rival and ablation, measured whole.

Runs the profile ``tables`` in ``.work/tables`` (finished units are not redone), publishes ``data/tables`` and
``data/sheets`` as ``make repro`` does for its subset, and keeps what the README quotes in ``data/rivals``.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd

from persres.evidence import pages
from persres.evidence.report import provenance
from persres.metrics import summary
from persres.pipeline import run_chain
from persres.report.sheets import write_sheets
from persres.runs.context import Context
from persres.runs.files import publishing

TABLES = ("table1", "table3", "table4", "table5")
KEPT = (*TABLES, "methods", "differences", "groups", "categories")
SHEETS = ("rally_car", "heart_mug")
SCORES = {column: pages.COLUMNS[column] for column in summary.SCORES}


def run(params: Path, work: Path, out: Path) -> None:
    """The whole chain, then publish. Raises PersresError at the end, naming what failed; the other rows are published, the README's not."""
    context = load_context(params, "tables", work / "tables" / "data", work)
    failure = run_chain(context)
    for name in ("tables", "sheets"):
        with publishing(out / name) as fresh:
            shutil.copytree(context.data / name, fresh, dirs_exist_ok=True)
    if failure is not None:
        raise failure
    with publishing(out / "rivals") as fresh:
        _keep(context, fresh)
    pages.update([Path("README.md")], summary_of(out / "rivals"), BLOCKS, "rivals")


def _keep(context: Context, fresh: Path) -> None:
    for name in KEPT:
        for suffix in ("csv", "md", "png"):
            path = context.data / "tables" / f"{name}.{suffix}"
            if path.exists():
                shutil.copyfile(path, fresh / path.name)
    write_sheets(
        context,
        fresh,
        methods=("base", *(m for m in context.profile.tables.rows["table1"] if m != "base")),
        concepts=SHEETS,
    )
    (fresh / "settings.json").write_text(json.dumps(provenance(context), indent=1) + "\n")


def summary_of(folder: Path) -> dict[str, pd.DataFrame]:
    """The kept tables by name."""
    return {path.stem: pd.read_csv(path) for path in folder.glob("*.csv")}


def _cells(row: pd.Series, signed: bool = False) -> list[str]:
    sign = "+" if signed else ""
    return [f"{row[s]:{sign}.3f} [{row[f'{s}_low']:{sign}.3f}, {row[f'{s}_high']:{sign}.3f}]" for s in SCORES]


def _table(found: dict[str, pd.DataFrame], name: str) -> str:
    rows = [
        [
            str(row["row"]),
            f"{int(row['params']):,}",
            "–" if pd.isna(row["train_s"]) else f"{row['train_s']:.0f}",
            *_cells(row),
        ]
        for _, row in found[name].iterrows()
    ]
    return pages.table(["", "parameters", "training, s", *SCORES.values()], rows)


def _over_base(found: dict[str, pd.DataFrame]) -> str:
    """Each method of table 1 minus the base model."""
    pairs = found["differences"].set_index(["method", "against"])
    base = found["table1"].iloc[-1]["method"]
    rows = [
        [
            row["row"],
            *_cells(pairs.loc[(row["method"], base)], signed=True),
            f"{pairs.loc[(row['method'], base), 'dino_p']:.2g}",
        ]
        for _, row in found["table1"].iterrows()
        if row["method"] != base
    ]
    return pages.table(["minus the base model", *SCORES.values(), "p (DINO)"], rows)


BLOCKS = {name: lambda found, name=name: _table(found, name) for name in TABLES} | {"over_base": _over_base}
