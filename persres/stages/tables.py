"""tables: aggregations of the score rows -> ``data/tables/``, and sheets to look at -> ``data/sheets/``."""

from __future__ import annotations

from persres.report.sheets import write_sheets
from persres.report.tables import write_tables
from persres.runs.context import Context
from persres.runs.files import publishing
from persres.runs.locks import stage_lock


def tables(context: Context) -> None:
    """Publish the tables, and one sheet per concept."""
    with stage_lock(context.work, "tables"):
        with publishing(context.data / "tables") as out:
            write_tables(context, out)
        with publishing(context.data / "sheets") as out:
            write_sheets(context, out)
