"""The flow that personalizes one concept on demand, on a GPU worker: photos from a store, the residual back into it."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")

from prefect import flow

from persres.fleet.on_demand import Request, personalize_from_store
from tasks.views import logs_in_the_run


@flow(name="persres-personalize")
def personalize(
    photos: str,
    to: str,
    name: str,
    macro_class: str | None = None,
    prompts: list[str] | None = None,
    profile: str = "paper",
    work: str = ".work/worker",
) -> list[str]:
    """``photos`` and ``to`` are folders or s3://bucket/prefix; returns the keys below ``to``."""
    request = Request(photos, to, name, macro_class, tuple(prompts or ()), profile)
    with logs_in_the_run():
        return personalize_from_store(request, Path(work))
