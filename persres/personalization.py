"""``persres personalize``: trains a residual on a folder of photos of one object and samples a sheet of images.

It runs the stages fetch to sample with a profile derived from the selected one: its models and training settings, one variant (ours),
and the configs base, ours and ours with LAG from the same noise. The stages work in ``<out>/.run``, so a second run continues there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from pathlib import Path

from persres.config.load import default_params
from persres.config.schema import Profile
from persres.datasets.folder import NEUTRAL_PROMPTS
from persres.datasets.photos import find_photos
from persres.errors import PersresError
from persres.images import check_photo
from persres.package_paths import located
from persres.prompts import fill
from persres.units.claims import RUN, Inputs, check_claim, claimed, recorded_inputs
from persres.units.context import Context
from persres.units.files import publishing, write_atomic
from persres.units.main_module import refuse_repeated_script
from persres.units.pool import check_script
from persres.untrusted.names import identifier
from persres.untrusted.text import as_literal, code_span, plain_text

log = logging.getLogger(__name__)
MIN_PHOTOS = 3  # the paper's benchmark has 3 to 15 photos per concept
CONFIGS = {"base": {}, "ours": {"variant": "ours"}, "ours_lag": {"variant": "ours", "lag": True}}
TRAINING = ("fetch", "macro_class", "train")  # stages up to the residual; then it is written, and sample follows
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

    ``out`` belongs to these photos: other photos or names are refused there, and a second process waits, or is refused. The residual is
    written as soon as it is trained.

    A script must call it below ``if __name__ == "__main__":``, since its worker processes import the script.

    Raises PersresError naming the wrong photo, prompt, setting, model or folder, before anything is written.
    """
    from persres.methods.common.registry import load_profile
    from persres.workflow import check_space, run_stage

    refuse_repeated_script()
    photos = Path(photos)
    settings = load_profile(Path(params or default_params()), profile)
    _check_words(prompts, macro_class)
    files = find_photos(photos)
    name = identifier(name if name is not None else _name_of(photos), "concept name")
    out = Path("personal", name) if out is None else Path(out)
    folder = _resolved(out)
    check_output_folder(folder, photos, name)
    for photo in files:  # here, so that errors have the names of the user's files
        check_photo(photo)
    derived = derive(settings, name, folder / RUN / "photos", macro_class is None)
    inputs = Inputs.of(name, files, _settings_digest(derived, macro_class, prompts))
    check_claim(folder, inputs)
    check_script(derived.runtime.workers, "persres.methods.common.sample_units")
    check_models(derived, prompts, macro_class)
    _advise(files, settings.base.resolution, profile)
    context = Context(derived, folder / RUN / "data", folder / RUN / "work")
    with claimed(folder, inputs):
        _stage(files, macro_class, prompts, name, folder / RUN / "photos")
        check_space(context)
        for stage in TRAINING:
            run_stage(stage, context)
        _write_residual(context, name, folder)
        try:
            run_stage("sample", context)
            _write_sheet(context, name, folder)
        except PersresError as error:
            raise PersresError(f"{error}\nthe residual is finished: {folder / name}.safetensors") from error
    return out


def _resolved(out: Path) -> Path:
    """An output folder without links. Raises PersresError where its path is no text, which a setting could not hold."""
    plain_text(str(out), "the output folder", allowed="\n\t")
    return Path(plain_text(os.path.realpath(out), "the output folder", allowed="\n\t"))


def _name_of(photos: Path) -> str:
    """The folder's name in the characters of a concept's name. Raises PersresError where none is left."""
    folder = os.path.basename(os.path.realpath(photos))
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", folder).strip("_-")[:64]
    if not name:
        raise PersresError(
            f"the folder's name {folder!r} has no letter from a to z for the concept's name; give one with --name"
        )
    return name


def _check_words(prompts: tuple[str, ...], macro_class: str | None) -> None:
    for prompt in prompts:
        fill(plain_text(prompt, "prompt", allowed="\n\t"), "thing")
    if macro_class is not None and not macro_class.strip():
        raise PersresError("--class is empty; give the object's class, e.g. --class dog, or leave it out")
    if macro_class is not None and re.search(r"[{}/\\]", plain_text(macro_class, "class", longest=100)):
        raise PersresError(f"--class {macro_class!r} is no class; give the object's class in words, e.g. --class dog")


def _settings_digest(derived: Profile, macro_class: str | None, prompts: tuple[str, ...]) -> str:
    """A digest of all that decides the results except the photos."""
    settings = derived.model_dump_json(exclude={"fetch": {"folder"}, "runtime": True})
    return hashlib.sha256(json.dumps([settings, macro_class, prompts]).encode()).hexdigest()


