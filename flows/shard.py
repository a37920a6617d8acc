"""What an agent runs: one shard of units. ``CUDA_VISIBLE_DEVICES=0 python -m flows.agent --pool persres-gpu``."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")

from prefect import flow
from prefect.states import Completed, Failed, State

from persres.fleet.cache import CACHE_GB
from persres.fleet.worker import GRACE, run_shard
from tasks.views import logs_in_the_run


@flow(name="persres-shard")
def shard(
    store: str,
    shard: str,
    work: str = ".work/agent",
    workers: int = 1,
    grace: float = GRACE,
    kept_gb: float = CACHE_GB,
) -> State:
    """Every unit of the shard is done or fails; then the run is Failed, naming them, if any did. ``kept_gb``: inputs and finished units that
    may stay in ``work``, those used longest ago go first."""
    with logs_in_the_run():
        report = run_shard(store, shard, Path(work), workers, grace, kept_gb)
    told = [*report.failed.values(), *report.unfinished.values()]
    if told:
        return Failed(
            message=f"{len(report.failed)} units failed, {len(report.unfinished)} unfinished: " + "; ".join(told[:5])
        )
    return Completed(message="every unit is in the store")
