"""Tables in the terminal: the headline scores, in at most 100 columns."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from persres.config.legacy import SCORE_ROWS, translate
from persres.errors import PersresError
from persres.metrics.paper_figures import PAPER
from persres.metrics.scores import HEADLINE_SCORES, SCORES, score_columns
from persres.metrics.summary import MIN_FOR_INTERVAL, difference
from persres.report.table_text import RUN, parameter_text
from persres.untrusted.documents import read_csv, read_file, read_json
from persres.untrusted.text import printable, quoted

WIDTH = 100
MOST_SCORES = 1 << 30  # bytes


def _console() -> Console:
    """Colours and the terminal's width, up to 100 columns; plain text in a file or a pipe."""
    console = Console(highlight=False)
    return Console(width=min(WIDTH, console.width) if console.is_terminal else WIDTH, highlight=False)


def show_tables(data: Path) -> None:
    """Print the tables of ``data/tables`` and the paths of the other results. Raises PersresError where there are none."""
    if not (data / "tables" / "table1.csv").exists():
        raise PersresError(f"no {data / 'tables' / 'table1.csv'}; run make repro first")
    console = _console()
    if (data / "tables" / RUN).exists():
        console.print(_what_ran(data / "tables" / RUN), soft_wrap=True)
    for name in PAPER:
        path = data / "tables" / f"{name}.csv"
        if path.exists():
            console.print(score_table(f"Table {name.removeprefix('table')}", _read_scores(path)))
    where = _plain(data)
    console.print(f"Image sheets, one per concept: {where}/sheets/*.png", soft_wrap=True)
    console.print(f"Intervals, paired differences, every column: {where}/tables/*.md", soft_wrap=True)
    console.print(f"Residuals: {where}/learned/", soft_wrap=True)


class _Run(BaseModel):
    """``run.json``, as far as it is read."""

    profile: str | None
    model: str
    resolution: int
    dtype: str


def _what_ran(path: Path) -> str:
    run = read_json(path, _Run, "run persres run tables")
    name = "" if run.profile is None else f"Profile {run.profile}: "
    return _plain(f"{name}{run.model}, {run.resolution} pixels, {run.dtype}")


def _read_scores(path: Path) -> pd.DataFrame:
    """A table as the stage wrote it. Raises PersresError where it is another file, or empty."""
    fix = "run persres run tables"
    rows = _current_names(read_csv(path, dict[str, Any], fix))
    counts = ["concepts", "images", "params"]
    missing = {"config", *counts} - set(rows)
    if missing or not len(rows):
        raise PersresError(f"{path} has no {', '.join(sorted(missing)) or 'rows'}; {fix}")
    _check_numbers(rows, [*counts, *score_columns(rows)], path, fix)
    if not rows[counts].abs().lt(2**53).all(axis=None):  # false for NaN too
        raise PersresError(f"{path} has counts that are no numbers; {fix}")
    return rows


def _check_numbers(rows: pd.DataFrame, columns: list[str], path: Path, fix: str) -> None:
    texts = [name for name in columns if not pd.api.types.is_numeric_dtype(rows[name])]
    if texts:
        raise PersresError(f"{path} has scores or counts that are no numbers ({texts[0]}); {fix}")


def _read_units(path: Path) -> pd.DataFrame:
    """The scores of all images. Raises PersresError where the file is another."""
    fix = "run persres run score"
    data = read_file(path, MOST_SCORES, fix)
    try:
        rows = _current_names(pd.read_parquet(io.BytesIO(data)))
    except Exception as error:  # Arrow raises a dozen kinds
        raise PersresError(f"{path} is not valid ({printable(error)}); {fix}") from error
    if missing := {"config", "concept"} - set(rows):
        raise PersresError(f"{path} has no {', '.join(sorted(missing))}; {fix}")
    _check_numbers(rows, score_columns(rows), path, fix)
    return rows


def _current_names(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with today's names of columns."""
    return rows.set_axis(list(translate(dict.fromkeys(rows.columns), SCORE_ROWS)), axis=1)


def _plain(text: object) -> str:
    """Text from outside for rich, which reads brackets as markup."""
    return escape(printable(text))


def score_table(title: str, scores: pd.DataFrame) -> Table:
    """Config, headline scores, parameters."""
    columns = [name for name in score_columns(scores) if name in HEADLINE_SCORES]
    over = f"{int(scores['concepts'].max())} concepts, {int(scores['images'].max())} images per config"
    table = Table(title=f"{title} ({over})", title_justify="left", title_style="bold")
    table.add_column("config", style="cyan", overflow="fold")
    for heading in (*(SCORES[name].heading for name in columns), "parameters"):
        table.add_column(heading, justify="right")
    for _, row in scores.iterrows():
        cells = [number(row[name], SCORES[name].digits) for name in columns]
        table.add_row(_plain(row.get("row", row["config"])), *cells, parameter_text(row["params"]))
    return table


def number(value: float, digits: int, sign: str = "") -> str:
    """The value with so many digits; a dash for NaN."""
    return "–" if pd.isna(value) else f"{value:{sign}.{digits}f}"


def show_difference(data: Path, config: str, against: str) -> None:
    """Print the paired difference of two configs. Raises PersresError where one has no scores."""
    source = data / "scores" / "scores.parquet"
    if not source.exists():
        raise PersresError(f"no {source}; run make repro first")
    rows = _read_units(source)
    known = list(dict.fromkeys(rows["config"]))
    for name in (config, against):
        if name not in known:
            raise PersresError(f"no config {quoted(name)} in {source}; one of {', '.join(map(str, known))}")
    columns = score_columns(rows[rows["config"].isin([config, against])])
    _console().print(difference_table(difference(rows, columns, (config, against), 10_000, 0), columns))


def difference_table(paired: dict, columns: list[str]) -> Table:
    """Each score's difference, with interval and p from five concepts on."""
    title = f"{_plain(paired['config'])} - {_plain(paired['against'])}, over {paired['concepts']} concepts"
    if paired["concepts"] < MIN_FOR_INTERVAL:
        title += f" (no interval and no p below {MIN_FOR_INTERVAL})"
    table = Table(title=title, title_justify="left", title_style="bold")
    for heading in ("score", "difference", "95% bootstrap interval", "p, sign flips"):
        table.add_column(heading, justify="left" if heading == "score" else "right")
    for name in columns:
        low, high, p = (paired[f"{name}_{end}"] for end in ("low", "high", "p"))
        ends = "–" if pd.isna(low) else f"[{low:+.4f}, {high:+.4f}]"
        table.add_row(SCORES[name].heading, number(paired[name], 4, "+"), ends, "–" if pd.isna(p) else f"{p:.3g}")
    return table
