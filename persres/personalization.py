"""``persres personalize``: trains a residual on a folder of photos of one object and samples a sheet of images.

It runs the stages fetch to sample with a profile derived from the selected one: its models and training settings, one variant (ours),
and the configs base, ours and ours with LAG from the same noise. The stages work in ``<out>/.run``, so a second run continues there.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path

from persres.config.load import default_params
from persres.config.schema import Profile
from persres.datasets.folder import NEUTRAL_PROMPTS
from persres.datasets.layout import check_name
from persres.datasets.photos import find_photos
from persres.errors import PersresError
from persres.images import load_photo
from persres.package_paths import located
from persres.prompts import fill
from persres.units.context import Context
from persres.units.files import publishing, write_atomic

log = logging.getLogger(__name__)
MIN_PHOTOS = 3  # the paper's benchmark has 3 to 15 photos per concept
CONFIGS = {"base": {}, "ours": {"variant": "ours"}, "ours_lag": {"variant": "ours", "lag": True}}
STAGES = ("fetch", "macro_class", "train", "sample")
_NOT_SAMPLING_DEFAULTS = {"configs", "images_per_prompt", "prompts"}


def personalize(
    photos: str | Path,
    *,
    macro_class: str | None = None,
    name: str | None = None,
    prompts: tuple[str, ...] = (),
    out: str | Path | None = None,
    params: str | Path | None = None,
    profile: str = "paper",
) -> Path:
    """Train and sample; write ``<name>.safetensors``, ``<name>.png`` and ``README.md``, and return their folder.

    Defaults: ``macro_class`` the zero-shot class (persres/metrics/zero_shot_class.py), logged with its confidence; ``name`` the folder's;
    ``prompts`` neutral ones; ``out`` ``personal/<name>``; ``params`` ./params.yaml, else the package's.

    Raises PersresError naming the wrong photo, prompt, profile or model, before anything is written.
    """
    from persres.methods.common.registry import load_profile
    from persres.workflow import run_stage

    photos = Path(photos)
    name = check_name(name or _name_of(photos))
    settings = load_profile(Path(params or default_params()), profile)
    folder = Path(out or Path("personal") / name)
    _check_words(prompts, macro_class)
    files = find_photos(photos)
    for photo in files:  # here, so that errors have the names of the user's files
        load_photo(photo)
    check_models(settings, zero_shot=macro_class is None)
    _advise(files, settings.base.resolution, profile)
    staged = folder / ".run" / "photos"
    _stage(files, macro_class, prompts, name, staged)
    derived = derive(settings, name, staged, macro_class is None)
    context = Context(derived, folder / ".run" / "data", folder / ".run" / "work")
    for stage in STAGES:
        run_stage(stage, context)
    _write_results(context, name, folder)
    return folder


def _name_of(photos: Path) -> str:
    """The folder's name in the characters of a concept's name."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", photos.resolve().name).strip("_-")[:64]


def _check_words(prompts: tuple[str, ...], macro_class: str | None) -> None:
    for prompt in prompts:
        fill(prompt, "thing")
    if macro_class is not None and not macro_class.strip():
        raise PersresError("--class is empty; give the object's class, e.g. --class dog, or leave it out")


def check_models(profile: Profile, zero_shot: bool) -> None:
    """Raises PersresError if a model is not available: the base model (reads its index) and, for the zero-shot class, CLIP (loads it)."""
    from persres.methods.common.registry import check_available
    from persres.models.diffusion import pipeline_name

    pipeline_name(profile.base.model)
    check_available(profile.base, profile.train)
    if zero_shot:
        from persres.metrics.clip_scores import load_clip

        load_clip(profile.encoders.clip, profile.runtime.device)


def _advise(photos: list[Path], resolution: int, profile: str) -> None:
    """Log advice for first users before the long part."""
    import torch

    if len(photos) < MIN_PHOTOS:
        few = "only %d photo(s); %d to 15 of the same object in other places and from other sides work better"
        log.warning(few, len(photos), MIN_PHOTOS)
    if resolution >= 512 and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        slow = (
            "no GPU here; profile %s takes hours on a CPU. --profile mini runs in minutes with a tiny model of"
            " rendered scenes"
        )
        log.warning(slow, profile)


