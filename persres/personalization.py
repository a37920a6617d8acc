"""``persres personalize``: trains a residual on a folder of photos of one object and samples a sheet of images.

It runs the stages fetch to sample with a profile derived from the selected one (persres/personal/options.py): its models and training
settings, one variant (ours), and the configs base, ours and ours with LAG from the same noise. The stages work in ``<out>/.run``, so a
second run continues there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persres.config.load import default_params
from persres.config.schema import Profile
from persres.datasets.folder import NEUTRAL_PROMPTS
from persres.datasets.photos import find_photos
from persres.errors import PersresError
from persres.images import check_photo, load_photo
from persres.miniworld.vocabulary import TRAINED_KINDS, words
from persres.package_paths import SCHEME, located
from persres.personal.options import (
    UNCHANGED,
    Options,
    check_words,
    checked_options,
    derive,
    read_prompts,
    with_previews,
)
from persres.personal.results import (
    IMAGES,
    PREVIEWS,
    Result,
    RunFolder,
    previews_of,
    single_images,
    write_images,
    write_sheet,
)
from persres.prompts import fill
from persres.training.framing import frame_of
from persres.units.claims import RUN, Inputs, check_claim, claimed, recorded_inputs
from persres.units.context import Context
from persres.units.files import publishing, write_atomic
from persres.units.main_module import refuse_repeated_script
from persres.units.pool import check_script
from persres.untrusted.names import identifier
from persres.untrusted.text import as_literal, code_span, plain_text, printable, quoted

log = logging.getLogger(__name__)
MIN_PHOTOS = 3  # the paper's benchmark has 3 to 15 photos per concept
TRAINING = ("fetch", "macro_class", "train")  # stages up to the residual; then it is written, and sample follows
MINI_WORLD = f"{SCHEME}miniworld/"
MUCH_CUT = 0.1  # share of a photo that a crop leaves out, from which on it is reported


@dataclass(frozen=True)
class Request:
    """A call of :func:`personalize`."""

    photos: Path
    macro_class: str | None = None
    name: str | None = None
    prompts: tuple[str, ...] = ()
    out: Path | None = None
    params: Path | None = None
    profile: str = "paper"
    options: Options = UNCHANGED


def personalize(
    photos: str | Path,
    *,
    macro_class: str | None = None,
    name: str | None = None,
    prompts: tuple[str, ...] = (),
    prompts_file: str | Path | None = None,
    out: str | Path | None = None,
    params: str | Path | None = None,
    profile: str = "paper",
    **options: Any,
) -> Path:
    """Train and sample; write ``<name>.safetensors``, ``<name>.png``, ``README.md`` and ``images/``, and return their folder.

    Defaults: ``macro_class`` the zero-shot class (persres/metrics/zero_shot_class.py), logged with its confidence; ``name`` the folder's;
    ``prompts`` (and those of the lines of ``prompts_file``) neutral ones; ``out`` ``personal/<name>``; ``params`` ./params.yaml, else the
    package's. ``options``: fields of :class:`persres.personal.options.Options`, which replace the profile's settings: steps, seed, rank,
    lr, crop, model, device, dtype, count, preview_every.

    ``out`` belongs to these photos: other photos or names are refused there, and a second process waits, or is refused. The residual is
    written as soon as it is trained, previews in ``previews/`` while it trains.

    A script must call it below ``if __name__ == "__main__":``, since its worker processes import the script.

    Raises PersresError naming the wrong photo, prompt, setting, model or folder, before anything is written.
    """
    refuse_repeated_script()
    more = () if prompts_file is None else read_prompts(Path(prompts_file))
    checked = checked_options(options)
    out, params = (None if path is None else Path(path) for path in (out, params))
    request = Request(Path(photos), macro_class, name, (*prompts, *more), out, params, profile, checked)
    return personalized(request).folder


def personalized(request: Request) -> Result:
    """As :func:`personalize`; returns what was made."""
    from persres.methods.common.registry import load_profile

    refuse_repeated_script()
    macro_class, prompts, options = request.macro_class, request.prompts, request.options
    check_words(prompts, macro_class)
    files = find_photos(request.photos)
    name = identifier(request.name if request.name is not None else _name_of(request.photos), "concept name")
    out = Path("personal", name) if request.out is None else request.out
    folder = _resolved(out)
    check_output_folder(folder, request.photos, name)
    for photo in files:  # here, so that errors have the names of the user's files
        check_photo(photo)
    settings = load_profile(Path(request.params or default_params()), request.profile)
    derived = derive(settings, name, folder / RUN / "photos", macro_class is None, options)
    inputs = Inputs.of(name, files, _settings_digest(derived, macro_class, prompts))
    check_claim(folder, inputs)
    check_script(derived.runtime.workers, "persres.methods.common.sample_units")
    check_models(derived, prompts, macro_class)
    _advise(files, derived, request)
    shown = with_previews(derived, options, prompts[0] if prompts else NEUTRAL_PROMPTS[0][1], folder / PREVIEWS)
    run = RunFolder(Context(shown, folder / RUN / "data", folder / RUN / "work"), name, folder, _is_new(folder, inputs))
    with claimed(folder, inputs):
        _stage(files, macro_class, prompts, name, folder / RUN / "photos")
        _train(run, given=macro_class is not None)
        try:
            _sample(run)
        except PersresError as error:
            raise PersresError(f"{error}\nthe residual is finished: {folder / name}.safetensors") from error
    return run.result(out)


def _is_new(folder: Path, inputs: Inputs) -> bool:
    """Whether the folder has nothing of a run of the same inputs and settings, which this one would go on with."""
    return recorded_inputs(folder) != inputs


def _train(run: RunFolder, given: bool) -> None:
    """The stages up to the residual, which is written."""
    from persres.workflow import check_space, run_stage

    check_space(run.context)
    begun = time.time()
    for stage in TRAINING:
        run_stage(stage, run.context)
        if stage == "macro_class":
            log.info("%s", class_line(run, given))
    _write_residual(run, begun)


def _sample(run: RunFolder) -> None:
    from persres.workflow import run_stage

    run_stage("sample", run.context)
    write_images(run)
    write_sheet(run)


def class_line(run: RunFolder, given: bool) -> str:
    """The class that prompts name, whence it is, and how to correct a prediction."""
    entry = run.macro_class()
    if given:
        return f"class {entry['selected']}, as given"
    others = [noun for noun, _ in entry["zero_shot_top"] if noun != entry["selected"]]
    other = printable(others[0], 100) if others else "CLASS"
    return f"class {printable(entry['selected'], 100)}, predicted, {entry['confidence']:.0%}; wrong? --class {other}"


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
    made = [folder / file for file in (f"{name}.safetensors", f"{name}.png", "README.md")]
    made += [path for path in (folder / IMAGES, folder / PREVIEWS) if os.path.lexists(path) and not path.is_dir()]
    made += [*single_images(folder), *previews_of(folder, name).values()]
    files = [path.relative_to(folder) for path in made if os.path.lexists(path)]
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


def _advise(photos: list[Path], profile: Profile, request: Request) -> None:
    """Log advice for first users before the long part."""
    import torch

    if len(photos) < MIN_PHOTOS:
        few = "only %d photo(s); %d to 15 of the same object in other places and from other sides work better"
        log.warning(few, len(photos), MIN_PHOTOS)
    if profile.base.resolution >= 512 and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        slow = (
            "no GPU here; profile %s takes hours on a CPU. --profile mini runs in minutes with a tiny model of"
            " rendered scenes"
        )
        log.warning(slow, request.profile)
    strange = outside_mini_world(profile, request.macro_class, request.prompts)
    if strange is not None:
        log.warning("%s", printable(strange, 2000))
    if (cut := crop_line(photos, profile)) is not None:
        log.info("%s", cut)


def outside_mini_world(profile: Profile, macro_class: str | None, prompts: tuple[str, ...]) -> str | None:
    """What of a class and of prompts the mini world's model has never seen, as a warning; None if it has, or for another model."""
    if not profile.base.model.startswith(MINI_WORLD):
        return None
    known = {*words(), "a", "an", "the", "{}"}
    strange = [word for text in prompts for word in re.findall(r"[^\W\d_]+", text.lower()) if word not in known]
    problems = []
    if macro_class is not None and macro_class.lower().split()[-1] not in TRAINED_KINDS:
        problems.append(
            f"class {quoted(macro_class)} is outside the mini world, whose model draws only {', '.join(TRAINED_KINDS)}"
        )
    if strange:
        problems.append(f"the mini world's model has never seen: {', '.join(dict.fromkeys(strange))}")
    if not problems:
        return None
    return f"{'; '.join(problems)}; the images won't show it. For real photos take --profile paper (Stable Diffusion, a GPU)"


