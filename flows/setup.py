"""What the fleet needs at a Prefect server, made or renewed: ``python -m flows.setup`` (make fleet-setup).

Work pools, the deployments of prefect.yaml, and automations that mark dead runs Crashed. A second run changes nothing.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")

from prefect.automations import AutomationCore, ChangeFlowRunState, EventTrigger, Posture
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import StateType, WorkPool
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL
from prefect.workers.process import ProcessWorker

from persres.errors import PersresError
from persres.logging import show_logs

log = logging.getLogger("persres.fleet.setup")  # as a program this module has another name
ROOT = Path(__file__).resolve().parents[1]
POOLS = {"persres-gpu": "One worker per GPU.", "persres-parent": "Sends shards and gathers; no GPU."}
HEARTBEAT = "prefect.flow-run.heartbeat"
STARTING = {f"prefect.flow-run.{state}" for state in ("Pending", "Submitting", "InfrastructurePending")}
ENDS = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "TimedOut", "Cancelled", "Crashed")}
# Three heartbeats of prefect.yaml's 30 s: one may be lost. A server that was away for longer marks living runs Crashed as it comes back;
# they go on, and Prefect takes their Completed after that.
SILENT_FOR = timedelta(seconds=90)
STARTS_WITHIN = timedelta(minutes=10)  # an image's pull and torch's import among it


def set_up() -> None:
    """All of it, in the order of need. Raises PersresError where there is no server or it takes a part amiss."""
    with connect() as client:
        for name, description in POOLS.items():
            ensure_pool(client, name, description)
        deploy()
        for automation in dead_runs():
            ensure_automation(client, automation)


def connect() -> SyncPrefectClient:
    """The client of the server at PREFECT_API_URL: without one Prefect would start a server that ends with us."""
    url = PREFECT_API_URL.value()
    if not url:
        raise PersresError(
            "PREFECT_API_URL is not set; it is the fleet's Prefect server, e.g. http://127.0.0.1:4200/api"
        )
    with get_client(sync_client=True) as client:
        error = client.api_healthcheck()
    if error is not None:
        raise PersresError(
            f"no Prefect server answers at PREFECT_API_URL={url} ({error}); prefect server start makes one"
        )
    return get_client(sync_client=True)


def ensure_pool(client: SyncPrefectClient, name: str, description: str) -> None:
    """A process pool, unless the platform's own stands there, of whatever type. Ours may have come from `prefect worker start`."""
    try:
        pool = client.read_work_pool(name)
    except ObjectNotFound:
        template = _in_the_workers_folder(ProcessWorker.get_default_base_job_template())
        wanted = WorkPoolCreate(name=name, type=ProcessWorker.type, description=description, base_job_template=template)
        client.create_work_pool(wanted)
    else:
        _renew(client, pool)
    log.info("work pool %s", name)


def _renew(client: SyncPrefectClient, pool: WorkPool) -> None:
    if pool.type == ProcessWorker.type:
        template = pool.base_job_template or ProcessWorker.get_default_base_job_template()
        client.update_work_pool(pool.name, WorkPoolUpdate(base_job_template=_in_the_workers_folder(template)))


def _in_the_workers_folder(template: dict[str, Any]) -> dict[str, Any]:
    """Runs start where their worker was started, so each runs its own clone; by itself Prefect starts them in an empty folder."""
    folder = template["variables"]["properties"]["working_dir"]
    folder["default"] = folder.get("default") or "."
    return template


def deploy() -> None:
    """The deployments of prefect.yaml, by Prefect's own command. Raises PersresError with its last words."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PersresError(f"prefect deploy --all failed\n{(done.stdout + done.stderr)[-2000:]}")
    log.info("deployments of prefect.yaml")


def dead_runs() -> list[AutomationCore]:
    """Nobody else tells of a machine that went away: its runs would be Running, or Pending, for ever."""
    silent = (
        f"No heartbeat for {SILENT_FOR.seconds} s: its agent or machine is gone. Run it again; finished units are kept."
    )
    never = f"Taken by an agent, not begun within {STARTS_WITHIN.seconds} s: the agent or its machine is gone. Run it again."
    return [
        _crashed("persres: silent runs are Crashed", {HEARTBEAT}, {HEARTBEAT, *ENDS}, SILENT_FOR, silent),
        _crashed("persres: runs not begun are Crashed", STARTING, {"prefect.flow-run.*"}, STARTS_WITHIN, never),
    ]


def _crashed(name: str, after: set[str], expect: set[str], within: timedelta, message: str) -> AutomationCore:
    """By tag, for on a shared server other teams' runs beat every 180 s, Prefect's own choice, and would all be Crashed."""
    trigger = EventTrigger(
        match={"prefect.resource.id": "prefect.flow-run.*"},
        match_related={"prefect.resource.role": "tag", "prefect.resource.id": "prefect.tag.persres"},
        after=after,
        expect=expect,
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=within,
    )
    return AutomationCore(
        name=name, trigger=trigger, actions=[ChangeFlowRunState(state=StateType.CRASHED, message=message)]
    )


def ensure_automation(client: SyncPrefectClient, automation: AutomationCore) -> None:
    """By name, which Prefect does not keep unique: two would both fire."""
    first, *others = client.read_automations_by_name(automation.name) or [None]
    if first is None:
        client.create_automation(automation)
    else:
        client.update_automation(first.id, automation)
    for other in others:
        client.delete_automation(other.id)
    log.info("automation %s", automation.name)


def main() -> int:
    """Command line. 0 on success, 1 with one clear error."""
    show_logs()
    try:
        set_up()
    except PersresError as error:
        print(f"flows.setup: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
