"""The commands for one residual: more pictures from it, into other tools' formats, and back from theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from persres.cli.options import Json


def add_to(app: typer.Typer) -> None:
    """Give these commands to the command line."""
    app.command()(generate)
    app.command()(export)
    app.command(name="import")(import_file)


def generate(
    residual: Annotated[Path, typer.Argument(help="a residual's safetensors file, or with --subject any LoRA's")],
    prompt: Annotated[list[str], typer.Option(help="with {} where the thing goes; may be given again")],
    others: Annotated[
        list[Path] | None,
        typer.Option(
            "--with", help="a further residual of the same pictures; prompts then hold {1}, {2} or files' names"
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="the folder for the pictures")] = Path("pictures"),
    count: Annotated[int, typer.Option(min=1, help="pictures of each prompt")] = 1,
    seed: Annotated[int, typer.Option(help="the same seed is the same pictures")] = 0,
    lag: Annotated[bool, typer.Option("--lag/--no-lag", help="the residual only where the thing is")] = True,
    masks: Annotated[
        Literal["auto", "paper"], typer.Option(help="auto: the thing's own size; paper: half of every block")
    ] = "auto",
    subject: Annotated[str | None, typer.Option(help="of any LoRA: what {} stands for, e.g. dog")] = None,
    strength: Annotated[float, typer.Option(min=0, help="of the residual")] = 1.0,
    steps: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    cfg_scale: Annotated[float, typer.Option(min=1, help="guidance")] = 6.0,
    model: Annotated[
        str | None, typer.Option(help="the base model elsewhere, a hub name or a folder; a LoRA's base")
    ] = None,
    other_base: Annotated[
        bool,
        typer.Option("--other-base", help="draw though --model has other weights than the residual was trained on"),
    ] = False,
    device: str = "auto",
) -> None:
    """More pictures from a residual, as PNG with their settings inside."""
    from persres.generate import generate as draw_more

    where = masks == "paper" or "auto" if lag else False
    how = (count, seed, where, strength, steps, cfg_scale, model, device, subject, tuple(others or ()), other_base)
    for path in draw_more(residual, tuple(prompt), out, *how):
        print(path)


def export(
    residual: Annotated[Path, typer.Argument(help="a residual's safetensors file")],
    to: Annotated[
        Literal["diffusers", "kohya"], typer.Option(help="whose keys: PEFT's, or kohya's (ComfyUI, A1111)")
    ] = "diffusers",
    out: Annotated[Path | None, typer.Option(help="the folder to write into; if left out, the residual's own")] = None,
    embedding: Annotated[
        bool, typer.Option("--embedding", help="V* as a Textual-Inversion file too; asks for the base model")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="draw with plain diffusers and ours from the same noise, in float32")
    ] = False,
    device: str = "auto",
    as_json: Json = False,
) -> None:
    """Write a residual for diffusers, ComfyUI or AUTOMATIC1111."""
    from persres.exports.command import run_export

    print(run_export(residual, to, out or residual.parent, embedding, verify, device, as_json))


def import_file(
    lora: Annotated[Path, typer.Argument(help="a LoRA of output projections: PEFT's keys or kohya's")],
    model: Annotated[str, typer.Option(help="the base model it was trained on, a hub name or a folder")],
    macro_class: Annotated[str, typer.Option("--class", help="what the thing is, e.g. dog")],
    name: Annotated[str | None, typer.Option(help="the concept's name; if left out, the file's")] = None,
    rare_token: Annotated[str, typer.Option(help="the word it was trained under, which V* will read as")] = "sks",
    resolution: Annotated[int | None, typer.Option(help="pixels; if left out, the model's own")] = None,
    out: Annotated[Path | None, typer.Option(help="the folder to write into; if left out, the file's own")] = None,
) -> None:
    """Read another tool's LoRA of output projections as a residual, which generate and LAG then know like their own. A LoRA of other
    layers needs no import: generate --subject draws with it as it is."""
    from persres.exports.importing import import_residual

    print(import_residual(lora, model, macro_class, name, rare_token, resolution, out))
