"""Whether a profile can run on this machine: GPU, disk, dataset, models and hours, before a run changes a file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from persres.config.load import read_profile
from persres.config.schema import Profile
from persres.datasets import customconcept101, dreambooth
from persres.doctor import Finding, as_text
from persres.errors import PersresError
from persres.methods.common.registry import load_profile
from persres.package_paths import located
from persres.planning.estimate import COPIES, Line, estimated, totals
from persres.units.disk import folder_bytes

MANY_HOURS, MANY_BYTES = 1.0, 100e9  # from here on a run needs --yes
SMALL = 256  # pixels; models below run on a CPU
TIMEOUT_S = 10
INDEX = "model_index.json"  # of a diffusers pipeline
SOURCES = {  # of the datasets that are downloaded: folder and address
    "customconcept101": (customconcept101.FOLDER, customconcept101.LISTS_URL),
    "dreambooth": (dreambooth.FOLDER, dreambooth.URL),
}


@dataclass(frozen=True)
class Planned:
    """A profile's name and settings, the work folder and the estimate of its run."""

    name: str
    profile: Profile
    work: Path
    lines: list[Line]


def planned_run(params: Path, profile: str | None, data: Path, work: Path) -> tuple[Planned, str]:
    """A run with a profile, or with the selected one, and its estimate as text. Raises PersresError where the profile is invalid."""
    name, settings = read_profile(params, profile)[1], load_profile(params, profile)
    lines, text = estimated(settings, data, work)
    return Planned(name, settings, work, lines), text


def check_ready(planned: Planned, yes: bool) -> str:
    """The result of every check as text. Raises PersresError with all of them if one fails, or if a long run lacks ``yes``."""
    checks: tuple[Callable[[Planned], Finding], ...] = (_gpu, _disk, _dataset, _models)
    findings = [check(planned) for check in checks]
    failed = [finding.what for finding in findings if finding.state == "fails"]
    if failed:
        raise PersresError(
            f"profile {planned.name} is not ready ({', '.join(failed)}); nothing was changed\n{as_text(findings)}"
        )
    hours, size = totals(planned.lines)
    if not yes and (hours >= MANY_HOURS or size >= MANY_BYTES):
        raise PersresError(
            f"profile {planned.name} takes about {hours:,.0f} GPU-hours and up to {_gb(size)} (persres estimate --profile {planned.name});"
            f" nothing was changed; to start it, add --yes (make repro PROFILE={planned.name} YES=1)"
        )
    return as_text(findings)


def _gpu(planned: Planned) -> Finding:
    import torch

    device, resolution = planned.profile.runtime.device, planned.profile.base.resolution
    if resolution < SMALL or (device not in ("auto",) and not device.startswith("cuda")):
        return Finding("GPU", "ok", f"not needed: {resolution} pixels, runtime.device {device}")
    if torch.cuda.is_available():
        return Finding("GPU", "ok", torch.cuda.get_device_name())
    if device == "auto" and torch.backends.mps.is_available():
        return Finding("GPU", "ok", "Apple's")
    fix = "use a machine with an NVIDIA GPU and torch's CUDA build (persres doctor); runtime.device: cpu runs without, for weeks"
    return Finding("GPU", "fails", f"none available for {planned.profile.base.model} at {resolution} pixels", fix)


def _disk(planned: Planned) -> Finding:
    size = totals(planned.lines)[1]
    needed = size + size // COPIES  # DVC's cache
    if needed:
        needed -= sum(folder_bytes(planned.work / stage) for stage in ("train", "sample"))
    folder = next(path for path in (planned.work, *planned.work.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    says = f"up to {_gb(max(needed, 0))} needed, {_gb(free)} free at {folder.absolute()}"
    if needed <= free:
        return Finding("disk", "ok", says)
    return Finding(
        "disk", "fails", says, "use a larger disk, or fewer images (sample.images_per_prompt, fetch.concepts)"
    )


def _dataset(planned: Planned) -> Finding:
    fetch = planned.profile.fetch
    if fetch.dataset not in SOURCES:
        return Finding("dataset", "ok", f"{fetch.dataset}, {planned.lines[0].units} concepts")
    folder, url = SOURCES[fetch.dataset]
    folder = Path(fetch.folder or folder)
    if folder.is_dir() and any(folder.iterdir()):
        return Finding("dataset", "ok", f"{fetch.dataset} in {folder}")
    reason = _unreachable(url)
    if reason is None:
        return Finding("dataset", "ok", f"{fetch.dataset}, to be fetched from {url}")
    fix = f"connect to the network, or put its files into {folder} (docs/datasets.md)"
    return Finding("dataset", "fails", f"{fetch.dataset} cannot be fetched from {url} ({reason})", fix)


def _unreachable(url: str) -> str | None:
    """Why an address does not answer, None if it does."""
    import requests

    try:
        answer = requests.head(url, timeout=TIMEOUT_S, allow_redirects=True)
    except (requests.RequestException, OSError) as error:
        return type(error).__name__
    return None if answer.ok else f"HTTP {answer.status_code}"


def _models(planned: Planned) -> Finding:
    return check_models(planned.profile)


def check_models(profile: Profile) -> Finding:
    """Whether the base model's small files and both encoders load: whatever is missing would end a run after hours."""
    from persres.metrics.clip_scores import load_clip
    from persres.metrics.dino_scores import load_dino
    from persres.stages.checks import check_folders, check_profile

    if (reason := hub_problem(profile.base.model)) is not None:
        fix = "connect to the hub, accept the model's licence there if it asks for one, or give a folder as base.model"
        return Finding("models", "fails", f"{profile.base.model} is not available ({reason})", fix)
    try:
        check_profile(profile)
        check_folders(profile)
        load_clip(profile.encoders.clip, "cpu")
        load_dino(profile.encoders.dino, "cpu")
    except PersresError as error:
        return Finding(
            "models", "fails", str(error), "connect to the hub (huggingface.co), or name folders in base and encoders"
        )
    names = (profile.base.model, profile.encoders.clip.model, profile.encoders.dino.model)
    return Finding("models", "ok", ", ".join(names))


def hub_problem(model: str) -> str | None:
    """Why the hub does not have a model, None if it does, or if the model is a folder, a file or in the hub's cache."""
    from huggingface_hub import constants, try_to_load_from_cache

    if Path(located(model)).exists():
        return None
    try:
        if isinstance(try_to_load_from_cache(model, INDEX), str):
            return None
    except ValueError:
        return "there is no such folder, and it is no name on a hub"
    return _unreachable(f"{constants.ENDPOINT}/{model}/resolve/main/{INDEX}")


def _gb(size: float) -> str:
    return f"{size / 1e12:,.1f} TB" if size >= 1e12 else f"{size / 1e9:,.1f} GB"
