"""The command line: ``persres run STAGE`` (what DVC calls) and what people ask for. ``persres --help`` names everything.

Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer.exceptions import TyperException

from persres.cli import dev, examples, residual, versions
from persres.cli.options import (
    DATA,
    WORK,
    Data,
    Dtype,
    Json,
    Out,
    Params,
    Profile,
    Work,
    params_file,
)
from persres.errors import PersresError
from persres.logging import show_logs
from persres.stages import POOLED, STAGES

app = typer.Typer(
    help="Personalized residuals and localized attention-guided sampling for Stable Diffusion.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Stage = Literal[STAGES]
STOPPED = 130  # as shells say it


@app.command()
def run(stage: Stage, params: Params = None, profile: Profile = None, data: Data = DATA, work: Work = WORK) -> None:
    """Run one stage, as DVC calls it; finished units are not done again."""
    from persres.config.load import read_setting
    from persres.units.pool import warm_up

    if stage in POOLED and read_setting(params_file(params), profile, "runtime", "workers") != 1:
        warm_up(f"persres.stages.{stage}")  # beside this process, which has seconds of the same imports before it now
    from persres.workflow import load_context, run_stage

    run_stage(stage, load_context(params_file(params), profile, data, work))


@app.command()
def chain(params: Params = None, profile: Profile = None, data: Data = DATA, work: Work = WORK) -> None:
    """Run all stages; a variant that fails leaves the others' rows standing, and the command fails at the end, naming it."""
    from persres.config.load import read_setting
    from persres.units.pool import warm_up

    if read_setting(params_file(params), profile, "runtime", "workers") != 1:
        warm_up("persres.stages.train")  # imports diffusers while this process fetches and looks for classes
    from persres.workflow import load_context, run_chain

    failure = run_chain(load_context(params_file(params), profile, data, work))
    if failure is not None:
        raise failure


@app.command()
def show(data: Data = DATA) -> None:
    """Print the tables of the last run."""
    from persres.report.terminal import show_tables

    show_tables(data)


@app.command()
def compare(method: str, against: str, data: Data = DATA) -> None:
    """The paired test of any two methods: same prompts, same noise."""
    from persres.report.terminal import show_difference

    show_difference(data, method, against)


@app.command()
def use(profile: str, params: Annotated[Path, typer.Option(help="the file to change")] = Path("params.yaml")) -> None:
    """Make a profile the one that DVC and every command take: one line of params.yaml."""
    from persres.methods.common.registry import load_profile

    load_profile(params, profile)
    changed = re.sub(r"^profile:.*$", f"profile: {profile}", params.read_text(), count=1, flags=re.MULTILINE)
    params.write_text(changed)
    print(f"{params}: profile: {profile}")


@app.command()
def plan(params: Params = None, profile: Profile = None, data: Data = DATA) -> None:
    """Print units, pictures, GPU-hours and disk of a run before it starts."""
    from persres.estimate import estimate_text

    print(estimate_text(params_file(params), profile, data))


@app.command()
def personalize(
    photos: Annotated[Path, typer.Argument(help="a folder with 3 to 15 photos of one thing")],
    macro_class: Annotated[
        str | None, typer.Option("--class", help="what the thing is, e.g. dog; if left out, it is found by itself")
    ] = None,
    name: Annotated[str | None, typer.Option(help="the concept's name; if left out, the folder's")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="with {} where the thing goes; may be given again")] = None,
    profile: Annotated[
        str, typer.Option(help="whose models and training; mini needs no GPU and no download")
    ] = "paper",
    params: Params = None,
    out: Annotated[Path | None, typer.Option(help="where to leave it; if left out, personal/<name>")] = None,
) -> None:
    """A folder of photos of one thing becomes a residual and a sheet of pictures."""
    from persres.personalization import personalize as learn_and_draw

    out = learn_and_draw(
        photos, macro_class=macro_class, name=name, prompts=tuple(prompt or ()), out=out, params=params, profile=profile
    )
    print(out)


@app.command()
def doctor(as_json: Json = False) -> int:
    """What a run here would need: GPU, versions, disk, git, S3 keys, remote, server, each with its mend. Fails where one fails."""
    from persres import doctor as examination

    findings = examination.examine()
    print(examination.as_json(findings) if as_json else examination.as_text(findings))
    return int(any(finding.state == "fails" for finding in findings))


