"""Units, images, GPU-hours and disk of a run before it starts, from its profile and the seconds of a step.

The seconds are those that ``make bench-gpu`` measured (``data/bench/gpu.json``), else published ones. They are for Stable Diffusion v1
at 512 pixels; a figure that they do not cover is reported as not known.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field

from persres.config.schema import Profile, VariantSettings
from persres.datasets.registry import dataset_named
from persres.errors import PersresError
from persres.methods.common.registry import load_profile, method_named
from persres.metrics.paper_figures import MODEL
from persres.stages.jobs import sample_cost, train_cost
from persres.training.settings import ResidualSettings
from persres.untrusted.documents import read_json
from persres.untrusted.text import printable

RESOLUTION = 512  # of the measured and published seconds

# Paper 4.1: 150 iterations of batch 4 take about 3 minutes on one A100.
PAPER_STEP_S, PAPER_BATCH = 180 / 150, 4
# github.com/fal-ai/stable-diffusion-benchmarks: SD 1.5, 512×512, 50 steps, A100 80G, diffusers with torch 2.1 SDPA, half
# precision: 1.604 s. Float32 is 73.0/33.0 times slower (RTX 4090, SDP; the wiki of vladmandic/sdnext).
PUBLISHED_IMAGE_S, IMAGE_STEPS, FLOAT32 = 1.604, 50, 73.0 / 33.0
# Paper 3.3 and 1: LAG "does not increase sampling time as no additional model evaluations are needed".

COPIES = 2  # in .work and in data/, which share hard links until DVC copies; its cache holds a third


@dataclass(frozen=True)
class MeasuredSeconds:
    """Seconds on one GPU: a training step of batch 4, an image of 50 steps without and with LAG; and their source.

    The properties are the seconds per unit of cost of a job type (:class:`persres.stages.jobs.JobType`).
    """

    train_step_s: float
    image_s: float
    image_lag_s: float
    source: str
    scored_image_s: float = 0.1  # assumed: there is no published rate
    unit_s: float = 0.1

    @property
    def train_sample_s(self) -> float:
        """Seconds of one training sample."""
        return self.train_step_s / PAPER_BATCH

    @property
    def denoising_step_s(self) -> float:
        """Seconds of one denoising step of one image."""
        return self.image_s / IMAGE_STEPS

    @property
    def lag_step_s(self) -> float:
        """Seconds of one denoising step of one image with LAG."""
        return self.image_lag_s / IMAGE_STEPS


Rate = Annotated[float, Field(gt=0, lt=1e9)]


class _Measured(BaseModel):
    """``data/bench/gpu.json``, as far as it is read."""

    train_step_s: Rate
    train_batch: Rate
    image_s: Annotated[dict[str, Rate], Field(min_length=1)]
    image_lag_s: Annotated[dict[str, Rate], Field(min_length=1)]
    sample_steps: Rate
    device: str | None = None


@dataclass(frozen=True)
class Line:
    """The estimate of one stage. ``hours`` and ``bytes`` are None if not known; ``unknown`` names what they leave out."""

    stage: str
    units: int
    images: int = 0
    hours: float | None = None
    bytes: int | None = None
    unknown: str = ""


def read_measured_seconds(path: Path, dtype: str = "float32") -> MeasuredSeconds:
    """The measured seconds if the file exists, else the published ones. Raises PersresError for a broken file."""
    if not path.exists():
        factor, note = (FLOAT32, ", times 2.2 for float32") if dtype == "float32" else (1.0, "")
        source = f"published: the paper's 3 minutes for 150 steps on an A100; 1.6 s per half-precision image on an A100{note}"
        return MeasuredSeconds(PAPER_STEP_S, PUBLISHED_IMAGE_S * factor, PUBLISHED_IMAGE_S * factor, source)
    try:
        measured = read_json(path, _Measured, "run make bench-gpu again, or delete it")
    except PersresError as error:
        raise PersresError(f"{path} does not hold measured rates: {error}") from error
    step = measured.train_step_s * PAPER_BATCH / measured.train_batch
    # seconds per image by batch size: a run uses the fastest
    images = [min(s.values()) * IMAGE_STEPS / measured.sample_steps for s in (measured.image_s, measured.image_lag_s)]
    return MeasuredSeconds(step, *images, source=f"measured on {printable(measured.device)}: {path}")


def make_estimate(profile: Profile, seconds: MeasuredSeconds) -> list[Line]:
    """The estimates of the stages, in order."""
    concepts, prompts = dataset_named(profile.fetch.dataset).size(profile.fetch)
    covered = seconds if profile.base.resolution == RESOLUTION else None
    sample = _sample(profile, concepts, prompts, covered)
    nouns = profile.macro_class.uses_nouns
    return [
        Line("fetch", concepts, unknown="size of the photos"),
        Line("macro_class", concepts, hours=None if nouns else 0.0, unknown="time" if nouns else ""),
        _train(profile, concepts, covered),
        sample,
        Line("score", sample.units, sample.images, unknown="time"),
        Line("tables", 1, hours=0.0),
    ]


def _train(profile: Profile, concepts: int, seconds: MeasuredSeconds | None) -> Line:
    variants = profile.train.variants
    counts = {name: _trained(variant, concepts) for name, variant in variants.items()}
    images = _class_images(profile, concepts)
    timed = {n: v for n, v in variants.items() if seconds is not None and isinstance(v, ResidualSettings)}
    sizes = {name: _file_bytes(profile, variant) for name, variant in variants.items()}
    known = [size * counts[name] for name, size in sizes.items() if size is not None]
    unknown = _of("time", [name for name in variants if name not in timed], variants)
    unknown += _of("size", [name for name, size in sizes.items() if size is None], variants)
    unknown += ["the number of concepts that share a class, and so class images"] * bool(images)
    unknown += _of(
        "when early stopping ends the training", [n for n, v in timed.items() if v.stop != "steps"], variants
    )
    hours = None
    if seconds is not None and (timed or images):
        training = sum(counts[name] * train_cost(variant) for name, variant in timed.items()) * seconds.train_sample_s
        hours = (training + images * profile.train.class_images.steps * seconds.denoising_step_s) / 3600
    size = COPIES * sum(known) if known else None
    return Line("train", sum(counts.values()), images, hours, size, "; ".join(unknown))


def _trained(variant: VariantSettings, concepts: int) -> int:
    """The number of concepts that a variant is trained on."""
    return min(concepts, variant.concepts or concepts)


def _of(what: str, names: list[str], every: dict) -> list[str]:
    """``what`` of the named variants as one phrase, or nothing."""
    if not names:
        return []
    return [what if len(names) == len(every) else f"{what} of {', '.join(names)}"]


def _class_images(profile: Profile, concepts: int) -> int:
    """Class images to sample: one set per prompt, count and class; at most as many classes as concepts."""
    sets: dict[tuple[str, int], int] = {}
    for variant in profile.train.variants.values():
        request = variant.class_images()
        if request is not None and request.folder is None:
            key = request.prompt, request.count
            sets[key] = max(sets.get(key, 0), _trained(variant, concepts))
    return sum(count * classes for (_, count), classes in sets.items())


def _file_bytes(profile: Profile, variant: VariantSettings) -> int | None:
    """The size of one concept's learned file on Stable Diffusion v1.4, None if not known."""
    size = getattr(method_named(variant.method), "sd14_file_bytes", None)
    return size(variant) if size is not None and profile.base.model == MODEL else None


