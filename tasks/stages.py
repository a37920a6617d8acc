"""One task per stage. Its arguments are paths and a profile name; DVC and the units do the caching."""

from __future__ import annotations

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from persres.workflow import load_context, run_stage


@task(task_run_name="{stage}", cache_policy=NO_CACHE, log_prints=True)
def run_stage_task(stage: str, params: str, profile: str | None, data: str, work: str) -> str:
    """Run one stage; returns the folder that it published into. Its errors fail the task."""
    run_stage(stage, load_context(Path(params), profile, Path(data), Path(work)))
    return data
