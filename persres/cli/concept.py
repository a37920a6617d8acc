"""Commands for one concept: personalize, generate, export, import."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from persres.cli.command import Command
from persres.cli.options import (
    LARGEST_SEED,
    Device,
    Dtype,
    Json,
    Params,
    check_model,
    finite,
    path,
    usable_device,
    words,
)


def personalize(
    photos: Annotated[Path, typer.Argument(parser=path, help="a folder with 3 to 15 photos of one object")],
    macro_class: Annotated[
        str | None, typer.Option("--class", help="the object's class, e.g. dog; default: zero-shot classification")
    ] = None,
    name: Annotated[str | None, typer.Option(help="the concept's name; default: the folder's")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="with {} for the object; can be repeated")] = None,
    profile: Annotated[
        str, typer.Option(help="profile with models and training settings; mini needs no GPU and no download")
    ] = "paper",
    params: Params = None,
    out: Annotated[Path | None, typer.Option(parser=path, help="output folder; default: personal/<name>")] = None,
    prompts_file: Annotated[
        Path | None, typer.Option(parser=path, help="text file with a prompt in each line; # starts a comment")
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=1000, help="images per prompt")] = 1,
    steps: Annotated[int | None, typer.Option(min=1, max=1_000_000, help="of training; default: the profile's")] = None,
    rank: Annotated[int | None, typer.Option(min=1, max=100_000, help="of the residual in every layer")] = None,
    lr: Annotated[float | None, typer.Option(callback=finite, help="learning rate")] = None,
    seed: Annotated[
        int | None, typer.Option(min=-LARGEST_SEED, max=LARGEST_SEED, help="of training and of the images")
    ] = None,
    crop: Annotated[
        Literal["center", "pad", "bucket"] | None,
        typer.Option(help="center square; pad: the whole photo with a border; bucket: its aspect. Default: center"),
    ] = None,
    model: Annotated[
        str | None, typer.Option(callback=words, help="base model, a hub name or a folder; default: the profile's")
    ] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="of the base model; default: the profile's")] = None,
    device: Annotated[
        str | None, typer.Option(callback=usable_device, help="cpu, cuda, mps or auto; default: the profile's")
    ] = None,
    preview_every: Annotated[int, typer.Option(min=0, help="steps between two previews of the training; 0: none")] = 50,
    as_json: Json = False,
) -> None:
    """Train a residual on photos of one object and sample a sheet of images."""
    from persres.personal.options import checked_options, read_prompts
    from persres.personalization import Request, personalized

    check_model(model)
    changes = {"steps": steps, "seed": seed, "rank": rank, "lr": lr, "crop": crop, "model": model, "device": device}
    options = checked_options(changes | {"dtype": dtype, "count": count, "preview_every": preview_every})
    prompts = (*(prompt or ()), *(() if prompts_file is None else read_prompts(prompts_file)))
    result = personalized(Request(photos, macro_class, name, prompts, out, params, profile, options))
    print(result.as_json() if as_json else result.folder)


def generate(
    residual: Annotated[
        Path, typer.Argument(parser=path, help="a residual's safetensors file, or with --subject any LoRA file")
    ],
    prompt: Annotated[list[str], typer.Option(help="with {} for the concept; can be repeated")],
    others: Annotated[
        list[Path] | None,
        typer.Option(
            "--with", parser=path, help="another residual in the same images; prompts then hold {1}, {2} or file names"
        ),
    ] = None,
    out: Annotated[Path, typer.Option(parser=path, help="output folder")] = Path("images"),
    count: Annotated[int, typer.Option(min=1, max=100_000, help="images per prompt")] = 1,
    seed: Annotated[
        int, typer.Option(min=-LARGEST_SEED, max=LARGEST_SEED, help="the same seed gives the same images")
    ] = 0,
    lag: Annotated[bool, typer.Option("--lag/--no-lag", help="apply the residual only at the object")] = True,
    masks: Annotated[
        Literal["auto", "paper"], typer.Option(help="auto: masks of the object's size; paper: half of every block")
    ] = "auto",
    subject: Annotated[str | None, typer.Option(help="for any LoRA: the text of {}, e.g. dog")] = None,
    strength: Annotated[float, typer.Option(min=0, max=1000, callback=finite, help="scales the residual")] = 1.0,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="DDIM steps")] = 50,
    cfg_scale: Annotated[
        float, typer.Option(min=1, max=1000, callback=finite, help="classifier-free guidance scale")
    ] = 6.0,
    model: Annotated[
        str | None,
        typer.Option(
            callback=words,
            help="another copy of the base model, a hub name, a folder or one safetensors file; a LoRA's base model",
        ),
    ] = None,
    other_base: Annotated[
        bool, typer.Option("--other-base", help="allow a --model with other weights than the residual was trained on")
    ] = False,
    device: Device = "auto",
    dtype: Annotated[
        Dtype | None, typer.Option(help="precision of the weights; default: as the residual was trained")
    ] = None,
) -> None:
    """Generate images with a residual, as PNG files with their settings inside."""
    check_model(model)
    from persres.generate import GenerateOptions
    from persres.generate import generate as sample

    where = masks == "paper" or "auto" if lag else False
    options = GenerateOptions(count, seed, where, strength, steps, cfg_scale, model, device, subject, other_base, dtype)
    for image in sample(residual, tuple(prompt), out, options, tuple(others or ())):
        print(image)


def export(
    residual: Annotated[Path, typer.Argument(parser=path, help="a residual's safetensors file")],
    to: Annotated[
        Literal["diffusers", "kohya"], typer.Option(help="key format: PEFT's, or kohya's (ComfyUI, A1111)")
    ] = "diffusers",
    out: Annotated[Path | None, typer.Option(parser=path, help="output folder; default: the residual's")] = None,
    embedding: Annotated[
        bool, typer.Option("--embedding", help="V* as a Textual Inversion file too; needs the base model")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="compare images of plain diffusers and ours from the same noise, in float32"),
    ] = False,
    cover: Annotated[
        Path | None, typer.Option(parser=path, help="an image that clients show; default: the model card's preview")
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Write a residual for diffusers, ComfyUI or AUTOMATIC1111."""
    from persres.exports.command import ExportOptions, report_lines, run_export

    report = run_export(residual, out or residual.parent, ExportOptions(to, embedding, verify, device, cover))
    print(json.dumps(report, indent=1) if as_json else report_lines(report))