def _sample(profile: Profile, concepts: int, prompts: int, seconds: MeasuredSeconds | None) -> Line:
    units, images, masks, total = 0, 0, 0, 0.0
    for sampling in map(profile.sample.config, profile.sample.configs):
        sampled = concepts if sampling.variant is None else _trained(profile.train.variant(sampling.variant), concepts)
        every = prompts if sampling.prompts is None else min(prompts, sampling.prompts * concepts)
        count = every * sampled // concepts * sampling.images_per_prompt
        units, images, masks = units + sampled, images + count, masks + count * bool(sampling.lag)
        if seconds is not None:
            total += sample_cost(count, sampling) * (seconds.lag_step_s if sampling.lag else seconds.denoising_step_s)
    pixels = prod((profile.base.resolution, profile.base.resolution, 3))  # a PNG is at most about its raw pixels
    size = COPIES * (images * pixels + masks * (profile.base.resolution // 8) ** 2)
    hours = None if seconds is None else total / 3600
    return Line("sample", units, images, hours, size, "" if seconds else "time")


def as_text(lines: list[Line], seconds: MeasuredSeconds, profile: Profile) -> str:
    """The estimate as a table, with what it leaves out and the source of the seconds."""
    rows = [f"{'stage':12} {'units':>7} {'images':>9} {'GPU-hours':>10} {'disk':>10}  not known"]
    for line in lines:
        hours = "–" if line.hours is None else f"{line.hours:.1f}"
        row = f"{line.stage:12} {line.units:7,} {line.images:9,} {hours:>10} {_disk(line.bytes):>10}  {line.unknown}"
        rows.append(row.rstrip())
    hours, size = sum(line.hours or 0 for line in lines), sum(line.bytes or 0 for line in lines)
    rows.append(f"{'known':12} {'':7} {'':9} {hours:10.1f} {_disk(size):>10}")
    if profile.base.resolution == RESOLUTION:
        rows.append(
            f"\nRates, {seconds.source}: {seconds.train_step_s:.3g} s per training step of batch {PAPER_BATCH}, "
            f"{seconds.image_s:.3g} s per image of {IMAGE_STEPS} steps, {seconds.image_lag_s:.3g} s with LAG."
        )
    else:
        rows.append(f"\nRates are known for {RESOLUTION} pixels only; this profile has {profile.base.resolution}.")
    rows.append(
        "GPU-hours are of one GPU; divide by the number that share the work. Disk is an upper bound (raw pixels, in .work and in"
        " data/); DVC's cache takes data/ once more."
    )
    return "\n".join(rows)


def _disk(size: int | None) -> str:
    if size is None:
        return "–"
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"


def estimate_text(params: Path, profile: str | None, data: Path) -> str:
    """The estimate of a profile as text. Raises PersresError with the profile's problems."""
    settings = load_profile(params, profile)
    seconds = read_measured_seconds(data / "bench" / "gpu.json", settings.base.dtype)
    return as_text(make_estimate(settings, seconds), seconds, settings)
