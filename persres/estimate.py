"""``persres estimate``: units, pictures, GPU-hours and disk of a run before it starts, from its profile and named rates.

Rates are those that ``make bench-gpu`` measured (``data/bench/gpu.json``) where the file is there, else the published ones
below. They are for Stable Diffusion v1 at 512 pixels; what no rate covers is "not known", never guessed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path

from persres.config.schema import Profile, VariantSettings
from persres.datasets.registry import dataset_named
from persres.errors import PersresError
from persres.methods.common.registry import load_profile
from persres.metrics.paper_figures import MODEL
from persres.training.settings import ResidualSettings

RESOLUTION = 512  # what the rates are for

# Paper 4.1: 150 iterations of batch 4 take about 3 minutes on one A100.
PAPER_STEP_S, PAPER_BATCH = 180 / 150, 4
# github.com/fal-ai/stable-diffusion-benchmarks: SD 1.5, 512×512, 50 steps, A100 80G, diffusers with torch 2.1 SDPA, half
# precision: 1.604 s. Float32 is 73.0/33.0 times slower (RTX 4090, SDP; the wiki of vladmandic/sdnext).
PUBLISHED_IMAGE_S, IMAGE_STEPS, FLOAT32 = 1.604, 50, 73.0 / 33.0
# Paper 3.3 and 1: LAG "does not increase sampling time as no additional model evaluations are needed".

# Stable Diffusion v1's output projections by width: five of 320, five of 640, six of 1280 channels.
PROJECTIONS = ((320, 5), (640, 5), (1280, 6))
# Numbers that a rival trains on Stable Diffusion v1.4 (tests/methods/test_rivals.py); its state is kept in half precision.
RIVAL_NUMBERS = {"textual_inversion": 768, "dreambooth": 859_520_964, "custom_diffusion": 19_170_048}

COPIES = 2  # in .work and published in data/; DVC's cache holds a third where its file system can't link


@dataclass(frozen=True)
class MeasuredSeconds:
    """Seconds on one GPU: a training step of batch 4, a picture of 50 steps without and with LAG; and whose numbers these are."""

    train_step_s: float
    image_s: float
    image_lag_s: float
    source: str


@dataclass(frozen=True)
class Line:
    """One stage. ``hours`` and ``bytes`` are None where not known; ``unknown`` says what they leave out."""

    stage: str
    units: int
    images: int = 0
    hours: float | None = None
    bytes: int | None = None
    unknown: str = ""


def read_measured_seconds(path: Path, dtype: str = "float32") -> MeasuredSeconds:
    """The measured rates where the file is there, else the published. Raises PersresError for a broken file."""
    if not path.exists():
        slower, said = (FLOAT32, ", times 2.2 for float32") if dtype == "float32" else (1.0, "")
        said = f"published: the paper's 3 minutes for 150 steps on an A100; 1.6 s a half-precision picture on an A100{said}"
        return MeasuredSeconds(PAPER_STEP_S, PUBLISHED_IMAGE_S * slower, PUBLISHED_IMAGE_S * slower, said)
    try:
        found = json.loads(path.read_text())
        rates = {"train_step_s": found["train_step_s"] * PAPER_BATCH / found["train_batch"]}
        for key in ("image_s", "image_lag_s"):  # seconds a picture by batch size: a run takes the best
            rates[key] = min(found[key].values()) * IMAGE_STEPS / found["sample_steps"]
        if min(rates.values()) <= 0:
            raise ValueError("a rate is not above zero")
    except (ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError) as error:
        raise PersresError(
            f"{path} does not hold measured rates ({error!r}); run make bench-gpu again, or delete it"
        ) from error
    return MeasuredSeconds(**rates, source=f"measured on {found.get('device')}: {path}")


def make_estimate(profile: Profile, rates: MeasuredSeconds) -> list[Line]:
    """The stages in order."""
    concepts, prompts = dataset_named(profile.fetch.dataset).size(profile.fetch)
    covered = rates if profile.base.resolution == RESOLUTION else None
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


def _train(profile: Profile, concepts: int, rates: MeasuredSeconds | None) -> Line:
    variants = profile.train.variants
    images = _class_images(profile, concepts)
    timed = {name: v for name, v in variants.items() if rates is not None and isinstance(v, ResidualSettings)}
    sizes = {name: _state_bytes(profile, variant) for name, variant in variants.items()}
    sized = [size * _learned(variants[name], concepts) for name, size in sizes.items() if size is not None]
    unknown = _of("time", [name for name in variants if name not in timed], variants)
    unknown += _of("size", [name for name, size in sizes.items() if size is None], variants)
    hours = _train_seconds(profile, concepts, images, timed, rates) / 3600 if timed or (rates and images) else None
    size = COPIES * sum(sized) if sized else None
    note = ["how many concepts share a class, and so class images"] * bool(images)
    note += _of("how early training stops", [n for n, v in timed.items() if v.stop != "steps"], variants)
    units = sum(_learned(v, concepts) for v in variants.values())
    return Line("train", units, images, hours, size, "; ".join(unknown + note))


def _train_seconds(
    profile: Profile, concepts: int, images: int, timed: dict[str, ResidualSettings], rates: MeasuredSeconds
) -> float:
    """Class images first, then every concept by every variant that has a rate; class images double a step."""
    steps = sum(
        _learned(v, concepts) * v.steps * (2 if v.class_images() else 1) * v.batch_size / PAPER_BATCH
        for v in timed.values()
    )
    sampling = images * rates.image_s * profile.train.class_images.steps / IMAGE_STEPS
    return sampling + steps * rates.train_step_s


def _learned(variant: VariantSettings, concepts: int) -> int:
    """How many of the concepts a variant learns."""
    return min(concepts, variant.concepts or concepts)


def _of(what: str, names: list[str], every: dict) -> list[str]:
    """``what`` of the named variants, as one phrase, or none."""
    if not names:
        return []
    return [what if len(names) == len(every) else f"{what} of {', '.join(names)}"]


def _class_images(profile: Profile, concepts: int) -> int:
    """Class images to draw: one set per prompt, count and class; at most as many classes as concepts."""
    sets: dict[tuple[str, int], int] = {}
    for variant in profile.train.variants.values():
        request = variant.class_images()
        if request is not None and request.folder is None:
            key = request.prompt, request.count
            sets[key] = max(sets.get(key, 0), _learned(variant, concepts))
    return sum(count * classes for (_, count), classes in sets.items())


def _state_bytes(profile: Profile, variant: VariantSettings) -> int | None:
    """What one concept's learned file takes on Stable Diffusion v1, None where that is not known."""
    if profile.base.model != MODEL:
        return None
    if not isinstance(variant, ResidualSettings):
        return 2 * RIVAL_NUMBERS[variant.method] if variant.method in RIVAL_NUMBERS else None
    if variant.target == "attn_kv":
        return None
    return 4 * sum(2 * m * (variant.rank or max(1, round(variant.rank_ratio * m))) * n for m, n in PROJECTIONS)