def check_output_folder(folder: Path, photos: Path, name: str) -> None:
    """Raises PersresError where results in ``folder`` would be in the way of other files: of the photos, of a home folder, of others.

    ``folder`` is a resolved path. A folder with earlier results passes; :func:`persres.units.claims.check_claim` compares their inputs.
    """
    photos = Path(os.path.realpath(photos))
    home = Path(os.path.realpath(os.path.expanduser("~")))
    another = "give a folder for this object alone with --out"
    if recorded_inputs(photos) is not None or photos.is_relative_to(folder / RUN):
        raise PersresError(f"{photos} has results of persres personalize; give the folder that has the photos alone")
    if folder == photos or (folder.exists() and folder.samefile(photos)):
        raise PersresError(
            f"--out {folder} is the photos' folder, where the sheet would be the next run's photo; {another}"
        )
    if home.is_relative_to(folder):
        raise PersresError(f"--out {folder} is a home folder or above one; {another}")
    if os.path.lexists(folder) and not folder.is_dir():
        raise PersresError(f"--out {folder} is a file; {another}")
    files = [file for file in (f"{name}.safetensors", f"{name}.png", "README.md") if os.path.lexists(folder / file)]
    if files and recorded_inputs(folder) is None:
        raise PersresError(f"--out {folder} has a file {files[0]} that persres personalize did not write; {another}")


def check_models(profile: Profile, prompts: tuple[str, ...], macro_class: str | None) -> None:
    """Raises PersresError if a model is not available, the schedule is not possible, or a prompt is too long for the text encoder.

    Reads the base model's small files; for the zero-shot class it loads CLIP.
    """
    from persres.models.diffusion import load_tokenizer
    from persres.models.text_encoding import check_length
    from persres.stages.checks import check_profile

    check_profile(profile)
    tokenizer = load_tokenizer(profile.base)
    phrase = profile.base.token if macro_class is None else f"{profile.base.token} {macro_class}"
    for prompt in prompts:
        check_length(tokenizer, fill(prompt, phrase), phrase)
    if macro_class is None:
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


def _write_residual(context: Context, name: str, out: Path) -> None:
    """Write the residual and its README as soon as they are finished, so that no later error costs them."""
    from persres.datasets.layout import read_concepts
    from persres.report.cards import front_matter
    from persres.residuals.header import header_facts, read_header
    from persres.units.outputs import read_macro_classes

    residual, note, sheet = out / f"{name}.safetensors", out / "README.md", out / f"{name}.png"
    data = (context.data / "learned" / "ours" / f"{name}.safetensors").read_bytes()
    if not residual.is_file() or residual.read_bytes() != data:
        sheet.unlink(missing_ok=True)  # of another residual
        write_atomic(residual, data)
    ((concept, _),) = read_concepts(context.data / "concepts")
    head = front_matter(header_facts(read_header(residual), concept.licence))
    write_atomic(note, f"{head}\n{usage_text(context.profile, name, read_macro_classes(context)[name])}".encode())
    for label, path in (("residual", residual), ("how to load it", note)):
        log.info("%-15s %s", label, path)


def _write_sheet(context: Context, name: str, out: Path) -> None:
    from persres.report.sheets import write_sheets

    with publishing(context.data / "sheets") as sheets:
        write_sheets(context, sheets, every_prompt=True)
    write_atomic(out / f"{name}.png", (context.data / "sheets" / f"{name}.png").read_bytes())
    log.info("%-15s %s", "images", out / f"{name}.png")


def usage_text(profile: Profile, name: str, macro_class: str) -> str:
    """The README below the hub's front matter, with code for diffusers. Its prompts use the rare token, whose embedding V* has."""
    from persres.models.base_model import loading_code

    model, phrase = profile.base.model, f"{profile.base.rare_token} {macro_class}"
    model = str(Path(located(model)).resolve()) if Path(located(model)).exists() else model
    load, kind = loading_code(model, 'torch.float16 if device == "cuda" else torch.float32')
    sampling, prompt = profile.sample, f"a photo of a {phrase} on the beach"
    return f"""# {name}

`{name}.safetensors` is a LoRA file for {code_span(model, 1000)}. In prompts write {code_span(phrase)}; run this in this folder:

```python
import torch
from diffusers import DDIMScheduler, {kind}

device = "cuda" if torch.cuda.is_available() else "cpu"
pipe = {load}.to(device)
pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
pipe.load_lora_weights(".", weight_name="{name}.safetensors")
result = pipe({as_literal(prompt)}, num_inference_steps={sampling.steps}, guidance_scale={sampling.cfg_scale})
result.images[0].save("beach.png")
```

`{name}.png` shows the photos, then each prompt by the base model, with the residual (`ours`), and with the residual only at the
object (`ours_lag`, localized attention-guided sampling, with its masks). LAG needs persres; a LoRA loader gives `ours`.
The single images are in `.run/data/samples/<config>/{name}.zip`. Photos and images keep the licences of your photos and of the model.
"""
