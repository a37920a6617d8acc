"""``persres preflight``: known answers on a profile's real models, in minutes, before a run of days.

One subject goes through the stages fetch to score with the profile's models, as ``dvc repro`` would send it, in the work folder's
``preflight``. Each check compares a measured figure with what is published or must hold, and says what to do where it does not.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from persres.config.schema import Fetch, Profile
from persres.datasets.layout import read_concepts
from persres.datasets.registry import dataset_named
from persres.errors import PersresError
from persres.exports.export import export
from persres.exports.verify import largest_difference
from persres.methods.common.registry import make_profile
from persres.metrics.background import background_difference
from persres.metrics.paper_figures import MODEL, PAPER
from persres.models.diffusion import load_tokenizer
from persres.models.text_encoding import rare_token_id
from persres.planning.measured_runs import PREFLIGHT
from persres.reproduction.readiness import check_models
from persres.residuals.file import load_residual
from persres.units.context import Context
from persres.units.costs import FOLDER, SAMPLE, TRAIN
from persres.units.files import write_atomic
from persres.units.outputs import learned_path, scores_path
from persres.units.provenance import library_versions
from persres.untrusted.documents import read_csv
from persres.untrusted.text import printable
from persres.workflow import run_stage

SUBJECT = "dog6"  # of DreamBooth's dataset, which is smaller than the paper's benchmark
PROMPTS = 16
CONFIGS = {"base": {}, "ours": {"variant": "ours"}, "ours_lag": {"variant": "ours", "lag": True}}
STAGES = ("fetch", "macro_class", "train", "sample", "score")
BASE_TEXT = PAPER["table1"]["Stable Diffusion"][0]
# The base model's CLIP text score. The paper's is a mean over 2,020 prompts; sixteen spread, so a tenth to either side.
TEXT_SCORES = {MODEL: (BASE_TEXT - 0.1, BASE_TEXT + 0.1)}
LAYERS, PARAMETERS = {MODEL: 16}, {MODEL: 1_239_040}  # of a residual with the paper's ranks
SAME_LATENTS = 1e-3  # a wrong scale of an export changes latents by tenths, rounding at full size by 1e-4
DINO_GAIN = 0.09  # a third of the paper's mean over its benchmark, 0.5671 - 0.2920
STEPS, BATCH, PAPER_S, SLOWEST_S = 150, 4, 180, 540  # the paper's training on an A100, and thrice its seconds


@dataclass(frozen=True)
class Check:
    """One check: ``state`` is pass, fail or skipped; ``fix`` says what to do after a fail."""

    name: str
    state: str
    measured: str
    expected: str
    fix: str = ""


@dataclass(frozen=True)
class Report:
    """All checks, and what they ran on."""

    profile: str
    model: str
    dtype: str
    resolution: int
    concept: str
    checks: tuple[Check, ...]
    device: str = ""
    versions: dict[str, str] = field(default_factory=library_versions)

    @property
    def failed(self) -> list[Check]:
        """The checks that do not pass."""
        return [check for check in self.checks if check.state == "fail"]

    def text(self) -> str:
        """A table for people, with what to do below each fail."""
        head = f"profile {self.profile}: {printable(self.model, 200)}, {self.resolution} pixels, {self.dtype}, on {self.device or 'nothing yet'}"
        lines = [
            f"{c.state:<8}{c.name:<22}{c.measured}  (expected: {c.expected})" + (f"\n{'':8}-> {c.fix}" if c.fix else "")
            for c in self.checks
        ]
        return "\n".join([head, "", *(printable(line, 3000, lines=True) for line in lines)])

    def as_json(self) -> str:
        """The same for an issue or a script."""
        return json.dumps(asdict(self), indent=1) + "\n"


def derived_profile(profile: Profile, concept: str | None) -> Profile:
    """One concept and three configs of 16 images with the profile's models and training settings.

    The paper's benchmark is replaced by DreamBooth's dataset. Raises PersresError where a folder holds no concept.
    """
    fetch = profile.fetch.model_dump()
    if profile.fetch.dataset == "customconcept101":
        fetch = {"dataset": "dreambooth"}
        name = concept or SUBJECT
    else:
        name = concept or _first(profile.fetch)
    settings = profile.model_dump(include={"base", "encoders", "runtime"}) | {
        "fetch": fetch | {"concepts": (name,)},
        "macro_class": {"source": "dataset"},
        "train": profile.train.model_dump(exclude={"variants"}) | {"variants": {"ours": {}}},
        "sample": profile.sample.model_dump(exclude={"configs", "prompts", "images_per_prompt"})
        | {"images_per_prompt": 1, "prompts": PROMPTS, "configs": CONFIGS},
    }
    return make_profile(settings)


def _first(fetch: Fetch) -> str:
    """The first concept that the profile names, else the first of its dataset."""
    if fetch.concepts or fetch.dataset == "dreambooth":
        return fetch.concepts[0] if fetch.concepts else SUBJECT
    with TemporaryDirectory() as folder:
        dataset_named(fetch.dataset).fetch(fetch, Path(folder))
        return read_concepts(Path(folder))[0][0].name


class Results:
    """What the stages left, read on first use."""

    def __init__(self, context: Context, concept: str) -> None:
        self.context, self.concept, self.profile = context, concept, context.profile

    @property
    def residual(self) -> Path:
        """The trained residual's file."""
        return learned_path(self.context.data, "ours", self.concept)

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Mean scores by config."""
        return pd.read_parquet(scores_path(self.context.data)).groupby("config")[["clip_text", "dino"]].mean()

    @cached_property
    def costs(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The row of training, and of sampling with LAG."""
        folder = self.context.data / FOLDER
        train, sample = (read_csv(folder / name, dict[str, Any], "run it again") for name in (TRAIN, SAMPLE))
        return train.iloc[0].to_dict(), sample[sample["config"] == "ours_lag"].iloc[0].to_dict()

    def images(self, config: str) -> dict[str, Image.Image]:
        """A config's images and masks by their names in the archive."""
        from persres.images import unzip_images

        return unzip_images(self.context.data / "samples" / config / f"{self.concept}.zip")


