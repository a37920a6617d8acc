"""Commands of a run: run, repro, show, compare; and before one: profile, settings, estimate, preflight, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from persres.cli.command import Command
from persres.cli.options import DATA, WORK, Data, Json, Params, Profile, Work, params_file, path, words
from persres.errors import PersresError
from persres.stages import POOLED, STAGES

Stage = Literal[STAGES]


def _checked(params: Path | None, profile: str | None) -> Path:
    """The settings file. Raises PersresError, before anything heavy is imported, where it lacks the profile."""
    from persres.config.load import read_profile

    file = params_file(params)
    read_profile(file, profile)
    return file


def run(
    stage: Annotated[Stage | None, typer.Argument(help="one stage; default: the whole pipeline")] = None,
    params: Params = None,
    profile: Profile = None,
    data: Data = DATA,
    work: Work = WORK,
) -> None:
    """Run the whole pipeline, or one stage as DVC does. Finished units are not run again. If a variant fails, the others
    go on, and the command fails at the end."""
    file = _checked(params, profile)
    from persres.config.load import read_setting
    from persres.units.pool import warm_up

    pooled = stage or "train"
    if pooled in POOLED and read_setting(file, profile, "runtime", "workers") != 1:
        warm_up(f"persres.stages.{pooled}")  # a worker imports diffusers while this process does the same
    from persres.workflow import load_context, run_chain, run_stage

    context = load_context(file, profile, data, work)
    if stage is not None:
        run_stage(stage, context)
        return
    from persres.stages.settings import write_settings

    write_settings(file, profile, data)
    if (failure := run_chain(context)) is not None:
        raise failure


def show(data: Data = DATA) -> None:
    """Print the tables of the last run."""
    from persres.report.terminal import show_tables

    show_tables(data)


def compare(config: str, against: str, data: Data = DATA) -> None:
    """Print the paired test of two configs of a run: same prompts, same noise."""
    from persres.report.terminal import show_difference

    show_difference(data, config, against)


def select_profile(
    profile: str, params: Annotated[Path, typer.Option(parser=path, help="the file to change")] = Path("params.yaml")
) -> None:
    """Select the profile that DVC and every command use: changes one line of params.yaml."""
    _checked(params, profile)
    from persres.reproduction.repro import select

    select(params, profile)
    print(f"{params}: profile: {profile}")


def repro(
    profile: Profile = None,
    yes: Annotated[bool, typer.Option("--yes", help="start a run of hours, or of more than 100 GB")] = False,
) -> None:
    """Check GPU, disk, dataset and models, then select the profile and run dvc repro. A failure leaves params.yaml and data/ as they were."""
    if not Path("dvc.yaml").exists():
        raise PersresError(f"no dvc.yaml in {Path().absolute()}; run in a clone of the repository, or use persres run")
    file = _checked(Path("params.yaml"), profile)
    from persres.reproduction.readiness import check_ready, planned_run
    from persres.reproduction.repro import reproduce

    planned, text = planned_run(file, profile, DATA, WORK)
    print(f"{text}\n", flush=True)
    print(check_ready(planned, yes), flush=True)
    reproduce(planned.name)
    show(DATA)


def settings(
    params: Params = None,
    profile: Profile = None,
    out: Annotated[Path | None, typer.Option(parser=path, help="write them into this file")] = None,
) -> None:
    """Print the settings of a profile with what it inherits (extends), without the paper's defaults. DVC watches them."""
    from persres.stages.settings import settings_text
    from persres.units.files import write_atomic

    text = settings_text(params_file(params), profile)
    if out is None:
        print(text, end="")
    else:
        write_atomic(out, text.encode())


def estimate(params: Params = None, profile: Profile = None, data: Data = DATA, work: Work = WORK) -> None:
    """Print units, images, GPU hours and disk of a run before it starts, by the seconds of earlier runs where there are some."""
    file = _checked(params, profile)
    from persres.planning.estimate import estimate_text

    print(estimate_text(file, profile, data, work))


def preflight(
    params: Params = None,
    profile: Profile = None,
    concept: Annotated[
        str | None, typer.Option(callback=words, help="of the profile's dataset; the paper's: a DreamBooth subject")
    ] = None,
    out: Annotated[Path, typer.Option(parser=path, help="report to attach to an issue")] = DATA / "preflight.json",
    work: Work = WORK,
) -> int:
    """Train and sample one concept on a profile's real models and compare with known answers. Exit code 1 if a check fails."""
    file = _checked(params, profile)
    if out.is_dir():
        raise PersresError(f"--out {out} is a folder; give a file, e.g. {out / 'preflight.json'}")
    out.parent.mkdir(parents=True, exist_ok=True)
    from persres.config.load import read_profile
    from persres.methods.common.registry import load_profile

    settings = load_profile(file, profile)
    from persres.reproduction.preflight import preflight as run_checks  # imports torch and diffusers
    from persres.reproduction.preflight import write_report

    report = run_checks(read_profile(file, profile)[1], settings, concept, work)
    write_report(report, out)
    print(f"{report.text()}\n\n{out}")
    return int(bool(report.failed))


def doctor(as_json: Json = False) -> int:
    """Check this machine: GPU, versions, disk, git, S3 keys, remote, server, each with its fix. Exit code 1 if a check fails."""
    from persres import doctor as checks

    findings = checks.examine()
    print(checks.as_json(findings) if as_json else checks.as_text(findings))
    return int(any(finding.state == "fails" for finding in findings))


COMMANDS = {
    "run": Command(
        run,
        (
            "persres run   (the whole pipeline)",
            "persres run train --profile mini   (one stage)",
        ),
    ),
    "show": Command(show),
    "compare": Command(compare, ("persres compare ours_lag ours",)),
    "profile": Command(select_profile, ("persres profile paper",)),
    "repro": Command(repro, ("persres repro --profile paper --yes   (make repro PROFILE=paper YES=1)",)),
    "settings": Command(settings, ("persres settings --profile evidence   (with what it takes from mini)",)),
    "estimate": Command(
        estimate,
        (
            "persres estimate --profile paper   (units, hours and disk of the whole paper)",
            "persres profile mini; persres estimate   (of the profile that make repro uses)",
        ),
    ),
    "preflight": Command(
        preflight,
        (
            "persres preflight --profile paper   (the first minutes on real weights, before a run of days)",
            "persres preflight --profile mini",
        ),
    ),
    "doctor": Command(
        doctor,
        (
            "persres doctor   (exit code 1 if a check fails)",
            "persres doctor --json | jq '.[] | select(.state != \"ok\")'",
        ),
    ),
}
