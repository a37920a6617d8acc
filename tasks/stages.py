"""One task per stage. A task is given paths and a profile name, never tensors; DVC and the units own caching."""

from __future__ import annotations

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from persres.workflow import load_context, run_stage


@task(task_run_name="{stage}", cache_policy=NO_CACHE, log_prints=True)
def run_stage_task(stage: str, params: str, profile: str | None, data: str, work: str) -> str:
    """Run one stage and return the folder it published into. Its errors fail the task."""
    run_stage(stage, load_context(Path(params), profile, Path(data), Path(work)))
    return data
