"""Registers the fleet at a Prefect server: ``python -m flows.setup`` (make fleet-setup).

It creates or updates the work pools, the deployments of prefect.yaml, and automations that mark dead runs Crashed. A second run
changes nothing.
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
from tasks.server import call_server
from tasks.views import clean

log = logging.getLogger("persres.fleet.setup")  # as a program this module has another name
ROOT = Path(__file__).resolve().parents[1]
POOLS = {"persres-gpu": "One worker per GPU.", "persres-scheduler": "Sends shards and gathers results; no GPU."}
HEARTBEAT = "prefect.flow-run.heartbeat"
STARTING = {f"prefect.flow-run.{state}" for state in ("Pending", "Submitting", "InfrastructurePending")}
ENDS = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "TimedOut", "Cancelled", "Crashed")}
# Three heartbeats of prefect.yaml's 30 s, one of which may be lost. A server that was down for longer marks running flows Crashed when it
# returns; they continue, and Prefect accepts their Completed.
SILENT_FOR = timedelta(seconds=90)
STARTS_WITHIN = timedelta(minutes=10)  # enough to pull an image and to import torch


def set_up() -> None:
    """Register everything. Raises PersresError if no server answers or it refuses something."""
    with connect() as client:
        for name, description in POOLS.items():
            ensure_pool(client, name, description)
        deploy()
        for automation in dead_runs():
            ensure_automation(client, automation)


def connect() -> SyncPrefectClient:
    """A client of the server at PREFECT_API_URL. Raises PersresError if it is not set: Prefect would start a temporary server."""
    url = PREFECT_API_URL.value()
    if not url:
        raise PersresError(
            "PREFECT_API_URL is not set; set it to the fleet's Prefect server, e.g. http://127.0.0.1:4200/api"
        )
    with get_client(sync_client=True) as client:
        error = client.api_healthcheck()
    if error is not None:
        raise PersresError(
            f"no Prefect server answers at PREFECT_API_URL={clean(url)} ({clean(error)}); start one with prefect server start"
        )
    return get_client(sync_client=True)


def ensure_pool(client: SyncPrefectClient, name: str, description: str) -> None:
    """Create a process pool, or update an existing one; a pool of another type is left unchanged."""
    try:
        pool = client.read_work_pool(name)
    except ObjectNotFound:
        template = _in_the_worker_folder(ProcessWorker.get_default_base_job_template())
        wanted = WorkPoolCreate(name=name, type=ProcessWorker.type, description=description, base_job_template=template)
        client.create_work_pool(wanted)
    else:
        _update(client, pool)
    log.info("work pool %s", name)


def _update(client: SyncPrefectClient, pool: WorkPool) -> None:
    if pool.type == ProcessWorker.type:
        template = pool.base_job_template or ProcessWorker.get_default_base_job_template()
        client.update_work_pool(pool.name, WorkPoolUpdate(base_job_template=_in_the_worker_folder(template)))


def _in_the_worker_folder(template: dict[str, Any]) -> dict[str, Any]:
    """A template whose runs start in their worker's folder, its clone; Prefect's default is an empty folder."""
    folder = template["variables"]["properties"]["working_dir"]
    folder["default"] = folder.get("default") or "."
    return template


def deploy() -> None:
    """Register the deployments of prefect.yaml. Raises PersresError with the end of Prefect's output."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PersresError(f"prefect deploy --all failed\n{clean((done.stdout + done.stderr)[-2000:])}")
    log.info("deployments of prefect.yaml")


def dead_runs() -> list[AutomationCore]:
    """The automations that end the runs of a machine that disappeared, which would stay Running or Pending for ever."""
    silent = f"No heartbeat for {SILENT_FOR.seconds} s: its worker or machine is gone. Run it again; finished units are not repeated."
    never = (
        f"Taken by a worker, but not started within {STARTS_WITHIN.seconds} s: it or its machine is gone. Run it again."
    )
    return [
        _crashed("persres: silent runs are Crashed", {HEARTBEAT}, {HEARTBEAT, *ENDS}, SILENT_FOR, silent),
        _crashed("persres: runs not begun are Crashed", STARTING, {"prefect.flow-run.*"}, STARTS_WITHIN, never),
    ]


def _crashed(name: str, after: set[str], expect: set[str], within: timedelta, message: str) -> AutomationCore:
    """An automation for runs with our tag: other teams' runs on a shared server may have longer heartbeats."""
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
    """Create or update an automation by name. Prefect allows several of one name, which would all fire: others are deleted."""
    first, *others = client.read_automations_by_name(automation.name) or [None]
    if first is None:
        client.create_automation(automation)
    else:
        client.update_automation(first.id, automation)
    for other in others:
        client.delete_automation(other.id)
    log.info("automation %s", automation.name)


def main() -> int:
    """The command line; returns 0 on success, 1 with an error message."""
    show_logs()
    try:
        call_server(set_up)
    except PersresError as error:
        print(f"flows.setup: {clean(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
