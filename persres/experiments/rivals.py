"""``make tables``: the paper's tables 1, 3, 4 and 5 with every rival and ablation, measured whole.

Runs the profile ``tables`` in ``.work/tables`` (finished units are not redone), publishes ``data/tables`` and
``data/sheets`` as ``make repro`` does, and keeps what the pages quote in ``data/rivals``.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd

from persres.experiments.evidence.provenance import CHAIN_CODE, code_line, provenance
from persres.metrics.paper_figures import PAPER
from persres.metrics.scores import PAPER_SCORES, SCORES
from persres.report.sheets import write_sheets
from persres.report.table_text import markdown
from persres.units.context import Context
from persres.units.files import publishing
from persres.workflow import load_context, run_chain

TABLES = ("table1", "table3", "table4", "table5")
KEPT = (*TABLES, "methods", "differences", "groups", "categories")
SHEETS = ("rally_car", "heart_mug")
TITLES = {name: SCORES[name].title for name in PAPER_SCORES}


def run(params: Path, work: Path, out: Path) -> None:
    """The whole chain, then publish. Raises PersresError at the end, naming what failed; the other rows are published all the same."""
    context = load_context(params, "tables", work / "tables" / "data", work)
    failure = run_chain(context)
    for name in ("tables", "sheets"):
        with publishing(out / name) as fresh:
            shutil.copytree(context.data / name, fresh, dirs_exist_ok=True)
    if failure is not None:
        raise failure
    with publishing(out / "rivals") as fresh:
        _keep(context, fresh)


def _keep(context: Context, fresh: Path) -> None:
    for name in KEPT:
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
    (fresh / "settings.json").write_text(json.dumps(provenance(context.profile, CHAIN_CODE), indent=1) + "\n")


def summary_of(folder: Path) -> dict:
    """The kept tables by name, and ``settings``."""
    found: dict = {path.stem: pd.read_csv(path) for path in folder.glob("*.csv")}
    return found | {"settings": json.loads((folder / "settings.json").read_text())}


def _cells(row: pd.Series, signed: bool = False) -> list[str]:
    sign = "+" if signed else ""
    return [f"{row[s]:{sign}.3f} [{row[f'{s}_low']:{sign}.3f}, {row[f'{s}_high']:{sign}.3f}]" for s in TITLES]


def _table(found: dict, name: str) -> str:
    rows = [
        [
            str(row["row"]),
            f"{int(row['params']):,}",
            "–" if pd.isna(row["train_s"]) else f"{row['train_s']:.0f}",
            *_cells(row),
        ]
        for _, row in found[name].iterrows()
    ]
    return markdown(["", "parameters", "training, s", *TITLES.values()], rows)


def _over_base(found: dict) -> str:
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
    return markdown(["minus the base model", *TITLES.values(), "p (DINO)"], rows)


PAPER_RANK = "0.05 m"  # the paper's own, as its table 5 calls it
SAME_ROW = {("table5", "half the ratio"): "0.025 m", ("table5", "Ours"): PAPER_RANK}  # what the paper calls otherwise
LEVEL = 0.05


def verdict(paper: float, here: float, p: float) -> str:
    """Whether a difference goes the paper's way, by the paired test. Empty where the paper has no difference."""
    if abs(paper) < 5e-5:
        return ""
    if pd.isna(p) or p >= LEVEL:
        return "can't be told"
    return "as in the paper" if paper * here > 0 else "**against the paper**"


def _against_paper(found: dict) -> str:
    """Every row of the paper's tables minus its reference row (Ours, in table 4 the first), in the paper and here."""
    pairs = found["differences"].set_index(["method", "against"])
    lines = []
    for name in TABLES:
        methods = {_paper_row(name, row): method for method, row in zip(*_columns(found[name]), strict=True)}
        reference = next((row for row in ("Ours", PAPER_RANK) if row in methods), next(iter(methods)))
        for row in (r for r in methods if r in PAPER[name] and r != reference):
            key = (methods[row], methods[reference])
            if key not in pairs.index:
                key = key[::-1]
            cells = [_cell(PAPER[name], row, reference, pairs.loc[key], s, key[0] == methods[row]) for s in TITLES]
            lines.append([name.removeprefix("table"), f"{row} − {reference}", *cells])
    return markdown(["table", "difference", *TITLES.values()], lines)


def _paper_row(table: str, row: str) -> str:
    return SAME_ROW.get((table, row), row)


def _columns(table: pd.DataFrame) -> tuple[list[str], list[str]]:
    return [str(v) for v in table["method"]], [str(v) for v in table["row"]]


def _cell(paper: dict, row: str, reference: str, pair: pd.Series, score: str, forward: bool) -> str:
    place = list(TITLES).index(score)
    theirs = paper[row][place] - paper[reference][place]
    here, p = pair[score] if forward else -pair[score], pair[f"{score}_p"]
    said = verdict(theirs, here, p)
    return f"{said}{': ' if said else ''}paper {theirs:+.3f}, here {here:+.3f}, p {p:.2g}"


def _code(found: dict) -> str:
    return code_line(found["settings"], CHAIN_CODE, "make tables")


BLOCKS = {name: lambda found, name=name: _table(found, name) for name in TABLES} | {
    "over_base": _over_base,
    "paper_directions": _against_paper,
    "code": _code,
}