def crop_line(photos: list[Path], profile: Profile) -> str | None:
    """Which photos the crop of the training cuts, and by how much; None where it leaves almost nothing out."""
    crop, resolution = profile.train.variant("ours").crop, profile.base.resolution
    sizes = {path.name: load_photo(path).size for path in photos}
    cut = {name: 1 - frame_of(size, resolution, crop).share(size) for name, size in sizes.items()}
    worst = max(cut, key=cut.get)
    if cut[worst] < MUCH_CUT:
        return None
    count, (width, height) = sum(share >= MUCH_CUT for share in cut.values()), sizes[worst]
    fix = "the sheet shows what is used" + (
        "; --crop bucket or --crop pad takes the whole photo" if crop == "center" else ""
    )
    return (
        f"crop {crop}: {count} of {len(photos)} photos lose up to {cut[worst]:.0%} at their ends ({printable(worst, 100)},"
        f" {width}×{height}); {fix}"
    )


def _stage(photos: list[Path], macro_class: str | None, prompts: tuple[str, ...], name: str, staged: Path) -> None:
    """Link the photos into a folder dataset with its concept.json; the fetch stage copies them once."""
    selected = [("background", prompt) for prompt in prompts] or NEUTRAL_PROMPTS
    description = {"macro_class": macro_class or "thing", "prompts": list(selected)}
    with publishing(staged) as fresh:
        (fresh / name).mkdir()
        for photo in photos:
            (fresh / name / photo.name).symlink_to(photo.resolve())
        (fresh / name / "concept.json").write_text(json.dumps(description, ensure_ascii=False))


