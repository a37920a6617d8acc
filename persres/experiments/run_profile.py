"""A profile's pipeline run below the work folder; finished units are reused."""

from __future__ import annotations

from pathlib import Path

from persres.stages import STAGES
from persres.units.context import Context
from persres.workflow import load_context, run_stage


def run_profile(
    profile: str, params: Path, work: Path, device: str | None = None, stages: tuple[str, ...] = STAGES
) -> Context:
    """Run stages of a profile, published in ``<work>/<profile>/data``; return its context. ``device`` None: the profile's device."""
    context = load_context(params, profile, work / profile / "data", work)
    if device is not None:
        runtime = context.profile.runtime.model_copy(update={"device": device})
        context = Context(context.profile.model_copy(update={"runtime": runtime}), context.data, context.work)
    for stage in stages:
        run_stage(stage, context)
    return context
