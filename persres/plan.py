"""``persres plan``: units, pictures, GPU-hours and disk of a run before it starts, from its profile and named rates.

Rates are those that ``make bench-gpu`` measured (``data/bench/gpu.json``) where the file is there, else the published ones
below. They are for Stable Diffusion v1 at 512 pixels; what no rate covers is "not known", never guessed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path

from persres.config import Profile, Variant, load_params
from persres.datasets import customconcept101, dreambooth
from persres.errors import PersresError
from persres.metrics.paper_figures import MODEL

RESOLUTION = 512  # what the rates are for

# Paper 4.1: 150 iterations of batch 4 take about 3 minutes on one A100.
PAPER_STEP_S, PAPER_BATCH = 180 / 150, 4
# github.com/fal-ai/stable-diffusion-benchmarks: SD 1.5, 512×512, 50 steps, A100 80G, diffusers with torch 2.1 SDPA, half
# precision: 1.604 s. Float32 is 73.0/33.0 times slower (RTX 4090, SDP; the wiki of vladmandic/sdnext).
PUBLISHED_IMAGE_S, IMAGE_STEPS, FLOAT32 = 1.604, 50, 73.0 / 33.0
# Paper 3.3 and 1: LAG "does not increase sampling time as no additional model evaluations are needed".

# Stable Diffusion v1's output projections by width: five of 320, five of 640, six of 1280 channels.
PROJECTIONS = ((320, 5), (640, 5), (1280, 6))
# Numbers that a rival trains on Stable Diffusion v1.4 (tests/test_rivals.py); its state is kept in half precision.
RIVAL_NUMBERS = {"textual_inversion": 768, "dreambooth": 859_520_964, "custom_diffusion": 19_170_048}

COPIES = 2  # in .work and published in data/; DVC's cache holds a third where its file system can't link


@dataclass(frozen=True)
class Rates:
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


def read_rates(path: Path, dtype: str = "float32") -> Rates:
    """The measured rates where the file is there, else the published. Raises PersresError for a broken file."""
    if not path.exists():
        slower, said = (FLOAT32, ", times 2.2 for float32") if dtype == "float32" else (1.0, "")
        said = f"published: the paper's 3 minutes for 150 steps on an A100; 1.6 s a half-precision picture on an A100{said}"
        return Rates(PAPER_STEP_S, PUBLISHED_IMAGE_S * slower, PUBLISHED_IMAGE_S * slower, said)
    try:
        measured = json.loads(path.read_text())
        rates = {"train_step_s": measured["train_step_s"] * PAPER_BATCH / measured["train_batch"]}
        for key in ("image_s", "image_lag_s"):  # seconds a picture by batch size: a run takes the best
            rates[key] = min(measured[key].values()) * IMAGE_STEPS / measured["sample_steps"]
        if min(rates.values()) <= 0:
            raise ValueError("a rate is not above zero")
    except (ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError) as error:
        raise PersresError(
            f"{path} does not hold measured rates ({error!r}); run make bench-gpu again, or delete it"
        ) from error
    return Rates(**rates, source=f"measured on {measured.get('device')}: {path}")


def dataset_size(profile: Profile) -> tuple[int, int]:
    """(concepts, all their prompts) as the dataset declares them. Raises PersresError where a user's folder is not there."""
    fetch = profile.fetch
    if fetch.dataset == "folder":
        return _folder_size(Path(fetch.folder or ""), fetch.concepts)
    if fetch.dataset == "miniworld":
        from persres.miniworld.captions import concept_prompts
        from persres.miniworld.concepts import CONCEPTS

        drawn = [c for c in CONCEPTS if c.name in fetch.concepts or not fetch.concepts]
        return len(drawn), sum(len(concept_prompts(c.look.kind, c.backgrounds)) for c in drawn)
    module = {"customconcept101": customconcept101, "dreambooth": dreambooth}[fetch.dataset]
    concepts = len(fetch.concepts) or module.COUNT
    return concepts, concepts * module.PROMPTS


def _folder_size(folder: Path, concepts: tuple[str, ...]) -> tuple[int, int]:
    from persres.datasets.folder import describe

    if not folder.is_dir():
        raise PersresError(
            f"fetch.folder: no folder {folder}, so there is nothing to count; create it with one folder of photos per concept"
        )
    names = concepts or sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    return len(names), sum(len(describe(folder / name).prompts) for name in names)


def make_plan(profile: Profile, rates: Rates) -> list[Line]:
    """The stages in order."""
    concepts, prompts = dataset_size(profile)
    covered = rates if profile.base.resolution == RESOLUTION else None
    sample = _sample(profile, concepts, prompts, covered)
    nouns = profile.macro_class.nearest or profile.macro_class.source == "wordnet"
    return [
        Line("fetch", concepts, unknown="size of the photos"),
        Line("macro_class", concepts, hours=None if nouns else 0.0, unknown="time" if nouns else ""),
        _train(profile, concepts, covered),
        sample,
        Line("score", sample.units, sample.images, unknown="time"),
        Line("tables", 1, hours=0.0),
    ]


