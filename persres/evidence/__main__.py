"""``make evidence``: every figure of the README and the model card, from the shipped weights.

Runs the whole chain with the profile ``evidence`` in ``.work/evidence`` (finished units are not redone), measures
localisation and the base model, and publishes ``data/evidence``. ``--sweep`` runs the profile ``sweep``
instead and writes ``data/sweep``; ``--tables`` runs the profile ``tables`` and writes ``data/rivals`` (make tables).
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from persres.errors import PersresError
from persres.evidence import pages, report, rivals
from persres.evidence.sweep import sweep_table
from persres.pipeline import STAGES, load_context, run_stage
from persres.runs.context import Context
from persres.runs.files import publishing
from persres.runs.locks import stage_lock

PAGES = [Path("README.md"), report.WEIGHTS / "MODEL_CARD.md"]


def chain(profile: str, params: Path, work: Path) -> Context:
    """All stages of a profile, published below the work folder."""
    context = load_context(params, profile, work / profile / "data", work)
    for stage in STAGES:
        run_stage(stage, context)
    return context


def evidence(context: Context, out: Path, prompts: int, scenes: int, views: int) -> None:
    """Measure and publish; ``prompts`` for the base model, ``scenes`` nameable ones and ``views`` of each concept."""
    started = time.monotonic()
    with stage_lock(context.work, "evidence"), publishing(out) as fresh:
        summary = report.quality(context, prompts)
        summary["localisation"] = report.localisation(context, fresh, scenes, views)
        summary |= report.effects(context, fresh) | {"of": report.provenance(context)}
        report.write(fresh, summary)
    pages.update(PAGES, summary)
    print((out / "claims.md").read_text(), f"\n{out}: {time.monotonic() - started:.0f} s after the chain", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Command line. 0 on success, 1 with one clear error."""
    parser = argparse.ArgumentParser(prog="python -m persres.evidence", description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--work", type=Path, default=Path(".work"))
    parser.add_argument("--out", type=Path, default=Path("data"))
    parser.add_argument("--sweep", action="store_true", help="the sweep of the paper's silent choices instead")
    parser.add_argument(
        "--tables", action="store_true", help="the paper's tables with all rivals and ablations instead"
    )
    parser.add_argument("--prompts", type=int, default=240, help="held-out prompts to measure the base model on")
    parser.add_argument("--scenes", type=int, default=300, help="nameable scenes for localisation")
    parser.add_argument("--views", type=int, default=27, help="scenes of each concept for localisation")
    given = parser.parse_args(arguments)
    try:
        if given.tables:
            rivals.run(given.params, given.work, given.out)
            return 0
        context = chain("sweep" if given.sweep else "evidence", given.params, given.work)
        if given.sweep:
            with publishing(given.out / "sweep") as fresh:
                sweep_table(context, fresh)
        else:
            evidence(context, given.out / "evidence", given.prompts, given.scenes, given.views)
    except PersresError as error:
        print(f"persres: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