def _write_residual(run: RunFolder, begun: float) -> None:
    """Write the residual and its README as soon as they are finished, so that no later error costs them."""
    from persres.datasets.layout import read_concepts
    from persres.report.cards import front_matter
    from persres.residuals.header import header_facts, read_header

    context, name, out = run.context, run.name, run.folder
    residual, note, sheet = out / f"{name}.safetensors", out / "README.md", out / f"{name}.png"
    data = (context.data / "learned" / "ours" / f"{name}.safetensors").read_bytes()
    if not residual.is_file() or residual.read_bytes() != data:
        sheet.unlink(missing_ok=True)  # of another residual
        run.remove_old_previews(begun)
        write_atomic(residual, data)
    ((concept, _),) = read_concepts(context.data / "concepts")
    head = front_matter(header_facts(read_header(residual), concept.licence))
    text = usage_text(context.profile, name, run.macro_class()["selected"])
    write_atomic(note, f"{head}\n{text}{_prompts_text([text for _, text in concept.prompts])}".encode())
    for label, path in (("residual", residual), ("how to load it", note)):
        log.info("%-15s %s", label, path)


def _prompts_text(prompts: list[str]) -> str:
    cells = [code_span(prompt, 1000).replace("|", "\\|") for prompt in prompts]
    lines = (f"| {number:02d} | {cell} |\n" for number, cell in enumerate(cells))
    return f"\n| number | prompt |\n|---|---|\n{''.join(lines)}"


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
object (`ours_lag`, localized attention-guided sampling; `where it acts` dims what its masks leave out). LAG needs persres; a LoRA loader gives `ours`.
The first row has the photos, dark where the crop of the training leaves them out, and the loss of its steps; columns `after … steps` are
previews of the training, which lie in `{PREVIEWS}/`. `{IMAGES}/` has the single images, `<config>_<prompt>_<image>.png`. Photos and
images keep the licences of your photos and of the model.
"""