def import_file(
    lora: Annotated[
        Path, typer.Argument(parser=path, help="a LoRA of output projections, with PEFT's or kohya's keys")
    ],
    model: Annotated[str, typer.Option(callback=words, help="its base model, a hub name, a folder or one file")],
    macro_class: Annotated[str, typer.Option("--class", help="the object's class, e.g. dog")],
    name: Annotated[str | None, typer.Option(help="the concept's name; default: the file's")] = None,
    rare_token: Annotated[str, typer.Option(help="the word it was trained with, which V* stands for")] = "sks",
    resolution: Annotated[int | None, typer.Option(min=16, max=8192, help="pixels; default: the model's")] = None,
    out: Annotated[Path | None, typer.Option(parser=path, help="output folder; default: the file's")] = None,
) -> None:
    """Convert a LoRA of output projections to a residual, for generate and LAG. A LoRA of other layers needs no import:
    generate --subject applies it as it is."""
    check_model(model)
    from persres.exports.importing import ImportOptions, import_residual

    print(import_residual(lora, model, macro_class, ImportOptions(name, rare_token, resolution), out))


COMMANDS = {
    "personalize": Command(
        personalize,
        (
            "persres personalize ./my-dog --class dog",
            "persres personalize ./my-car --class car --profile mini   (no GPU, no download)",
            "persres personalize ./my-mug --prompt 'a {} on the moon' --prompt 'a red {}'   (zero-shot class)",
            "persres personalize ./my-dog --class dog --steps 300 --seed 1 --crop bucket --prompts-file prompts.txt --count 4",
            "persres personalize ./my-dog --class dog --json | jq -r '.images[]'",
        ),
    ),
    "generate": Command(
        generate,
        (
            "persres generate dog7.safetensors --prompt 'a photo of a {} on the moon' --count 4",
            "persres generate dog7.safetensors --prompt 'a {} in snow' --seed 3 --no-lag --out snow",
            "persres generate dog7.safetensors --with mug.safetensors --prompt 'a {dog7} next to a {mug}'",
            "persres generate any-lora.safetensors --subject dog --model CompVis/stable-diffusion-v1-4 --prompt 'a {} on grass'",
        ),
    ),
    "export": Command(
        export,
        (
            "persres export dog7.safetensors --to diffusers --verify",
            "persres export dog7.safetensors --to kohya --embedding --out ComfyUI/models/loras",
        ),
    ),
    "import": Command(
        import_file,
        ("persres import dog.safetensors --model CompVis/stable-diffusion-v1-4 --class dog",),
    ),
}
