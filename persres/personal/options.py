"""What a call of ``persres personalize`` may change, checked before anything heavy is imported; and the profile that follows from it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from persres.config.previews import Previews
from persres.config.problems import problem_lines
from persres.config.schema import LearningRate, Profile
from persres.config.section import Section
from persres.errors import PersresError
from persres.prompts import fill
from persres.untrusted.documents import read_text
from persres.untrusted.text import plain_text, quoted

CONFIGS = {"base": {}, "ours": {"variant": "ours"}, "ours_lag": {"variant": "ours", "lag": "auto"}}
MOST_PROMPTS = 1000
_NOT_SAMPLING_DEFAULTS = {"configs", "images_per_prompt", "prompts"}


class Options(Section):
    """Settings of a call that replace the profile's; None leaves the profile's."""

    steps: int | None = Field(None, ge=1, le=1_000_000)
    seed: int | None = None  # of training and of the images' noise
    rank: int | None = Field(None, ge=1, le=100_000)
    lr: LearningRate | None = None
    crop: Literal["center", "pad", "bucket"] | None = None
    model: Annotated[str, Field(min_length=1)] | None = None
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|(cuda|xpu)(:\d{1,3})?)$")] | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    count: int = Field(1, ge=1, le=1000)  # images of each prompt
    preview_every: int = Field(50, ge=0)  # steps of training between two previews; 0: none


UNCHANGED = Options()


def checked_options(values: dict[str, Any]) -> Options:
    """The options of a call by name. Raises PersresError that names the first wrong one as the command line does."""
    try:
        return Options(**values)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        message = problem_lines(error)[0].partition(": ")[2]
        raise PersresError(
            f"--{name.replace('_', '-')} {quoted(values.get(name))}: {message}; persres personalize --help lists the options"
        ) from error


def read_prompts(path: Path) -> tuple[str, ...]:
    """The prompts of a text file, one a line; empty lines and those that start with ``#`` count for nothing.

    Raises PersresError where there is no such file, no prompt in it, or one without ``{}``."""
    if not path.is_file():
        raise PersresError(f"no file {path}; write prompts with {{}} there, one a line")
    prompts = []
    for number, line in enumerate(read_text(path, fix="write prompts there, one a line").split("\n"), 1):
        text = line.strip()
        if text and not text.startswith("#"):
            try:
                prompts.append(_checked_prompt(text))
            except PersresError as error:
                raise PersresError(f"{path}, line {number}: {error}") from error
    if not 0 < len(prompts) <= MOST_PROMPTS:
        problem = f"has {len(prompts)} prompts, more than {MOST_PROMPTS}" if prompts else "has no prompt"
        raise PersresError(f"{path} {problem}; write prompts with {{}} there, one a line")
    return tuple(prompts)


def check_words(prompts: tuple[str, ...], macro_class: str | None) -> None:
    """Raises PersresError for a prompt without ``{}`` and for a class that is no word."""
    for prompt in prompts:
        _checked_prompt(prompt)
    if macro_class is not None and not macro_class.strip():
        raise PersresError("--class is empty; give the object's class, e.g. --class dog, or leave it out")
    if macro_class is not None and re.search(r"[{}/\\]", plain_text(macro_class, "class", longest=100)):
        raise PersresError(f"--class {macro_class!r} is no class; give the object's class in words, e.g. --class dog")


def _checked_prompt(prompt: str) -> str:
    fill(plain_text(prompt, "prompt", allowed="\n\t"), "thing")
    return prompt


def derive(profile: Profile, name: str, photos: Path, zero_shot: bool, options: Options = UNCHANGED) -> Profile:
    """The selected profile's models and training settings for this one concept, with few images and what the options change.

    Raises PersresError for a combination of settings that is not possible."""
    from persres.methods.common.registry import make_profile

    macro = {"source": "zero_shot" if zero_shot else "dataset", "nearest": False, "zero_shot": False}
    train, sample = (
        profile.train.model_dump(exclude={"variants"}),
        profile.sample.model_dump(exclude=_NOT_SAMPLING_DEFAULTS),
    )
    settings = profile.model_dump(include={"base", "encoders", "runtime"}) | {
        "fetch": {"dataset": "folder", "folder": str(photos), "concepts": (name,)},
        "macro_class": profile.macro_class.model_dump() | macro,
        "train": train
        | {
            "default": train["default"] | _given(options, "steps", "seed", "rank", "lr", "crop"),
            "variants": {"ours": {}},
        },
        "sample": sample | _given(options, "seed") | {"images_per_prompt": options.count, "configs": CONFIGS},
        "tables": {"sheet_scale": profile.tables.sheet_scale},
    }
    settings["base"] |= _given(options, "model", "dtype")
    settings["runtime"] |= _given(options, "device")
    if options.model is not None and options.model != profile.base.model:
        settings["base"]["resolution"] = _resolution_of(options.model) or profile.base.resolution
    try:
        return make_profile(settings)
    except ValidationError as error:
        raise PersresError("\n".join(problem_lines(error))) from error


def _given(options: Options, *names: str) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def _resolution_of(model: str) -> int | None:
    """The pixels that a model was trained at, from its small files; None where they do not say. Raises PersresError without the model."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from persres.models.base_model import config_source
    from persres.models.loading import unavailable

    source = config_source(model)
    try:
        unet = UNet2DConditionModel.load_config(source, subfolder="unet")
        vae = AutoencoderKL.load_config(source, subfolder="vae")
        return int(unet["sample_size"]) * 2 ** (len(vae["block_out_channels"]) - 1)
    except (KeyError, TypeError):
        return None
    except (OSError, ValueError) as error:
        raise unavailable("the base model", model, error) from error


def with_previews(profile: Profile, options: Options, prompt: str, folder: Path) -> Profile:
    """The profile whose training samples previews of a prompt into a folder, with the noise of the sheet's first row."""
    if not options.preview_every:
        return profile
    sampling = profile.sample
    previews = Previews(
        every=options.preview_every,
        folder=str(folder),
        prompt=prompt,
        steps=sampling.steps,
        cfg_scale=sampling.cfg_scale,
        seed=sampling.seed,
    )
    return profile.model_copy(update={"runtime": profile.runtime.model_copy(update={"previews": previews})})
