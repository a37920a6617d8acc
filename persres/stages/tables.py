"""tables: aggregated scores -> ``data/tables/``, image sheets -> ``data/sheets/``, model cards -> ``data/cards/``."""

from __future__ import annotations

from persres.report.cards import write_cards
from persres.report.sheets import write_sheets
from persres.report.tables import write_tables
from persres.units.context import Context
from persres.units.files import publishing
from persres.units.locks import stage_lock


def tables(context: Context) -> None:
    """Publish the tables, one sheet per concept, and a card per learned file."""
    with stage_lock(context.work, "tables"):
        with publishing(context.data / "tables") as out:
            write_tables(context, out)
        with publishing(context.data / "sheets") as out:
            write_sheets(context, out)
        with publishing(context.data / "cards") as out:
            write_cards(context, out)
