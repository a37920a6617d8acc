"""The flow that a worker runs: one shard of units. ``CUDA_VISIBLE_DEVICES=0 python -m flows.worker --pool persres-gpu``."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")

from prefect import flow
from prefect.states import Completed, Failed, State

from persres.fleet.cache import CACHE_GB
from persres.fleet.worker import GRACE, WorkerSettings, run_shard
from tasks.views import clean, logs_in_the_run


@flow(name="persres-shard")
def shard(
    store: str,
    shard: str,
    work: str = ".work/worker",
    workers: int = 1,
    grace: float = GRACE,
    cache_gb: float = CACHE_GB,
) -> State:
    """Run a shard's units; the run is Failed if any did, naming them. See :class:`persres.fleet.worker.WorkerSettings`."""
    with logs_in_the_run():
        report = run_shard(store, shard, Path(work), WorkerSettings(workers, grace, cache_gb))
    reasons = [*report.failed.values(), *report.unfinished.values()]
    if reasons:
        counts = f"{len(report.failed)} units failed, {len(report.unfinished)} unfinished"
        return Failed(message=clean(f"{counts}: {'; '.join(reasons[:5])}"))
    return Completed(message="every unit is in the store")