def preflight(name: str, profile: Profile, concept: str | None = None, work: Path = Path(".work")) -> Report:
    """Run one concept and check it; ``name``: the profile's. Finished units of an earlier, killed call are not run again.

    Raises PersresError where there is no concept to run; what fails later is a failed check of the report.
    """
    derived = derived_profile(profile, concept)
    concept, base, folder = derived.fetch.concepts[0], derived.base, work / PREFLIGHT
    results = Results(Context(derived, folder / "data", folder), concept)
    checks = _run(results)
    ran = all(check.state == "pass" for check in checks)
    checks += [_checked(*known, results) if ran else Check(known[0], "skipped", "–", known[1]) for known in CHECKS]
    device = str(results.costs[0]["device"]) if ran else ""
    return Report(name, base.model, base.dtype, base.resolution, concept, tuple(checks), device)


def write_report(report: Report, path: Path) -> None:
    """Write the report as JSON."""
    write_atomic(path, report.as_json().encode())


def _run(results: Results) -> list[Check]:
    """The checks of the models and of the stages, up to the first that fails."""
    checks = [_checked("models", "they load, and the rare token is one token", _models, results)]
    for stage in STAGES if checks[0].state == "pass" else ():
        try:
            run_stage(stage, results.context)
        except (PersresError, RuntimeError) as error:  # RuntimeError: out of memory
            fix = "correct what the message names, then run it again"
            return [*checks, Check(f"stage {stage}", "fail", printable(error, 1000), "it runs", fix)]
    return checks


Answer = Callable[
    ["Results"], tuple[bool | None, str, str]
]  # whether it holds (None: no known answer), what was measured, what to do


def _checked(name: str, expected: str, check: Answer, results: Results) -> Check:
    try:
        holds, measured, fix = check(results)
    except (PersresError, RuntimeError) as error:
        return Check(
            name, "fail", printable(error, 1000), expected, "correct what the message names, then run it again"
        )
    if holds is None:
        return Check(name, "skipped", measured, "no published figure")
    return Check(name, "pass", measured, expected) if holds else Check(name, "fail", measured, expected, fix)


def _models(results: Results) -> tuple[bool, str, str]:
    finding = check_models(results.profile)
    return finding.state == "ok", finding.says, finding.fix


def _token(results: Results) -> tuple[bool, str, str]:
    base = results.profile.base
    number = rare_token_id(
        load_tokenizer(base), base.rare_token
    )  # raises for several tokens, as the models' check does
    return True, f"{base.rare_token!r} is token {number}", ""


