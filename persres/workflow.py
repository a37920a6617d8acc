"""Runs the stages in order, for DVC, Prefect, the command line and the experiments.

:func:`run_chain` leaves a failed variant or config out of the stages that follow and reports it at the end; so does the fleet. DVC
and the flow without workers (flows/pipeline.py) stop at the first stage that fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from persres.errors import PersresError, UnitFailures
from persres.methods.common.registry import load_profile, make_profile
from persres.planning.estimate import make_estimate, read_measured_seconds
from persres.stages import STAGES
from persres.stages.checks import check_folders, check_profile
from persres.units.context import Context
from persres.units.disk import check_disk

PUBLISHED = {"train": "learned", "sample": "samples"}  # folders of data/ of the stages whose size the estimate knows


def load_context(
    params: str | Path = "params.yaml",
    profile: str | None = None,
    data: str | Path = "data",
    work: str | Path = ".work",
) -> Context:
    """The context of a profile in a params file. Raises PersresError with all of its problems."""
    return Context(load_profile(Path(params), profile), Path(data), Path(work))


def check_space(context: Context) -> None:
    """Raises PersresError, before the first stage, if the disk has too little space for a later one."""
    for name, folder in PUBLISHED.items():
        check_disk(name, context.work, _estimated_bytes(name, context), context.data / folder)


def run_stage(name: str, context: Context) -> None:
    """Run one stage by name. Raises PersresError, or UnitFailures naming the failed units."""
    if name not in STAGES:
        raise PersresError(f"unknown stage {name!r}; one of {', '.join(STAGES)}")
    if name in PUBLISHED:
        check_disk(name, context.work, _estimated_bytes(name, context), context.data / PUBLISHED[name])
    else:
        check_disk(name, context.work)
    getattr(import_module(f"persres.stages.{name}"), name)(context)


def _estimated_bytes(stage: str, context: Context) -> int | None:
    """The disk space that a stage needs; None if it is not known, or if the dataset cannot be counted yet."""
    try:
        lines = make_estimate(context.profile, read_measured_seconds(context.data / "bench" / "gpu.json"))
    except PersresError:
        return None
    return next(line.bytes for line in lines if line.stage == stage)


def run_chain(context: Context, stages: Sequence[str] = STAGES) -> PersresError | None:
    """Run the stages; returns one error that names everything that failed, for the caller to raise at the end, or None.

    Raises PersresError if no variant or config is left; it names the earlier failures too.
    """
    problems: list[str] = []
    if "train" in stages:
        check_profile(context.profile)
        check_space(context)
    if "score" in stages:
        check_folders(context.profile)
    for stage in stages:
        try:
            context = _run_with_less(stage, context, problems)
        except PersresError as error:
            if problems:
                raise PersresError("\n".join([*problems, str(error)])) from error
            raise
    if not problems:
        return None
    rows = [f"the other rows are in {context.data / 'tables'}"] if "tables" in stages else []
    return PersresError("\n".join([*problems, *rows]))


def _run_with_less(stage: str, context: Context, problems: list[str]) -> Context:
    """Run a stage without what fails, until the rest is done; returns the context that it was done with."""
    while True:
        try:
            run_stage(stage, context)
            return context
        except UnitFailures as failure:
            context = replace(context, profile=without(context.profile, failure))
            problems.append(str(failure))


def without(profile, failure: UnitFailures):
    """The profile without the variants and configs of failed units, and without their rows in the tables.

    Raises the failure itself if it names no variant or config, or if none would be left.
    """
    settings = profile.model_dump()
    train, sample, tables = settings["train"], settings["sample"], settings["tables"]
    variants, configs = _failed(profile, failure)
    left = [config for config in sample["configs"] if config not in configs]
    if not configs or not left:
        raise failure
    train["variants"] = {name: values for name, values in train["variants"].items() if name not in variants}
    sample["configs"] = {config: sample["configs"][config] for config in left}
    rows = {
        table: {config: row for config, row in chosen.items() if config in left}
        for table, chosen in tables["rows"].items()
    }
    tables["rows"] = {table: chosen for table, chosen in rows.items() if chosen}
    return make_profile(settings)


def _failed(profile, failure: UnitFailures) -> tuple[set[str], set[str]]:
    """The variants and configs that depend on the failed units."""
    names, train, sample = {name.split("/")[0] for name in failure.failures}, profile.train, profile.sample
    if failure.stage in ("sample", "score"):
        return set(), names & set(sample.configs)
    if failure.stage == "class_images":  # of all variants that use some
        names = {name for name, settings in train.variants.items() if settings.class_images() is not None}
    return names, {config for config in sample.configs if sample.config(config).variant in names}
