"""A scheduler of units that do nothing, as a Prefect flow: what faults and scale are measured with."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from prefect import flow

from persres.fleet.scheduler import Fleet
from persres.stages.noop import NoopSpec, noop_unit
from persres.units.batches import Job
from persres.units.unit import Unit
from tasks.shards import Deployment
from tasks.views import StageViews


def noops(count: int, seconds: float, store: str) -> list[Unit]:
    """The same units each time they are asked for with a store, others with another: a worker keeps what it has done."""
    return [Unit("noop", f"n/{i}", NoopSpec(number=i, seconds=seconds, code=store)) for i in range(count)]


@flow(name="persres-campaign")
def campaign(store: str, work: str, units: int, seconds: float, shards: int) -> float:
    """Seconds that it took."""
    started = time.monotonic()
    Fleet(store, Deployment("persres-shard/shard", store), shards, 3, StageViews())(
        noops(units, seconds, store), Path(work), Job(noop_unit), 0, "cpu"
    )
    return time.monotonic() - started


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("store")
    parser.add_argument("work")
    parser.add_argument("--units", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--shards", type=int, default=2)
    state = campaign(**vars(parser.parse_args()), return_state=True)
    print(
        json.dumps(
            {
                "state": state.name,
                "message": state.message,
                "seconds": state.result(raise_on_failure=False) if state.is_completed() else None,
            }
        )
    )
    sys.exit(0 if state.is_completed() else 1)
