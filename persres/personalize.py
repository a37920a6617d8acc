"""``persres personalize``: a folder of photos of one thing becomes a residual and a sheet of pictures, in one command.

It runs the stages fetch to sample on a profile made from the chosen one: its models and training defaults, one variant (ours),
and base, ours and ours with LAG from the same noise. What the stages make lies in ``<out>/.run``, so a second run goes on.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from persres.config import Fetch, Profile, Sample, Score, Tables, Train, load_params
from persres.datasets.folder import NEUTRAL_PROMPTS
from persres.datasets.layout import check_name
from persres.datasets.photos import find_photos
from persres.errors import PersresError
from persres.prompt_text import fill
from persres.runs.files import publishing, write_atomic

FEWEST = 3  # photos; the paper's benchmark has 3 to 15 of each concept
METHODS = {"base": {}, "ours": {"residual": "ours"}, "ours_lag": {"residual": "ours", "lag": True}}
STAGES = ("fetch", "macro_class", "train", "sample")
_OWN_SAMPLING = {"methods", "images_per_prompt", "prompts"}


@dataclass(frozen=True)
class Wish:
    """What the user asked for. Without ``macro_class`` the nearest WordNet noun is taken; without ``prompts``, neutral ones."""

    photos: Path
    macro_class: str | None = None
    name: str | None = None
    prompts: tuple[str, ...] = ()
    out: Path | None = None


def personalize(wish: Wish, params: Path, profile: str) -> Path:
    """Train, draw and leave ``<name>.safetensors``, ``<name>.png`` and ``README.md``; returns their folder.

    Raises PersresError naming the photo, prompt, profile or model that is wrong.
    """
    from persres.pipeline import run_stage
    from persres.runs.context import Context

    name = check_name(wish.name or _name_of(wish.photos))
    settings, out = load_params(params, profile), wish.out or Path("personal") / name
    for prompt in wish.prompts:
        fill(prompt, "thing")
    if wish.macro_class is not None and not wish.macro_class.strip():
        raise PersresError("--class is empty; say what the thing is, e.g. --class dog, or leave it out")
    photos, staged = find_photos(wish.photos), out / ".run" / "photos"
    _advise(photos, settings.base.resolution, profile)
    _stage(photos, wish, name, staged)
    context = Context(
        derive(settings, name, staged, wish.macro_class is None), out / ".run" / "data", out / ".run" / "work"
    )
    for stage in STAGES:
        run_stage(stage, context)
    _leave(context, name, out)
    return out


def _name_of(photos: Path) -> str:
    """The folder's own name, in the letters that a concept's name may have."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", photos.resolve().name).strip("_-")[:64]


def _advise(photos: list[Path], resolution: int, profile: str) -> None:
    """What a first user should know before the wait."""
    import torch

    if len(photos) < FEWEST:
        print(
            f"persres: only {len(photos)} photo(s); {FEWEST} to 15 of the same thing in other places and from other sides work better"
        )
    if resolution >= 512 and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        print(
            f"persres: no GPU here; profile {profile} takes hours on a CPU. --profile mini tries the steps in minutes, on a tiny model that knows only its own drawn world"
        )


def _stage(photos: list[Path], wish: Wish, name: str, staged: Path) -> None:
    """The photos as the folder dataset wants them, with their description."""
    prompts = [("background", prompt) for prompt in wish.prompts] or NEUTRAL_PROMPTS
    described = {"macro_class": wish.macro_class or "thing", "prompts": list(prompts)}
    with publishing(staged) as fresh:
        (fresh / name).mkdir()
        for photo in photos:
            shutil.copyfile(photo, fresh / name / photo.name)
        (fresh / name / "concept.json").write_text(json.dumps(described, ensure_ascii=False))


def derive(profile: Profile, name: str, photos: Path, look_for_class: bool) -> Profile:
    """The chosen profile's models and training, on this one concept, with few pictures."""
    macro = {"source": "wordnet" if look_for_class else "dataset", "nearest": look_for_class}
    return Profile(
        base=profile.base,
        encoders=profile.encoders,
        fetch=Fetch(dataset="folder", folder=str(photos), concepts=(name,)),
        macro_class=profile.macro_class.model_copy(update=macro),
        train=Train(**profile.train.model_dump(exclude={"variants"}), variants={"ours": {}}),
        sample=Sample(**profile.sample.model_dump(exclude=_OWN_SAMPLING), images_per_prompt=1, methods=METHODS),
        score=Score(),
        tables=Tables(sheet_scale=profile.tables.sheet_scale),
        runtime=profile.runtime,
    )


def _leave(context, name: str, out: Path) -> None:
    from persres.report.sheets import write_sheets
    from persres.runs.outputs import read_macro_classes

    residual, sheet, note = out / f"{name}.safetensors", out / f"{name}.png", out / "README.md"
    with publishing(context.data / "sheets") as sheets:
        write_sheets(context, sheets, every_prompt=True)
    shutil.copyfile(context.data / "sheets" / f"{name}.png", sheet)
    write_atomic(residual, (context.data / "learned" / "ours" / f"{name}.safetensors").read_bytes())
    write_atomic(note, how_to_load(context.profile, name, read_macro_classes(context)[name]).encode())
    for label, path in (("residual", residual), ("pictures", sheet), ("how to load it", note)):
        print(f"{label:15} {path}", flush=True)


def how_to_load(profile: Profile, name: str, macro_class: str) -> str:
    """A short note with code for diffusers; prompts hold the rare token, whose embedding V* has."""
    model, phrase = profile.base.model, f"{profile.base.rare_token} {macro_class}"
    model = str(Path(model).resolve()) if Path(model).is_dir() else model
    drawing = profile.sample
    return f"""# {name}

`{name}.safetensors` is a LoRA file for `{model}`. In prompts write `{phrase}`; run this in this folder:

```python
import torch
from diffusers import DDIMScheduler, DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{model}")
pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
pipe.load_lora_weights(".", weight_name="{name}.safetensors")
pipe.to("cuda" if torch.cuda.is_available() else "cpu")
picture = pipe("a photo of a {phrase} on the beach", num_inference_steps={drawing.steps}, guidance_scale={drawing.cfg_scale})
picture.images[0].save("beach.png")
```

`{name}.png` shows the photos, then each prompt by the base model, with the residual (`ours`), and with the residual only where the
thing is (`ours_lag`, localized attention-guided sampling, with its masks). LAG needs persres; a LoRA loader gives `ours`.
The single pictures lie in `.run/data/samples/<method>/{name}.zip`. Photos and pictures keep the licences of your photos and of the model.
"""