@app.command()
def bench(
    model: Annotated[
        str, typer.Argument(help="mini (the mini world), sd14 or sd21 with random weights; nouns, chain")
    ] = "mini",
    device: str = "auto",
    dtype: Dtype = "float32",
    resolution: Annotated[int | None, typer.Option(help="pixels; if left out, the family's own")] = None,
    rounds: Annotated[int, typer.Option(help="how often each way runs, in turn with the others")] = 7,
    train_steps: Annotated[int, typer.Option(help="training steps of a run")] = 4,
    steps: Annotated[int, typer.Option(help="sampling steps of a run")] = 10,
    batches: Annotated[str, typer.Option(help="batch sizes to draw at")] = "1,10,32",
    together: Annotated[str, typer.Option(help="numbers of concepts to train in one pass")] = "4,5,8",
    mixed: Annotated[int, typer.Option(help="concepts of which a picture each is drawn in one batch")] = 10,
    out: Out = DATA / "bench",
) -> None:
    """Training and sampling beside diffusers and peft, in alternating runs, with the floor under each; WordNet's nouns short beside
    padded; what the chain costs beside its work."""
    from persres.experiments.benchmarks.other_suites import OTHERS, run_other
    from persres.experiments.benchmarks.suite import SuiteSettings, run_suite

    if model in OTHERS:
        print(run_other(model, out, params_file(None), WORK / "bench" / model, rounds))
        return
    sizes, concepts = (tuple(int(n) for n in text.split(",")) for text in (batches, together))
    print(
        run_suite(
            model, device, dtype, resolution, SuiteSettings(train_steps, steps, rounds, sizes, concepts, mixed), out
        )
    )


@app.command()
def rates(
    family: Annotated[str, typer.Option(help="sd14, sd21 or sdxl")] = "sd14",
    device: str = "auto",
    dtype: Dtype = "float32",
    resolution: Annotated[int | None, typer.Option(help="pixels; if left out, the family's own")] = None,
    train_steps: int = 5,
    train_batch: int = 4,
    steps: Annotated[int, typer.Option(help="sampling steps")] = 50,
    batches: Annotated[str, typer.Option(help="batch sizes to draw at")] = "1,4,16",
    out: Out = DATA / "bench",
) -> None:
    """Seconds and memory of a full-size model with random weights on this machine, which plan then reads: no hub is needed."""
    from persres.experiments.benchmarks.full_size import run_full_size

    sizes = tuple(int(size) for size in batches.split(","))
    print(run_full_size(family, device, dtype, resolution, train_steps, train_batch, steps, sizes, out))


@app.command()
def miniworld(
    work: Work = WORK / "miniworld",
    out: Annotated[Path | None, typer.Option(help="where the weights go; if left out, into the package")] = None,
    part: Annotated[list[str] | None, typer.Option(help="train this part alone; may be given again")] = None,
    threads: Annotated[int | None, typer.Option(help="of torch")] = None,
    prompts: Annotated[int, typer.Option(help="held-out prompts to measure the base model on")] = 240,
) -> None:
    """Train the mini world's own models from nothing (hours on a CPU)."""
    import json

    import torch

    from persres.experiments.miniworld_training.train_all import OUT, build_everything

    if threads is not None:
        torch.set_num_threads(threads)
    measured = build_everything(work, out or OUT, tuple(part or ()), prompts)
    if measured is not None:
        print(json.dumps(measured, indent=1))


@app.command()
def deps(write: Annotated[bool, typer.Option("--write", help="write them into dvc.yaml")] = False) -> None:
    """The code that each DVC stage watches, from the imports."""
    from persres.experiments.dvc_dependencies import stage_code, write_dependencies

    if write:
        print("dvc.yaml: written" if write_dependencies(Path("dvc.yaml")) else "dvc.yaml: nothing has changed")
        return
    for stage in STAGES:
        print(f"{stage}: {' '.join(stage_code(stage))}")


residual.add_to(app)
versions.add_to(app)
dev.add_to(app)
examples.add_to(app)


def main(arguments: list[str] | None = None) -> int:
    """Entry point. 0 on success, 1 with one clear error, 2 where the call is wrong, 130 after Ctrl-C."""
    show_logs()
    try:
        code = app(args=arguments, prog_name="persres", standalone_mode=False) or 0
        if code == STOPPED:  # typer's word for Ctrl-C
            raise KeyboardInterrupt
        return code
    except TyperException as error:
        print(f"persres: {error.format_message()} (persres --help names the commands)", file=sys.stderr)
        return error.exit_code
    except PersresError as error:
        print(f"persres: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        mend = "free some space, or make the folder writable"
        print(f"persres: {error.strerror or error}: {error.filename}; {mend}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, typer.Abort):
        print("persres: stopped; finished units are kept, run again to go on", file=sys.stderr)
        return STOPPED


if __name__ == "__main__":
    sys.exit(main())