def _stage(photos: list[Path], macro_class: str | None, prompts: tuple[str, ...], name: str, staged: Path) -> None:
    """Link the photos into a folder dataset with its concept.json; the fetch stage copies them once."""
    selected = [("background", prompt) for prompt in prompts] or NEUTRAL_PROMPTS
    description = {"macro_class": macro_class or "thing", "prompts": list(selected)}
    with publishing(staged) as fresh:
        (fresh / name).mkdir()
        for photo in photos:
            (fresh / name / photo.name).symlink_to(photo.resolve())
        (fresh / name / "concept.json").write_text(json.dumps(description, ensure_ascii=False))


def derive(profile: Profile, name: str, photos: Path, zero_shot: bool) -> Profile:
    """The selected profile's models and training settings for this one concept, with few images."""
    from persres.methods.common.registry import make_profile

    macro = {"source": "zero_shot" if zero_shot else "dataset", "nearest": False, "zero_shot": False}
    settings = profile.model_dump(include={"base", "encoders", "runtime"}) | {
        "fetch": {"dataset": "folder", "folder": str(photos), "concepts": (name,)},
        "macro_class": profile.macro_class.model_dump() | macro,
        "train": profile.train.model_dump(exclude={"variants"}) | {"variants": {"ours": {}}},
        "sample": profile.sample.model_dump(exclude=_NOT_SAMPLING_DEFAULTS)
        | {"images_per_prompt": 1, "configs": CONFIGS},
        "tables": {"sheet_scale": profile.tables.sheet_scale},
    }
    return make_profile(settings)


def _write_results(context: Context, name: str, out: Path) -> None:
    from persres.datasets.layout import read_concepts
    from persres.report.cards import front_matter
    from persres.report.sheets import write_sheets
    from persres.residuals.header import header_facts, read_header
    from persres.units.outputs import read_macro_classes

    residual, sheet, note = out / f"{name}.safetensors", out / f"{name}.png", out / "README.md"
    with publishing(context.data / "sheets") as sheets:
        write_sheets(context, sheets, every_prompt=True)
    shutil.copyfile(context.data / "sheets" / f"{name}.png", sheet)
    write_atomic(residual, (context.data / "learned" / "ours" / f"{name}.safetensors").read_bytes())
    ((concept, _),) = read_concepts(context.data / "concepts")
    head = front_matter(header_facts(read_header(residual), concept.licence))
    write_atomic(note, f"{head}\n{usage_text(context.profile, name, read_macro_classes(context)[name])}".encode())
    for label, path in (("residual", residual), ("images", sheet), ("how to load it", note)):
        log.info("%-15s %s", label, path)


def usage_text(profile: Profile, name: str, macro_class: str) -> str:
    """The README below the hub's front matter, with code for diffusers. Its prompts use the rare token, whose embedding V* has."""
    model, phrase = profile.base.model, f"{profile.base.rare_token} {macro_class}"
    model = str(Path(located(model)).resolve()) if Path(located(model)).is_dir() else model
    sampling = profile.sample
    return f"""# {name}

`{name}.safetensors` is a LoRA file for `{model}`. In prompts write `{phrase}`; run this in this folder:

```python
import torch
from diffusers import DDIMScheduler, DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{model}")
pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
pipe.load_lora_weights(".", weight_name="{name}.safetensors")
pipe.to("cuda" if torch.cuda.is_available() else "cpu")
result = pipe("a photo of a {phrase} on the beach", num_inference_steps={sampling.steps}, guidance_scale={sampling.cfg_scale})
result.images[0].save("beach.png")
```

`{name}.png` shows the photos, then each prompt by the base model, with the residual (`ours`), and with the residual only at the
object (`ours_lag`, localized attention-guided sampling, with its masks). LAG needs persres; a LoRA loader gives `ours`.
The single images are in `.run/data/samples/<config>/{name}.zip`. Photos and images keep the licences of your photos and of the model.
"""
