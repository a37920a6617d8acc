"""Shards as Prefect runs: sent to a deployment, watched until they end, their ends told to the library."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_UI_URL
from prefect.states import Crashed

from persres.errors import PersresError
from persres.fleet.parent import Ended
from persres.fleet.shards import Shard

log = logging.getLogger("persres.fleet")
POLL = 3.0  # seconds between two looks at the runs
AWAY = 900.0  # seconds to wait for a Prefect server that does not answer
STUCK = 300.0  # seconds that a run may be Pending: longer, and the worker that took it died before it began


@dataclass(frozen=True)
class Deployment:
    """Sends shards (:data:`persres.fleet.parent.Send`) to the agents of a Prefect deployment."""

    name: str
    store: str

    def __call__(self, shards: list[Shard], tick: Callable[[], None]) -> dict[str, Ended]:
        """All sent, then watched until each has ended."""
        runs = {self.submit(shard): shard.id for shard in shards}
        ended: dict[str, Ended] = {}
        while True:
            for run in look(list(runs)):
                if run.state is not None and run.state.is_final():
                    ended[runs[run.id]] = how_it_ended(run)
            tick()
            if len(ended) == len(shards):
                return ended
            time.sleep(POLL)

    def submit(self, shard: Shard) -> UUID:
        """A run of the shard. Named by it: a parent that was killed and comes back finds its runs, and two parents share them. A run of
        that name that has ended is another day's: the next is a new one."""
        for again in range(1000):
            try:
                run = run_deployment(
                    self.name,
                    parameters={"store": self.store, "shard": shard.id},
                    timeout=0,
                    idempotency_key=f"{shard.id}-{again}",
                    flow_run_name=f"{shard.stage}-{shard.id[:6]}-{shard.attempt}",
                )
            except ObjectNotFound as error:
                raise PersresError(f"Prefect has no deployment {self.name}; make fleet-setup registers it") from error
            if run.state is None or not run.state.is_final():
                return run.id
        raise PersresError(f"shard {shard.id} ended a thousand times; look at its runs in Prefect")


def look(runs: list[UUID]) -> list[FlowRun]:
    """The runs as the server has them. A server that is away is waited for; a run stuck in Pending is marked Crashed. Raises PersresError
    where the server stays away."""
    until = time.monotonic() + AWAY
    while True:
        try:
            with get_client(sync_client=True) as client:
                found = client.read_flow_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=runs)))
                for run in found:
                    if run.state is not None and run.state.is_pending() and _age(run) > STUCK:
                        client.set_flow_run_state(
                            run.id, Crashed(message="its worker died before it began"), force=True
                        )
            return found
        except httpx.HTTPError as error:
            if time.monotonic() > until:
                raise PersresError(
                    f"the Prefect server stays away ({error!r}); start it, then run this again"
                ) from error
            log.warning("fleet: the Prefect server does not answer; waiting for it")
            time.sleep(POLL)


def _age(run: FlowRun) -> float:
    return time.time() - run.state.timestamp.timestamp()


def how_it_ended(run: FlowRun) -> Ended:
    """Completed and Failed runs wrote their own report; a Crashed or Cancelled one died."""
    where = f"{PREFECT_UI_URL.value()}/runs/flow-run/{run.id}" if PREFECT_UI_URL.value() else f"flow run {run.id}"
    if run.state.is_crashed() or run.state.is_cancelled():
        return Ended(f"{run.state.name}: {run.state.message or 'no word'}", where)
    return Ended(None, where)
