"""``persres dev``: commands of the experiments and of development."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from persres.cli.command import Command, add_commands
from persres.cli.options import DATA, WORK, Device, Dtype, Out, Params, Work, params_file

Resolution = Annotated[int | None, typer.Option(help="pixels; default: the model family's")]
app = typer.Typer(help="Experiments and development; needs a checkout.", no_args_is_help=True)


def evidence(
    params: Params = None,
    work: Work = WORK,
    out: Out = DATA,
    prompts: Annotated[int, typer.Option(help="held-out prompts to score the base model on")] = 240,
    scenes: Annotated[int, typer.Option(help="nameable scenes for localisation")] = 300,
    views: Annotated[int, typer.Option(help="scenes per concept for localisation")] = 27,
) -> None:
    """Measure every claim on the mini world: effects with controls, localisation, negative controls."""
    from persres.experiments.evidence.commands import Amount, run_evidence

    print(run_evidence(params_file(params), work, out, Amount(prompts, scenes, views)))


def tables(params: Params = None, work: Work = WORK, out: Out = DATA) -> None:
    """Measure the paper's tables 1, 3, 4 and 5 with every rival and ablation."""
    from persres.experiments.evidence.commands import run_tables

    run_tables(params_file(params), work, out)


def sweep(params: Params = None, work: Work = WORK, out: Out = DATA) -> None:
    """Measure the settings that the paper leaves open."""
    from persres.experiments.evidence.commands import run_sweep

    run_sweep(params_file(params), work, out)


def extensions(
    study: Annotated[list[str] | None, typer.Argument(help="studies; default: all")] = None,
    params: Params = None,
    work: Work = WORK,
    out: Out = DATA,
    device: Device = "auto",
) -> None:
    """Measure the extensions of the paper, study by study (docs/extensions)."""
    from persres.experiments.evidence.commands import run_extensions
    from persres.experiments.extensions.study import NAMES, Run

    for folder in run_extensions(study or NAMES, Run(params_file(params), work, device), out):
        print(folder)


def real_photos(photos: Path, out: Out = DATA) -> None:
    """Measure the zero-shot class on real photos, one folder per subject, with an image classifier from PyPI."""
    from persres.experiments.extensions.zero_shot_class.real_photos import measure_photos

    print(measure_photos(photos, photos / "prompts_and_classes.txt", out))


def pages(
    out: Out = DATA,
    figures: Annotated[bool, typer.Option(help="plot again the figures that need only a summary")] = False,
) -> None:
    """Write the measured blocks of the pages from the committed figures."""
    from persres.experiments.evidence.commands import write_pages

    write_pages(out, figures)


def bench(
    model: Annotated[
        str, typer.Argument(help="mini (the mini world), sd14 or sd21 with random weights; nouns, chain")
    ] = "mini",
    device: Device = "auto",
    dtype: Dtype = "float32",
    resolution: Resolution = None,
    rounds: Annotated[int, typer.Option(help="runs of each contestant, in alternation")] = 7,
    train_steps: Annotated[int, typer.Option(help="training steps of a run")] = 4,
    steps: Annotated[int, typer.Option(help="sampling steps of a run")] = 10,
    batches: Annotated[str, typer.Option(help="sampling batch sizes")] = "1,10,32",
    concepts_per_batch: Annotated[str, typer.Option(help="numbers of concepts trained in one pass")] = "4,5,8",
    sampled_concepts: Annotated[int, typer.Option(help="concepts with one image each in a batch")] = 10,
    out: Out = DATA / "bench",
) -> None:
    """Compare training and sampling with diffusers and peft in alternating runs, and with the FLOP lower bound; the encoding
    of WordNet's nouns; the overhead of the pipeline."""
    from persres.experiments.benchmarks.models import ModelChoice
    from persres.experiments.benchmarks.other_suites import OTHERS, run_other
    from persres.experiments.benchmarks.suite import SuiteSettings, run_suite

    if model in OTHERS:
        print(run_other(model, out, params_file(None), WORK / "bench" / model, rounds))
        return
    settings = SuiteSettings(
        train_steps, steps, rounds, _numbers(batches), _numbers(concepts_per_batch), sampled_concepts
    )
    print(run_suite(ModelChoice(model, dtype, resolution), device, settings, out))


