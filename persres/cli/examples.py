"""What the help of the main commands ends with: calls as people type them, and what comes next."""

from __future__ import annotations

import typer

EXAMPLES: dict[str, tuple[str, ...]] = {
    "personalize": (
        "persres personalize ./my-dog --class dog",
        "persres personalize ./my-car --class car --profile mini   (no GPU, no download)",
        "persres personalize ./my-mug --prompt 'a {} on the moon' --prompt 'a red {}'   (class found by itself)",
    ),
    "plan": (
        "persres plan --profile paper   (units, hours and disk of the whole paper, before it starts)",
        "persres use mini; persres plan   (of the profile that make repro takes)",
    ),
    "generate": (
        "persres generate dog7.safetensors --prompt 'a photo of a {} on the moon' --count 4",
        "persres generate dog7.safetensors --prompt 'a {} in snow' --seed 3 --no-lag --out snow",
        "persres generate dog7.safetensors --with mug.safetensors --prompt 'a {dog7} beside a {mug}'",
        "persres generate any-lora.safetensors --subject dog --model CompVis/stable-diffusion-v1-4 --prompt 'a {} on grass'",
    ),
    "export": (
        "persres export dog7.safetensors --to diffusers --verify",
        "persres export dog7.safetensors --to kohya --embedding --out ComfyUI/models/loras",
    ),
    "list": (
        "persres list --repo https://github.com/you/your-persres   (versions, the newest first)",
        "persres list --rev v2 --json   (what was learned in one)",
    ),
    "pull": (
        "persres pull dog7 --rev v2 --repo https://github.com/you/your-persres --out residuals",
        "persres pull ours/dog7   (the newest, of one variant)",
        "file=$(persres pull dog7 --rev v2) && persres generate $file --prompt 'a {} at sea'",
    ),
    "publish": (
        "dvc repro && persres publish v2 --dry-run   (what would go where)",
        "persres publish v2 -m 'twice the steps'",
    ),
    "diff": ("persres diff v1 v2 --repo https://github.com/you/your-persres",),
    "housekeep": (
        "git fetch --tags && persres housekeep   (says what would go)",
        "persres housekeep --delete",
    ),
    "doctor": (
        "persres doctor   (exit code 1 where something fails)",
        "persres doctor --json | jq '.[] | select(.state != \"ok\")'",
    ),
}  # fmt: skip


def add_to(app: typer.Typer) -> None:
    """End those commands' help with their examples, a line each."""
    for command in app.registered_commands:
        name = command.name or command.callback.__name__
        if name in EXAMPLES:
            command.epilog = "\n\n".join(["Examples:", *EXAMPLES[name]])
