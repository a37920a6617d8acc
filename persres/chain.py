"""All stages one after another where a failed variant does not stop the others: its rows are missing, the rest stands.

What fails is left out of what follows and named once, at the end. DVC and Prefect run stage by stage and stop at the
first that fails; this is for a long run whose finished part should be seen.
"""

from __future__ import annotations

from dataclasses import replace

from persres.cli import STAGES, run_stage
from persres.errors import PersresError, UnitFailures
from persres.params import Profile
from persres.stages.context import Context


def run_chain(context: Context) -> None:
    """Run every stage. Raises PersresError naming all that failed, after everything else is published."""
    problems: list[str] = []
    for stage in STAGES:
        while True:
            try:
                run_stage(stage, context)
                break
            except UnitFailures as failure:
                problems.append(str(failure))
                context = replace(context, profile=without(context.profile, failure))
    if problems:
        raise PersresError("\n".join([*problems, f"the other rows stand in {context.data / 'tables'}"]))


def without(profile: Profile, failure: UnitFailures) -> Profile:
    """The profile less the variants and methods that have a failed unit, and less their rows in the tables.

    Raises the failure itself where no variant or method can be named for it, or none would be left.
    """
    told = profile.model_dump(mode="json")
    variants, methods = told["train"]["variants"], told["sample"]["methods"]
    failed = {name.split("/")[0] for name in failure.failures}
    if failure.stage == "prior":  # class images: what needs them goes
        failed = {v for v in variants if getattr(profile.train.variant(v), "prior_images", 0)}
    failed &= set(methods if failure.stage in ("sample", "score") else variants)
    kept = {
        name: sparse
        for name, sparse in methods.items()
        if name not in failed
        and (failure.stage in ("sample", "score") or profile.sample.method(name).residual not in failed)
    }
    if not failed or not kept:
        raise failure
    told["sample"]["methods"] = kept
    told["train"]["variants"] = {
        v: sparse for v, sparse in variants.items() if failure.stage in ("sample", "score") or v not in failed
    }
    rows = {
        table: {m: row for m, row in chosen.items() if m in kept} for table, chosen in told["tables"]["rows"].items()
    }
    told["tables"]["rows"] = {table: chosen for table, chosen in rows.items() if chosen}
    return Profile.model_validate(told)