def full_size(
    family: Annotated[str, typer.Option(help="sd14, sd21 or sdxl")] = "sd14",
    device: Device = "auto",
    dtype: Dtype = "float32",
    resolution: Resolution = None,
    train_steps: int = 5,
    train_batch: int = 4,
    steps: Annotated[int, typer.Option(help="sampling steps")] = 50,
    batches: Annotated[str, typer.Option(help="sampling batch sizes")] = "1,4,16",
    out: Out = DATA / "bench",
) -> None:
    """Measure seconds and memory of a full-size model with random weights, which estimate reads. Needs no hub."""
    from persres.experiments.benchmarks.full_size import FullSizeSettings, run_full_size
    from persres.experiments.benchmarks.models import ModelChoice

    settings = FullSizeSettings(train_steps, train_batch, steps, _numbers(batches))
    print(run_full_size(ModelChoice(family, dtype, resolution), device, settings, out))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def miniworld(
    work: Work = WORK / "miniworld",
    out: Annotated[Path | None, typer.Option(help="folder of the weights; default: the package's")] = None,
    model: Annotated[list[str] | None, typer.Option(help="train only this model; can be repeated")] = None,
    threads: Annotated[int | None, typer.Option(help="torch threads")] = None,
    prompts: Annotated[int, typer.Option(help="held-out prompts to score the base model on")] = 240,
    resume: Annotated[Path | None, typer.Option(help="folder of a saved checkpoint to go on from")] = None,
    save: Annotated[Path | None, typer.Option(help="save the U-Net's training so far there, and train nothing")] = None,
) -> None:
    """Train the mini world's models from scratch (hours on a CPU)."""
    import json

    import torch

    from persres.experiments.miniworld_training.checkpoint import restore_checkpoint, save_checkpoint
    from persres.experiments.miniworld_training.train_all import OUT, build_everything

    if save is not None:
        save_checkpoint(work, save)
        return
    if resume is not None:
        restore_checkpoint(resume, OUT, work)
    if threads is not None:
        torch.set_num_threads(threads)
    measured = build_everything(work, out or OUT, tuple(model or ()), prompts)
    if measured is not None:
        print(json.dumps(measured, indent=1))


def golden(record: Annotated[bool, typer.Option("--record", help="write today's figures")] = False) -> None:
    """Compare a small run of everything with its committed figures (data/golden), or record them again."""
    from persres.experiments.golden.run import run_golden

    print(run_golden(record))


def deps(write: Annotated[bool, typer.Option("--write", help="write them into dvc.yaml")] = False) -> None:
    """Print the code that each DVC stage depends on, from its imports."""
    from persres.experiments.dvc_dependencies import STAGES, stage_code, write_dependencies

    if write:
        print("dvc.yaml: written" if write_dependencies(Path("dvc.yaml")) else "dvc.yaml: nothing has changed")
        return
    for stage in STAGES:
        print(f"{stage}: {' '.join(stage_code(stage))}")


COMMANDS = {
    "evidence": Command(evidence),
    "tables": Command(tables),
    "sweep": Command(sweep),
    "extensions": Command(extensions, ("persres dev extensions masks",)),
    "real-photos": Command(real_photos),
    "pages": Command(pages),
    "bench": Command(bench, ("persres dev bench sd14 --dtype bfloat16",)),
    "full-size": Command(full_size, ("persres dev full-size --family sdxl --dtype bfloat16",)),
    "miniworld": Command(miniworld),
    "golden": Command(golden, ("persres dev golden --record",)),
    "deps": Command(deps, ("persres dev deps --write",)),
}
add_commands(app, COMMANDS)