def _sample(profile: Profile, concepts: int, prompts: int, rates: MeasuredSeconds | None) -> Line:
    units, images, seconds, masks = 0, 0, 0.0, 0
    for sampling in map(profile.sample.config, profile.sample.configs):
        drawn = concepts if sampling.variant is None else _learned(profile.train.variant(sampling.variant), concepts)
        every = prompts if sampling.prompts is None else min(prompts, sampling.prompts * concepts)
        count = every * drawn // concepts * sampling.images_per_prompt
        units, images, masks = units + drawn, images + count, masks + count * bool(sampling.lag)
        if rates is not None:
            seconds += count * (rates.image_lag_s if sampling.lag else rates.image_s) * sampling.steps / IMAGE_STEPS
    pixels = prod((profile.base.resolution, profile.base.resolution, 3))  # a PNG is at most about its raw pixels
    size = COPIES * (images * pixels + masks * (profile.base.resolution // 8) ** 2)
    hours = None if rates is None else seconds / 3600
    return Line("sample", units, images, hours, size, "" if rates else "time")


def as_text(lines: list[Line], rates: MeasuredSeconds, profile: Profile) -> str:
    """The plan as a table, with what is left out and whose rates were used."""
    rows = [f"{'stage':12} {'units':>7} {'pictures':>9} {'GPU-hours':>10} {'disk':>10}  not known"]
    for line in lines:
        hours = "–" if line.hours is None else f"{line.hours:.1f}"
        rows.append(
            f"{line.stage:12} {line.units:7,} {line.images:9,} {hours:>10} {_disk(line.bytes):>10}  {line.unknown}".rstrip()
        )
    hours, size = sum(line.hours or 0 for line in lines), sum(line.bytes or 0 for line in lines)
    rows.append(f"{'known':12} {'':7} {'':9} {hours:10.1f} {_disk(size):>10}")
    if profile.base.resolution == RESOLUTION:
        rows.append(
            f"\nRates, {rates.source}: {rates.train_step_s:.3g} s a training step of batch {PAPER_BATCH}, "
            f"{rates.image_s:.3g} s a picture of {IMAGE_STEPS} steps, {rates.image_lag_s:.3g} s with LAG."
        )
    else:
        rows.append(f"\nRates are known for {RESOLUTION} pixels only; this profile draws {profile.base.resolution}.")
    rows.append(
        "GPU-hours are of one GPU, and divide by as many as share the work. Disk is an upper bound (raw pixels, in .work and "
        "again in data/); DVC's cache takes data/ once more."
    )
    return "\n".join(rows)


def _disk(size: int | None) -> str:
    if size is None:
        return "–"
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"


def estimate_text(params: Path, profile: str | None, data: Path) -> str:
    """The plan of a profile; starts and asks nothing. Raises PersresError with the profile's problems."""
    settings = load_profile(params, profile)
    rates = read_measured_seconds(data / "bench" / "gpu.json", settings.base.dtype)
    return as_text(make_estimate(settings, rates), rates, settings)