def _size(results: Results) -> tuple[bool | None, str, str]:
    residual, model = load_residual(results.residual), results.profile.base.model
    default = results.profile.train.variant("ours")
    count = sum(factor.numel() for layer in residual.layers.values() for factor in (layer.down, layer.up))
    measured = f"{count:,} parameters in {len(residual.layers)} layers"
    if model not in LAYERS or (default.rank, default.rank_ratio, default.target) != (None, 0.05, "proj_out"):
        return None, measured, ""
    holds = (len(residual.layers), count) == (LAYERS[model], PARAMETERS[model])
    return holds, measured, "base.model has other layers than Stable Diffusion v1.4; check the name or the folder"


def _text(results: Results) -> tuple[bool | None, str, str]:
    score = results.scores.loc["base", "clip_text"]
    low, high = TEXT_SCORES.get(results.profile.base.model, (None, None))
    fix = "check encoders.clip (ViT-B-32-quickgelu, openai), base.dtype, and some images in .work/preflight/data/samples/base"
    if low is None:
        return None, f"{score:.3f}", fix
    return bool(low <= score <= high), f"{score:.3f}, of {low:.2f} to {high:.2f}", fix


def _gain(results: Results) -> tuple[bool, str, str]:
    before, after = results.scores.loc[["base", "ours"], "dino"]
    fix = "see the images in .work/preflight/data/samples; check the photos, rare_token, lr and steps of train"
    return bool(after - before >= DINO_GAIN), f"{before:.3f} to {after:.3f}, {after - before:+.3f}", fix


def _background(results: Results) -> tuple[bool, str, str]:
    """Mean squared differences from the base model's images outside of LAG's masks."""
    base, ours, lag = (results.images(config) for config in CONFIGS)
    size = next(iter(base.values())).size
    masks = [lag[f"masks/{name}"].resize(size, Image.Resampling.NEAREST).convert("L") for name in base]
    inside = np.stack([np.asarray(mask) >= 128 for mask in masks])
    pixels = [np.stack([np.asarray(images[name]) for name in base]) for images in (base, ours, lag)]
    whole, masked = (np.nanmean(background_difference(some, pixels[0], inside, inside)) for some in pixels[1:])
    fix = "see the masks in .work/preflight/data/samples/ours_lag; report this with the JSON file"
    return bool(masked < whole), f"{masked:.4f} with LAG, {whole:.4f} without", fix


def _export(results: Results) -> tuple[bool, str, str]:
    out = results.context.work / "export" / f"{results.concept}.safetensors"
    export(results.residual, "diffusers", out)
    difference = largest_difference(results.residual, out, device=results.profile.runtime.device)
    fix = "do not publish exports; report this with the versions of diffusers and peft"
    return difference <= SAME_LATENTS, f"latents differ by at most {difference:.2g}", fix


def _time(results: Results) -> tuple[bool | None, str, str]:
    train, sample = results.costs
    settings = results.profile.train.variant("ours")
    if pd.isna(train["seconds"]):
        return None, f"{train['peak_mib']:,.0f} MiB; a resumed training is not timed", ""
    seconds = train["seconds"] * STEPS * BATCH / (settings.steps * settings.batch_size)
    image = "" if pd.isna(sample["image_seconds"]) else f"; {sample['image_seconds']:.2f} s per image with LAG"
    fix = "set base.dtype: bfloat16, or use a faster GPU; see persres estimate for the hours of the whole run"
    return seconds <= SLOWEST_S, f"{seconds:.0f} s, {train['peak_mib']:,.0f} MiB{image}", fix


CHECKS: tuple[tuple[str, str, Answer], ...] = (
    ("rare token", "one token", _token),
    ("residual", f"{PARAMETERS[MODEL]:,} parameters in {LAYERS[MODEL]} layers", _size),
    ("base CLIP text", f"the known range; paper, {MODEL}: {BASE_TEXT:.2f}", _text),
    ("DINO, base to ours", f"a gain of {DINO_GAIN} (paper: 0.275 on its benchmark)", _gain),
    ("background, LAG", "less change than without LAG", _background),
    ("export", f"plain diffusers draws the same, to {SAME_LATENTS:g}", _export),
    (f"{STEPS} steps of batch {BATCH}", f"at most {SLOWEST_S} s (paper: about {PAPER_S} s on an A100)", _time),
)
