"""Units, images, GPU-hours and disk of a run before it starts, from its profile and the seconds of a step.

The seconds are those of earlier runs of the same models (``.work``), else those that ``make bench-gpu`` measured (``data/bench/gpu.json``),
else published ones. The last two are for Stable Diffusion v1 at 512 pixels; a figure that none covers is reported as not known.
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
from persres.planning.measured_runs import EarlierRuns, earlier_runs, sampled_as
from persres.stages.jobs import sample_cost, train_cost
from persres.training.settings import ResidualSettings
from persres.untrusted.documents import read_json
from persres.untrusted.text import printable

NO_RUNS = EarlierRuns()
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
    dtype: str | None = None


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
    return MeasuredSeconds(step, *images, source=f"measured {_where(measured, dtype)}: {path}")


def _where(measured: _Measured, dtype: str) -> str:
    """The device and the dtype of a measurement, and a note where the profile's dtype is another."""
    where = f"on {printable(measured.device)}" + (f" in {printable(measured.dtype)}" if measured.dtype else "")
    return where if measured.dtype in (None, dtype) else f"{where}, not in the profile's {dtype}"


@dataclass(frozen=True)
class Seconds:
    """Seconds per unit of cost: those of earlier ``runs``, else ``covered``, the measured or published ones, None for other resolutions."""

    runs: EarlierRuns
    covered: MeasuredSeconds | None

    def train(self, variant: VariantSettings) -> float | None:
        """Of one training sample of a variant; None if not known."""
        known = self.covered.train_sample_s if self.covered and isinstance(variant, ResidualSettings) else None
        return self.runs.seconds.get(f"train {variant.method}", known)

    def sample(self, method: str | None, lag: bool) -> float | None:
        """Of one denoising step of one image."""
        known = self.covered and (self.covered.lag_step_s if lag else self.covered.denoising_step_s)
        return self.runs.seconds.get(sampled_as(method, lag), known)

    @property
    def class_images(self) -> float | None:
        """Of one denoising step of one class image."""
        return self.runs.seconds.get("class_images", self.sample(None, False))


def make_estimate(profile: Profile, seconds: MeasuredSeconds, runs: EarlierRuns = NO_RUNS) -> list[Line]:
    """The estimates of the stages, in order. ``runs``: what earlier runs measured, which counts more than ``seconds``."""
    concepts, prompts = dataset_named(profile.fetch.dataset).size(profile.fetch)
    known = Seconds(runs, seconds if profile.base.resolution == RESOLUTION else None)
    sample, scored = _sample(profile, concepts, prompts, known), runs.seconds.get("score")
    nouns = profile.macro_class.uses_nouns
    return [
        Line("fetch", concepts, unknown="size of the photos"),
        Line("macro_class", concepts, hours=None if nouns else 0.0, unknown="time" if nouns else ""),
        _train(profile, concepts, known),
        sample,
        Line(
            "score",
            sample.units,
            sample.images,
            _hours(sample.images * scored if scored else None),
            None,
            "" if scored else "time",
        ),
        Line("tables", 1, hours=0.0),
    ]


def _hours(seconds: float | None) -> float | None:
    return None if seconds is None else seconds / 3600


def _train(profile: Profile, concepts: int, seconds: Seconds) -> Line:
    variants = profile.train.variants
    counts = {name: _trained(variant, concepts) for name, variant in variants.items()}
    images, class_step = _class_images(profile, concepts), seconds.class_images
    timed = {n: rate for n, v in variants.items() if (rate := seconds.train(v)) is not None}
    sizes = {name: _file_bytes(profile, variant) for name, variant in variants.items()}
    unknown = _of("time", [name for name in variants if name not in timed], variants)
    unknown += _of("size", [name for name, size in sizes.items() if size is None], variants)
    unknown += ["the number of concepts that share a class, and so class images"] * bool(images)
    unknown += ["time of the class images"] * bool(images and class_step is None and timed)
    early = [n for n in timed if isinstance(variants[n], ResidualSettings) and variants[n].stop != "steps"]
    unknown += _of("when early stopping ends the training", early, variants)
    total = sum(counts[name] * train_cost(variants[name]) * rate for name, rate in timed.items())
    if images and class_step is not None:
        total += images * profile.train.class_images.steps * class_step
    known = [size * counts[name] for name, size in sizes.items() if size is not None]
    hours = _hours(total) if timed or (images and class_step is not None) else None
    return Line(
        "train", sum(counts.values()), images, hours, COPIES * sum(known) if known else None, "; ".join(unknown)
    )


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


