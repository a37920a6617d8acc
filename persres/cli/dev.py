"""The commands that measure: evidence, tables, sweep, what goes past the paper, and the pages that quote them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from persres.cli.options import DATA, WORK, Out, Params, Work, params_file


def add_to(app: typer.Typer) -> None:
    """Give these commands to the command line."""
    for command in (evidence, tables, sweep, beyond, real_classes, same, pages):
        app.command()(command)


def evidence(
    params: Params = None,
    work: Work = WORK,
    out: Out = DATA,
    prompts: Annotated[int, typer.Option(help="held-out prompts to measure the base model on")] = 240,
    scenes: Annotated[int, typer.Option(help="nameable scenes for localisation")] = 300,
    views: Annotated[int, typer.Option(help="scenes of each concept for localisation")] = 27,
) -> None:
    """Measure every claim on the mini world: effects with controls, localisation, methods broken on purpose."""
    from persres.experiments.evidence.commands import run_evidence

    print(run_evidence(params_file(params), work, out, prompts, scenes, views))


def tables(params: Params = None, work: Work = WORK, out: Out = DATA) -> None:
    """The paper's tables 1, 3, 4 and 5 with every rival and ablation."""
    from persres.experiments.evidence.commands import run_tables

    run_tables(params_file(params), work, out)


def sweep(params: Params = None, work: Work = WORK, out: Out = DATA) -> None:
    """The settings that the paper leaves open."""
    from persres.experiments.evidence.commands import run_sweep

    run_sweep(params_file(params), work, out)


def beyond(
    part: Annotated[list[str] | None, typer.Argument(help="which; if left out, all")] = None,
    params: Params = None,
    work: Work = WORK,
    out: Out = DATA,
    device: str = "auto",
) -> None:
    """Measure what goes past the paper, part by part (docs/beyond.md)."""
    from persres.experiments.evidence.commands import run_extensions
    from persres.experiments.extensions.study import NAMES, Run

    for folder in run_extensions(part or NAMES, Run(params_file(params), work, device), out):
        print(folder)


def real_classes(photos: Path, out: Out = DATA) -> None:
    """The macro class found on real photos, a folder a subject, by a classifier from PyPI (docs/beyond.md)."""
    from persres.experiments.extensions.zero_shot_class.real_photos import measure_photos

    print(measure_photos(photos, photos / "prompts_and_classes.txt", out))


def pages(
    out: Out = DATA,
    figures: Annotated[bool, typer.Option(help="draw the pictures again that a summary is enough for")] = False,
) -> None:
    """Write the measured blocks of the pages again, from the committed figures."""
    from persres.experiments.evidence.commands import write_pages

    write_pages(out, figures)


def same(
    older: Annotated[Path, typer.Argument(help="a checkout of the code that made the committed figures")],
    profile: Annotated[list[str] | None, typer.Option(help="evidence or tables; may be given several times")] = None,
    part: Annotated[
        list[str] | None, typer.Option(help="a part of docs/beyond.md, or all; may be given several times")
    ] = None,
    exact: Annotated[bool, typer.Option(help="refuse what is not the same to the bit")] = False,
    work: Work = WORK,
    out: Out = DATA,
) -> None:
    """Show that today's code computes what an older checkout's does, so that figures made by that one stand for today's."""
    from persres.experiments.evidence.same.carry import run_same
    from persres.experiments.evidence.same.subjects import names_of

    for name, said in run_same(older, names_of(profile or [], part or []), work, out, exact).items():
        print(f"{name}: {said}")
