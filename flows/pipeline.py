"""The whole chain as one flow: ``python -m flows.pipeline``.

The Prefect server at PREFECT_API_URL shows it; without that variable Prefect starts a server for the run. It writes the same folders
as ``dvc repro``, which needs no Prefect.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")

from prefect import flow

from persres.stages.settings import write_settings
from persres.workflow import STAGES
from tasks.stages import run_stage_task


@flow(name="persres-pipeline", log_prints=True)
def pipeline(
    params: str = "params.yaml",
    profile: str | None = None,
    data: str = "data",
    work: str = ".work",
    stages: list[str] | None = None,
) -> str:
    """Run the stages in order; the first failure fails the flow."""
    if stages is None:
        write_settings(Path(params), profile, Path(data))
    for stage in stages or STAGES:
        run_stage_task(stage, params, profile, data, work)
    return data


def main() -> int:
    """The command line; returns 0 on success, 1 if a stage failed."""
    parser = argparse.ArgumentParser(prog="python -m flows.pipeline", description=__doc__)
    parser.add_argument("--params", default="params.yaml")
    parser.add_argument("--profile")
    parser.add_argument("--data", default="data")
    parser.add_argument("--work", default=".work")
    parser.add_argument("--stages", nargs="*", choices=STAGES)
    state = pipeline(**vars(parser.parse_args()), return_state=True)
    return 0 if state.is_completed() else 1


if __name__ == "__main__":
    sys.exit(main())
