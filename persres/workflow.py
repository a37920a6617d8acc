"""The stages in order, for DVC, Prefect, the command line and the evidence alike.

:func:`run_chain` runs them so that a failed variant does not stop the others: its rows are missing, the rest stands. What fails
is left out of what follows and named once, at the end. So does the fleet. DVC, and the flow without agents (flows/pipeline.py), run
stage by stage and stop at the first that fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from persres.errors import PersresError, UnitFailures
from persres.estimate import make_estimate, read_measured_seconds
from persres.methods.common.registry import load_profile, make_profile
from persres.stages import STAGES
from persres.units.context import Context
from persres.units.disk import check_disk

PUBLISHED = {
    "train": "learned",
    "sample": "samples",
}  # folders of data/ of the stages whose size the plan knows


def load_context(
    params: str | Path = "params.yaml",
    profile: str | None = None,
    data: str | Path = "data",
    work: str | Path = ".work",
) -> Context:
    """From a params file. Raises PersresError with all of its problems."""
    return Context(load_profile(Path(params), profile), Path(data), Path(work))


def run_stage(name: str, context: Context) -> None:
    """Run one stage by name. Raises PersresError, or its UnitFailures naming the failed units."""
    if name not in STAGES:
        raise PersresError(f"unknown stage {name!r}; one of {', '.join(STAGES)}")
    needs = _bytes(name, context) if name in PUBLISHED else None
    check_disk(name, context.work, context.data, needs, PUBLISHED.get(name, name))
    getattr(import_module(f"persres.stages.{name}"), name)(context)


def _bytes(stage: str, context: Context) -> int | None:
    """What the plan says that a stage takes; None where it can't say, or where the dataset can't be counted yet."""
    try:
        lines = make_estimate(
            context.profile, read_measured_seconds(context.data / "bench" / "gpu.json", context.profile.base.dtype)
        )
    except PersresError:
        return None
    return next(line.bytes for line in lines if line.stage == stage)


def run_chain(context: Context, stages: Sequence[str] = STAGES) -> PersresError | None:
    """Run every stage, or some; returns one error that names all that failed on the way, for the caller to raise when it has done
    with the rest. Raises PersresError where nothing can go on, which names what had failed before as well."""
    problems: list[str] = []
    for stage in stages:
        try:
            context = _run_with_less(stage, context, problems)
        except PersresError as error:
            if problems:
                raise PersresError("\n".join([*problems, str(error)])) from error
            raise
    if not problems:
        return None
    rows = [f"the other rows stand in {context.data / 'tables'}"] if "tables" in stages else []
    return PersresError("\n".join([*problems, *rows]))


def _run_with_less(stage: str, context: Context, problems: list[str]) -> Context:
    """Run a stage with less and less until what is left of it is done; the context that it was done with."""
    while True:
        try:
            run_stage(stage, context)
            return context
        except UnitFailures as failure:
            context = replace(context, profile=without(context.profile, failure))
            problems.append(str(failure))


def without(profile, failure: UnitFailures):
    """The profile less the variants and methods that have a failed unit, and less their rows in the tables.

    Raises the failure itself where no variant or method can be named for it, or none would be left.
    """
    settings = profile.model_dump()
    variants, methods = _failed(profile, failure)
    kept = [m for m in settings["sample"]["configs"] if m not in methods]
    if not methods or not kept:
        raise failure
    settings["train"]["variants"] = {v: x for v, x in settings["train"]["variants"].items() if v not in variants}
    settings["sample"]["configs"] = {m: settings["sample"]["configs"][m] for m in kept}
    rows = {
        table: {m: row for m, row in chosen.items() if m in kept}
        for table, chosen in settings["tables"]["rows"].items()
    }
    settings["tables"]["rows"] = {table: chosen for table, chosen in rows.items() if chosen}
    return make_profile(settings)


def _failed(profile, failure: UnitFailures) -> tuple[set[str], set[str]]:
    """Variants and methods that a failure takes with it."""
    named, train, sample = {name.split("/")[0] for name in failure.failures}, profile.train, profile.sample
    if failure.stage in ("sample", "score"):
        return set(), named & set(sample.configs)
    if failure.stage == "class_images":  # all that need some go
        named = {name for name, settings in train.variants.items() if settings.class_images() is not None}
    return named, {m for m in sample.configs if sample.config(m).variant in named}
