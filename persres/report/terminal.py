"""What a person is shown in the terminal: the columns that answer the question, in at most 100 of its own."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from persres.errors import PersresError
from persres.metrics.summary import FEWEST_FOR_INTERVAL, difference, score_columns

WIDTH = 100
TABLES = ("table1", "table3", "table4", "table5")
COLUMNS = {
    "clip_text": ("CLIP text", 3),
    "clip_image": ("CLIP image", 3),
    "dino": ("DINO", 3),
    "background_change": ("background change", 4),
}


def _console() -> Console:
    """In colour and as wide as the terminal where there is one, at most 100 columns; plain in a file or a pipe."""
    console = Console(highlight=False)
    return Console(width=min(WIDTH, console.width) if console.is_terminal else WIDTH, highlight=False)


def show_tables(data: Path) -> None:
    """Print the tables of ``data/tables``, and where everything else lies. Raises PersresError where there are none."""
    if not (data / "tables" / "table1.csv").exists():
        raise PersresError(f"no {data / 'tables' / 'table1.csv'}; run make repro first")
    console = _console()
    for name in TABLES:
        path = data / "tables" / f"{name}.csv"
        if path.exists():
            console.print(score_table(f"Table {name.removeprefix('table')}", pd.read_csv(path)))
    console.print(f"Pictures, a sheet per concept: {data / 'sheets'}/*.png", soft_wrap=True)
    console.print(f"Intervals, paired differences, every column: {data / 'tables'}/*.md", soft_wrap=True)
    console.print(f"Residuals: {data / 'learned'}/", soft_wrap=True)


def score_table(title: str, found: pd.DataFrame) -> Table:
    """Method, scores, background change where a judge saw it, parameters."""
    shown = {c: about for c, about in COLUMNS.items() if c in found and found[c].notna().any()}
    over = f"{int(found['concepts'].max())} concepts, {int(found['images'].max())} pictures a method"
    table = Table(title=f"{title} ({over})", title_justify="left", title_style="bold")
    table.add_column("method", style="cyan", overflow="fold")
    for heading, _ in shown.values():
        table.add_column(heading, justify="right")
    table.add_column("parameters", justify="right")
    for _, row in found.iterrows():
        scores = ["–" if pd.isna(row[c]) else f"{row[c]:.{digits}f}" for c, (_, digits) in shown.items()]
        table.add_row(str(row.get("row", row["method"])), *scores, f"{int(row['params']):,}")
    return table


def show_difference(data: Path, method: str, against: str) -> None:
    """Print the paired difference of two methods. Raises PersresError where one was not scored."""
    source = data / "scores" / "scores.parquet"
    if not source.exists():
        raise PersresError(f"no {source}; run make repro first")
    rows = pd.read_parquet(source)
    known = list(dict.fromkeys(rows["method"]))
    for name in (method, against):
        if name not in known:
            raise PersresError(f"no method {name!r} among the scores; there are {', '.join(known)}")
    columns = score_columns(rows[rows["method"].isin([method, against])])
    console = _console()
    console.print(difference_table(difference(rows, columns, method, against, 10_000, 0), columns))


def difference_table(found: dict, columns: list[str]) -> Table:
    """Each score's difference, with interval and p from five concepts on."""
    title = f"{found['method']} - {found['against']}, over {found['concepts']} concepts"
    if found["concepts"] < FEWEST_FOR_INTERVAL:
        title += f" (no interval and no p below {FEWEST_FOR_INTERVAL})"
    table = Table(title=title, title_justify="left", title_style="bold")
    for heading in ("score", "difference", "95% bootstrap interval", "p, sign flips"):
        table.add_column(heading, justify="left" if heading == "score" else "right")
    for column in columns:
        low, high, p = (found[f"{column}_{end}"] for end in ("low", "high", "p"))
        ends = "–" if pd.isna(low) else f"[{low:+.4f}, {high:+.4f}]"
        value = "–" if pd.isna(found[column]) else f"{found[column]:+.4f}"
        table.add_row(column, value, ends, "–" if pd.isna(p) else f"{p:.3g}")
    return table
