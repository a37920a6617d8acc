"""The whole chain with its units on workers: ``python -m flows.fleet --store s3://bucket/persres``, or the deployment ``nightly``.

A schedule may set the store in PERSRES_STORE; without a store everything runs here, as in flows/pipeline.py. The scheduler has DVC:
stages send their units, gather the results and publish into data/; at the end ``dvc commit`` and ``dvc push`` record them once. As in
``persres run``, a failed variant or config is left out of the following stages, and the flow fails at the end.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")

from prefect import flow

from persres.errors import PersresError
from persres.fleet.scheduler import Fleet
from persres.fleet.store import open_store
from persres.stages.settings import write_settings
from persres.versions.git_dvc import configuration, dvc
from persres.versions.store import s3_remote
from persres.workflow import STAGES, load_context, run_chain
from tasks.shards import Deployment
from tasks.views import StageViews, logs_in_the_run, show_sheets

SHARDS = "persres-shard/shard"  # flow and deployment, as prefect.yaml names them


@flow(name="persres-fleet")
def fleet(
    params: str = "params.yaml",
    profile: str | None = None,
    data: str = "data",
    work: str = ".work",
    store: str | None = None,
    deployment: str = SHARDS,
    shards: int = 8,
    attempts: int = 3,
    stages: list[str] | None = None,
    commit: bool = False,
    push: bool = False,
) -> str:
    """Run the stages. ``shards`` per stage: two or three per worker balance the load. ``commit`` and ``push``: DVC's, once, at the end.

    Raises PersresError when the rest is finished, with every failed unit, reasons and links to logs. Nothing is committed then: DVC
    would take the stages for complete.
    """
    if push:
        _check_remote()
    store = store or os.environ.get("PERSRES_STORE")
    context, views = load_context(Path(params), profile, Path(data), Path(work)), StageViews()
    if store is not None:
        send = Deployment(deployment, store)
        context = replace(context, run_units=Fleet(store, send, shards, attempts, views, Path(data)))
    write_settings(Path(params), profile, Path(data))
    with logs_in_the_run():
        try:
            failure = run_chain(context, stages or STAGES)
        finally:
            views.table()
        try:
            if store is not None:
                show_sheets(context, open_store(store))
        finally:
            if failure is not None:
                raise failure
        if commit:
            dvc(Path(), "commit", "--force")
        if push:
            dvc(Path(), "push", label="data to DVC's remote")
    return data


def _check_remote() -> None:
    """Raises PersresError, before the work, if DVC has no remote to push to."""
    try:
        s3_remote(configuration(Path()))
    except PersresError as error:
        raise PersresError(f"push: {error}; or start the run with push: false") from error


def main() -> int:
    """The command line; returns 0 on success, 1 if a stage failed."""
    parser = argparse.ArgumentParser(prog="python -m flows.fleet", description=__doc__)
    for name, default in (("params", "params.yaml"), ("data", "data"), ("work", ".work"), ("deployment", SHARDS)):
        parser.add_argument(f"--{name}", default=default)
    parser.add_argument("--profile")
    parser.add_argument("--store")
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--attempts", type=int, default=3)
    parser.add_argument("--stages", nargs="*", choices=STAGES)
    parser.add_argument("--commit", action="store_true")
    parser.add_argument("--push", action="store_true")
    state = fleet(**vars(parser.parse_args()), return_state=True)
    return 0 if state.is_completed() else 1


if __name__ == "__main__":
    sys.exit(main())
