"""All stages one after another where a failed variant does not stop the others: its rows are missing, the rest stands.

What fails is left out of what follows and named once, at the end. DVC and Prefect run stage by stage and stop at the
first that fails; this is for a long run whose finished part should be seen (``make tables``, or by itself:
``python -m persres.chain``, which shares its finished units with both).
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from persres.cli import STAGES, run_stage
from persres.errors import PersresError, UnitFailures
from persres.params import Profile
from persres.stages.context import Context


def run_chain(context: Context) -> PersresError | None:
    """Run every stage; returns one error that names all that failed on the way, for the caller to raise when it has done
    with the rest. Raises PersresError where nothing can go on."""
    problems: list[str] = []
    for stage in STAGES:
        while True:
            try:
                run_stage(stage, context)
                break
            except UnitFailures as failure:
                context = replace(context, profile=without(context.profile, failure))
                problems.append(str(failure))
    if not problems:
        return None
    return PersresError("\n".join([*problems, f"the other rows stand in {context.data / 'tables'}"]))


def without(profile: Profile, failure: UnitFailures) -> Profile:
    """The profile less the variants and methods that have a failed unit, and less their rows in the tables.

    Raises the failure itself where no variant or method can be named for it, or none would be left.
    """
    told = profile.model_dump(mode="json")
    variants, methods = _failed(profile, failure)
    kept = [m for m in told["sample"]["methods"] if m not in methods]
    if not methods or not kept:
        raise failure
    told["train"]["variants"] = {v: x for v, x in told["train"]["variants"].items() if v not in variants}
    told["sample"]["methods"] = {m: told["sample"]["methods"][m] for m in kept}
    rows = {
        table: {m: row for m, row in chosen.items() if m in kept} for table, chosen in told["tables"]["rows"].items()
    }
    told["tables"]["rows"] = {table: chosen for table, chosen in rows.items() if chosen}
    return Profile.model_validate(told)


def _failed(profile: Profile, failure: UnitFailures) -> tuple[set[str], set[str]]:
    """Variants and methods that a failure takes with it."""
    named, train, sample = {name.split("/")[0] for name in failure.failures}, profile.train, profile.sample
    if failure.stage in ("sample", "score"):
        return set(), named & set(sample.methods)
    if failure.stage == "prior":  # class images: all that need some go
        named = {v for v in train.variants if getattr(train.variant(v), "prior_images", 0)}
    return named, {m for m in sample.methods if sample.method(m).residual in named}


def main(arguments: list[str] | None = None) -> int:
    """Command line. 0 on success, 1 with one clear error."""
    parser = argparse.ArgumentParser(prog="python -m persres.chain", description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--profile", help="a profile other than the one that params.yaml names")
    parser.add_argument("--work", type=Path, default=Path(".work"))
    parser.add_argument("--data", type=Path, default=Path(".work/chain/data"), help="where to publish; data is DVC's")
    given = parser.parse_args(arguments)
    try:
        failure = run_chain(Context.load(given.params, given.profile, given.data, given.work))
        if failure is not None:
            raise failure
    except PersresError as error:
        print(f"persres: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