def _train(profile: Profile, concepts: int, rates: Rates | None) -> Line:
    variants = {name: profile.train.variant(name) for name in profile.train.variants}
    images = _prior_images(profile, concepts)
    timed = {name: v for name, v in variants.items() if rates is not None and isinstance(v, Variant)}
    sizes = {name: _state_bytes(profile, variant) for name, variant in variants.items()}
    sized = [size * _learned(variants[name], concepts) for name, size in sizes.items() if size is not None]
    unknown = _of("time", [name for name in variants if name not in timed], variants)
    unknown += _of("size", [name for name, size in sizes.items() if size is None], variants)
    hours = _train_seconds(profile, concepts, images, timed, rates) / 3600 if timed or (rates and images) else None
    size = COPIES * sum(sized) if sized else None
    note = ["how many concepts share a class, and so class images"] * bool(images)
    return Line(
        "train", sum(_learned(v, concepts) for v in variants.values()), images, hours, size, "; ".join(unknown + note)
    )


def _train_seconds(profile: Profile, concepts: int, images: int, timed: dict[str, Variant], rates: Rates) -> float:
    """Class images first, then every concept by every variant that has a rate; class images double a step."""
    steps = sum(
        _learned(v, concepts) * v.steps * (2 if v.prior_images else 1) * v.batch_size / PAPER_BATCH
        for v in timed.values()
    )
    return images * rates.image_s * profile.sample.steps / IMAGE_STEPS + steps * rates.train_step_s


def _learned(variant, concepts: int) -> int:
    """How many of the concepts a variant learns."""
    return min(concepts, variant.concepts or concepts)


def _of(what: str, names: list[str], every: dict) -> list[str]:
    """``what`` of the named variants, as one phrase, or none."""
    if not names:
        return []
    return [what if len(names) == len(every) else f"{what} of {', '.join(names)}"]


def _prior_images(profile: Profile, concepts: int) -> int:
    """Class images to draw: one set per prompt, count and class; at most as many classes as concepts."""
    drawn = [v for v in map(profile.train.variant, profile.train.variants) if getattr(v, "prior_images", 0)]
    sets: dict[tuple[str, int], int] = {}
    for variant in (v for v in drawn if not getattr(v, "prior_folder", None)):
        key = variant.prompt, variant.prior_images
        sets[key] = max(sets.get(key, 0), _learned(variant, concepts))
    return sum(count * classes for (_, count), classes in sets.items())


def _state_bytes(profile: Profile, variant) -> int | None:
    """What one concept's learned file takes on Stable Diffusion v1, None where that is not known."""
    if profile.base.model != MODEL:
        return None
    if not isinstance(variant, Variant):
        return 2 * RIVAL_NUMBERS[variant.method] if variant.method in RIVAL_NUMBERS else None
    if variant.target == "attn_kv":
        return None
    return 4 * sum(2 * m * (variant.rank or max(1, round(variant.rank_ratio * m))) * n for m, n in PROJECTIONS)


def _sample(profile: Profile, concepts: int, prompts: int, rates: Rates | None) -> Line:
    drawings = [profile.sample.method(name) for name in profile.sample.methods]
    units, images, seconds, masks = 0, 0, 0.0, 0
    for drawing in drawings:
        drawn = concepts if drawing.residual is None else _learned(profile.train.variant(drawing.residual), concepts)
        units += drawn
        most = (
            prompts * drawn // concepts
            if drawing.prompts is None
            else min(prompts, drawing.prompts * concepts) * drawn // concepts
        )
        count = most * drawing.images_per_prompt
        images, masks = images + count, masks + count * drawing.lag
        if rates is not None:
            seconds += count * (rates.image_lag_s if drawing.lag else rates.image_s) * drawing.steps / IMAGE_STEPS
    pixels = prod((profile.base.resolution, profile.base.resolution, 3))  # a PNG is at most about its raw pixels
    size = COPIES * (images * pixels + masks * (profile.base.resolution // 8) ** 2)
    hours = None if rates is None else seconds / 3600
    return Line("sample", units, images, hours, size, "" if rates else "time")


def as_text(lines: list[Line], rates: Rates, profile: Profile) -> str:
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


def print_plan(params: Path, profile: str | None, data: Path) -> None:
    """Print the plan of a profile; starts and asks nothing."""
    settings = load_params(params, profile)
    rates = read_rates(data / "bench" / "gpu.json", settings.base.dtype)
    print(as_text(make_plan(settings, rates), rates, settings), flush=True)
