"""Shards as Prefect runs: sent to a deployment, watched until they end, and their outcomes passed to the scheduler."""

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
from tasks.server import POLL, call_server

log = logging.getLogger("persres.fleet")
# Seconds that a run may be Pending before its worker counts as dead: more than the automation of flows/setup.py allows, which may be
# missing on this server.
STUCK = 660.0
WARN_AFTER, WARN_AGAIN = 60.0, 600.0  # seconds without a worker until the first warning, and between warnings
PAGE = 200  # runs per request


@dataclass(frozen=True)
class Deployment:
    """Sends shards (:data:`persres.fleet.scheduler.Send`) to the workers of a Prefect deployment."""

    name: str
    store: str

    def __call__(self, shards: list[Shard], tick: Callable[[], None]) -> dict[str, ShardOutcome]:
        """Send all shards, then watch them until each has ended."""
        runs = {self.submit(shard): shard.id for shard in shards}
        outcomes: dict[str, ShardOutcome] = {}
        watch = Watch()
        while True:
            for run in watch.poll([run for run, shard in runs.items() if shard not in outcomes]):
                if run.state is not None and run.state.is_final():
                    outcomes[runs[run.id]] = outcome_of(run)
            tick()
            if len(outcomes) == len(shards):
                return outcomes
            time.sleep(POLL)

    def submit(self, shard: Shard) -> UUID:
        """The run of a shard, named by it: a restarted scheduler takes up its runs, and two schedulers share them.

        If the run of that name has ended, it belongs to an earlier attempt, and the next name is used.
        """
        for number in range(1000):
            run = call_server(lambda key=f"{shard.id}-{number}": self._run(shard, key))
            if run.state is None or not run.state.is_final():
                return run.id
        raise PersresError(f"shard {shard.id} ended a thousand times; check its runs in Prefect")

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
    """Polls runs. Durations are measured by this process's clock: the server's is another machine's and may differ by minutes."""

    def __init__(self) -> None:
        self.pending: dict[UUID, float] = {}  # since when
        self.waiting: float | None = None  # since when no worker has taken a run
        self.warn_at = WARN_AFTER  # seconds after that

    def poll(self, runs: list[UUID]) -> list[FlowRun]:
        """The runs as the server has them; a run stuck in Pending is marked Crashed. Time without the server does not count.

        Raises PersresError if the server stays unavailable.
        """
        return call_server(lambda: self._poll(runs), on_retry=self._reset)

    def _poll(self, ids: list[UUID]) -> list[FlowRun]:
        with get_client(sync_client=True) as client:
            runs = []
            for start in range(0, len(ids), PAGE):
                page = FlowRunFilterId(any_=ids[start : start + PAGE])
                runs += client.read_flow_runs(flow_run_filter=FlowRunFilter(id=page), limit=PAGE)
            for run in runs:
                if self._is_stuck(run):
                    client.set_flow_run_state(run.id, Crashed(message="its worker died before it began"), force=True)
            self._warn(client, runs)
        return runs

    def _reset(self) -> None:
        self.pending.clear()
        self.waiting = None

    def _is_stuck(self, run: FlowRun) -> bool:
        if run.state is None or not run.state.is_pending():
            self.pending.pop(run.id, None)
            return False
        return time.monotonic() - self.pending.setdefault(run.id, time.monotonic()) > STUCK

    def _warn(self, client: SyncPrefectClient, runs: list[FlowRun]) -> None:
        """Warn if all runs wait and no worker polls their work pools."""
        open_runs = [run for run in runs if run.state is not None and not run.state.is_final()]
        if not open_runs or not all(run.state.is_scheduled() for run in open_runs):
            self.waiting, self.warn_at = None, WARN_AFTER
            return
        self.waiting = time.monotonic() if self.waiting is None else self.waiting
        if time.monotonic() - self.waiting < self.warn_at:
            return
        self.warn_at += WARN_AGAIN
        for name in sorted({run.work_pool_name for run in open_runs if run.work_pool_name}):
            reason = why_unserved(client, name)
            if reason:
                log.warning("fleet: %d runs wait: %s; waiting", len(open_runs), reason)


def why_unserved(client: SyncPrefectClient, name: str) -> str | None:
    """Why no worker takes a work pool's runs, with the command to fix it; None if a worker polls it."""
    pool = client.read_work_pool(name)
    if pool.status == WorkPoolStatus.PAUSED:
        return f"work pool {name} is paused; prefect work-pool resume {name} resumes it"
    if pool.status == WorkPoolStatus.READY:
        return None
    command = "python -m flows.worker" if pool.type == "process" else "prefect worker start"
    return f"no worker polls work pool {name}; {command} --pool {name} starts one"


def outcome_of(run: FlowRun) -> ShardOutcome:
    """The outcome of a run. A Completed run wrote a report, a Failed one too or its message says why not; others crashed."""
    log_link = f"{PREFECT_UI_URL.value()}/runs/flow-run/{run.id}" if PREFECT_UI_URL.value() else f"flow run {run.id}"
    if run.state.is_crashed() or run.state.is_cancelled():
        return ShardOutcome(f"{run.state.name}: {run.state.message or 'no message'}", log_link)
    return ShardOutcome(None, log_link, (run.state.message or "") if run.state.is_failed() else "")
