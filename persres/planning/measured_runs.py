"""Seconds that finished units of earlier runs took, from the manifests in the work folder: for the estimate and the fleet's shards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from persres.config.schema import Profile
from persres.stages.jobs import job_type
from persres.units.specs import Spec
from persres.units.unit import MANIFEST, Manifest
from persres.untrusted.documents import read_json

PREFLIGHT = "preflight"  # folder of ``persres preflight`` in the work folder
TIMED = ("train", "class_images", "sample", "score")


def measured_units(stage: str, work: Path) -> Iterator[tuple[Manifest, Spec, float]]:
    """The units of a stage that one run made whole, with their specs and their seconds per unit of the stage's cost."""
    for path in (work / stage).glob(f"*/{MANIFEST}"):
        with suppress(Exception):  # another version's, or damaged: only an estimate is lost
            manifest, kind = read_json(path, Manifest), job_type(stage)
            spec, facts = kind.read_spec(manifest.spec), manifest.facts
            rate = facts.seconds / kind.cost(spec)
            whole = facts.steps == (facts.model_extra or {}).get("of_steps", facts.steps)
            if whole and facts.sampled == facts.images and rate > 0:
                yield manifest, spec, rate


@dataclass(frozen=True)
class EarlierRuns:
    """Median seconds per unit of cost by what was run, e.g. ``train ours``, ``sample lag``, ``score``; and the devices that ran it."""

    seconds: dict[str, float] = field(default_factory=dict)
    devices: tuple[str, ...] = ()

    def text(self) -> str:
        """The measured seconds in a sentence, named as :func:`what_ran` does."""
        units = {
            "train": "training sample",
            "sample": "denoising step",
            "class_images": "denoising step",
            "score": "image",
        }
        parts = [
            f"{name} {seconds:.3g} s per {units[name.split()[0]]}" for name, seconds in sorted(self.seconds.items())
        ]
        return ", ".join(parts)


def earlier_runs(work: Path, profile: Profile) -> EarlierRuns:
    """What earlier runs of the profile's models measured, in the work folder and in that of ``persres preflight``."""
    measured: dict[str, list[float]] = {}
    devices: set[str] = set()
    for folder in (work, work / PREFLIGHT):
        for stage in TIMED:
            for manifest, spec, rate in measured_units(stage, folder):
                if _same_models(spec, profile):
                    measured.setdefault(what_ran(stage, spec), []).append(rate)
                    devices.add(manifest.facts.device)
    return EarlierRuns({name: median(some) for name, some in measured.items()}, tuple(sorted(devices - {""})))


def what_ran(stage: str, spec: Spec) -> str:
    """The units whose seconds are alike: a method's training, sampling with LAG or by a method, a stage."""
    if stage == "train":
        return f"train {spec.settings.method}"
    if stage == "sample":
        return sampled_as(spec.method, bool(spec.sampling.lag))
    return stage


def sampled_as(method: str | None, lag: bool) -> str:
    """The name for sampling of a method's images, of ours with LAG, or of the base model's (``method`` None), which is as fast as ours."""
    return "sample lag" if lag else f"sample {method}" if method not in (None, "ours") else "sample"


def _same_models(spec: Spec, profile: Profile) -> bool:
    base = getattr(spec, "base", None)
    if base is not None:
        return (base.model, base.resolution, base.dtype) == (
            profile.base.model,
            profile.base.resolution,
            profile.base.dtype,
        )
    return (spec.clip, spec.dino) == (profile.encoders.clip, profile.encoders.dino)