def _sample(profile: Profile, concepts: int, prompts: int, seconds: Seconds) -> Line:
    units, images, masks, total, untimed = 0, 0, 0, 0.0, []
    for name, sampling in ((name, profile.sample.config(name)) for name in profile.sample.configs):
        variant = None if sampling.variant is None else profile.train.variant(sampling.variant)
        sampled = concepts if variant is None else _trained(variant, concepts)
        every = prompts if sampling.prompts is None else min(prompts, sampling.prompts * concepts)
        count = every * sampled // concepts * sampling.images_per_prompt
        units, images, masks = units + sampled, images + count, masks + count * bool(sampling.lag)
        cost, rate = sample_cost(count, sampling), seconds.sample(variant and variant.method, bool(sampling.lag))
        total += cost * (rate or 0.0)
        untimed += [name] if cost and rate is None else []
    pixels = prod((profile.base.resolution, profile.base.resolution, 3))  # a PNG is at most about its raw pixels
    size = COPIES * (images * pixels + masks * (profile.base.resolution // 8) ** 2)
    unknown = "; ".join(_of("time", untimed, profile.sample.configs))
    return Line("sample", units, images, _hours(total) if total else None, size, unknown)


def as_text(lines: list[Line], seconds: MeasuredSeconds, profile: Profile, runs: EarlierRuns = NO_RUNS) -> str:
    """The estimate as a table, with what it leaves out and the source of the seconds."""
    rows = [f"{'stage':12} {'units':>7} {'images':>9} {'GPU-hours':>10} {'disk':>10}  not known"]
    for line in lines:
        hours = "–" if line.hours is None else f"{line.hours:.1f}"
        row = f"{line.stage:12} {line.units:7,} {line.images:9,} {hours:>10} {_disk(line.bytes):>10}  {line.unknown}"
        rows.append(row.rstrip())
    hours, size = totals(lines)
    rows.append(f"{'known':12} {'':7} {'':9} {hours:10.1f} {_disk(size):>10}\n")
    rows += _sources(seconds, profile, runs)
    rows.append(
        "GPU-hours are of one GPU; divide by the number that share the work. Disk is an upper bound (raw pixels, in .work and in"
        " data/); DVC's cache takes data/ once more."
    )
    return "\n".join(rows)


def totals(lines: list[Line]) -> tuple[float, int]:
    """The known hours and bytes of all stages."""
    return sum(line.hours or 0 for line in lines), sum(line.bytes or 0 for line in lines)


def _sources(seconds: MeasuredSeconds, profile: Profile, runs: EarlierRuns) -> list[str]:
    """Which seconds count, on what and in which dtype they were measured."""
    base, rows = profile.base, []
    if runs.seconds:
        where = f"{', '.join(map(printable, runs.devices))}, {base.dtype}, {base.resolution} pixels"
        rows.append(f"Rates of earlier runs of {printable(base.model, 200)} ({where}): {runs.text()}.")
    if base.resolution != RESOLUTION:
        return [
            *rows,
            f"{'Other rates' if runs.seconds else 'Rates'} are known for {RESOLUTION} pixels only; this profile has {base.resolution}.",
        ]
    rest = "Other rates" if runs.seconds else f"Rates for {base.dtype}"
    return [
        *rows,
        f"{rest}, {seconds.source}: {seconds.train_step_s:.3g} s per training step of batch {PAPER_BATCH}, "
        f"{seconds.image_s:.3g} s per image of {IMAGE_STEPS} steps, {seconds.image_lag_s:.3g} s with LAG.",
    ]


def _disk(size: int | None) -> str:
    if size is None:
        return "–"
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"


def estimated(profile: Profile, data: Path, work: Path) -> tuple[list[Line], str]:
    """The estimate of a run with this profile, and the same as text."""
    seconds = read_measured_seconds(data / "bench" / "gpu.json", profile.base.dtype)
    runs = earlier_runs(work, profile)
    lines = make_estimate(profile, seconds, runs)
    return lines, as_text(lines, seconds, profile, runs)


def estimate_text(params: Path, profile: str | None, data: Path, work: Path = Path(".work")) -> str:
    """The estimate of a profile as text. Raises PersresError with the profile's problems."""
    return estimated(load_profile(params, profile), data, work)[1]
