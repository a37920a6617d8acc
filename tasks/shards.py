"""Shards as Prefect runs: sent to a deployment, watched until they end, their ends told to the library."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, WorkPoolStatus
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_UI_URL
from prefect.states import Crashed

from persres.errors import PersresError
from persres.fleet.scheduler import ShardOutcome
from persres.fleet.shards import Shard
from tasks.server import POLL, answered

log = logging.getLogger("persres.fleet")
# Seconds that a run may be Pending: longer, and the worker that took it died before it began. More than flows/setup.py's automation waits,
# which knows of images that are still being pulled; this is for servers without it.
STUCK = 660.0
UNSERVED, AGAIN = (
    60.0,
    600.0,
)  # seconds that no run is taken before one is told that no worker asks for them, and told again
PAGE = 200  # runs that the server tells of at once


@dataclass(frozen=True)
class Deployment:
    """Sends shards (:data:`persres.fleet.scheduler.Send`) to the agents of a Prefect deployment."""

    name: str
    store: str

    def __call__(self, shards: list[Shard], tick: Callable[[], None]) -> dict[str, ShardOutcome]:
        """All sent, then watched until each has ended."""
        runs = {self.submit(shard): shard.id for shard in shards}
        ended: dict[str, ShardOutcome] = {}
        watch = Watch()
        while True:
            for run in watch.look([run for run, shard in runs.items() if shard not in ended]):
                if run.state is not None and run.state.is_final():
                    ended[runs[run.id]] = how_it_ended(run)
            tick()
            if len(ended) == len(shards):
                return ended
            time.sleep(POLL)

    def submit(self, shard: Shard) -> UUID:
        """A run of the shard. Named by it: a parent that was killed and comes back finds its runs, and two parents share them. A run of
        that name that has ended is another day's: the next is a new one. A server that is away is waited for."""
        for again in range(1000):
            run = answered(lambda key=f"{shard.id}-{again}": self._run(shard, key))
            if run.state is None or not run.state.is_final():
                return run.id
        raise PersresError(f"shard {shard.id} ended a thousand times; look at its runs in Prefect")

    def _run(self, shard: Shard, key: str) -> FlowRun:
        try:
            return run_deployment(
                self.name,
                parameters={"store": self.store, "shard": shard.id},
                timeout=0,
                idempotency_key=key,
                flow_run_name=f"{shard.stage}-{shard.id[:6]}-{shard.attempt}",
            )
        except ObjectNotFound as error:
            raise PersresError(f"Prefect has no deployment {self.name}; make fleet-setup registers it") from error


class Watch:
    """Looks at runs, again and again. How long something lasts is told by this process's own clock, from when it was first seen: the
    server's stamps are another machine's, and the two may be minutes apart."""

    def __init__(self) -> None:
        self.pending: dict[UUID, float] = {}  # since when
        self.waiting: float | None = None  # since when no run has been taken
        self.warn_at = UNSERVED  # seconds after that

    def look(self, runs: list[UUID]) -> list[FlowRun]:
        """The runs as the server has them; one stuck in Pending is marked Crashed. A server that is away is waited for, and that time is
        not held against a run. Raises PersresError where it stays away."""
        return answered(lambda: self._look(runs), away=self._forget)

    def _look(self, runs: list[UUID]) -> list[FlowRun]:
        with get_client(sync_client=True) as client:
            found = []
            for start in range(0, len(runs), PAGE):
                some = FlowRunFilterId(any_=runs[start : start + PAGE])
                found += client.read_flow_runs(flow_run_filter=FlowRunFilter(id=some), limit=PAGE)
            for run in found:
                if self._stuck(run):
                    client.set_flow_run_state(run.id, Crashed(message="its worker died before it began"), force=True)
            self._warn(client, found)
        return found

    def _forget(self) -> None:
        self.pending.clear()
        self.waiting = None

    def _stuck(self, run: FlowRun) -> bool:
        if run.state is None or not run.state.is_pending():
            self.pending.pop(run.id, None)
            return False
        return time.monotonic() - self.pending.setdefault(run.id, time.monotonic()) > STUCK

    def _warn(self, client: SyncPrefectClient, found: list[FlowRun]) -> None:
        """Where every run still waits to be taken, and nobody asks for them."""
        open_runs = [run for run in found if run.state is not None and not run.state.is_final()]
        if not open_runs or not all(run.state.is_scheduled() for run in open_runs):
            self.waiting, self.warn_at = None, UNSERVED
            return
        self.waiting = time.monotonic() if self.waiting is None else self.waiting
        if time.monotonic() - self.waiting < self.warn_at:
            return
        self.warn_at += AGAIN
        for name in sorted({run.work_pool_name for run in open_runs if run.work_pool_name}):
            said = unserved(client, name)
            if said:
                log.warning("fleet: %d runs wait: %s; waiting", len(open_runs), said)


def unserved(client: SyncPrefectClient, name: str) -> str | None:
    """Why nobody takes a work pool's runs, and the mend; None where a worker is there, busy as it may be."""
    pool = client.read_work_pool(name)
    if pool.status == WorkPoolStatus.PAUSED:
        return f"work pool {name} is paused; prefect work-pool resume {name} lets its agents go on"
    if pool.status == WorkPoolStatus.READY:
        return None
    command = "python -m flows.agent" if pool.type == "process" else "prefect worker start"
    return f"no agent asks work pool {name} for runs; {command} --pool {name} starts one"


def how_it_ended(run: FlowRun) -> ShardOutcome:
    """A Completed run wrote its own report, a Failed one too unless its message says why not; a Crashed or Cancelled one died."""
    where = f"{PREFECT_UI_URL.value()}/runs/flow-run/{run.id}" if PREFECT_UI_URL.value() else f"flow run {run.id}"
    if run.state.is_crashed() or run.state.is_cancelled():
        return ShardOutcome(f"{run.state.name}: {run.state.message or 'no word'}", where)
    return ShardOutcome(None, where, (run.state.message or "") if run.state.is_failed() else "")
