"""What can be carried: sets of committed figures, the code behind each, and how it is cut down for the comparison."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from persres.errors import PersresError
from persres.experiments.evidence.provenance import CHAIN_CODE, EVIDENCE_CODE
from persres.experiments.extensions.study import NAMES, study_named

STEPS, PROMPTS, CONCEPTS = 12, 2, ("heart_mug", "rally_car")  # of training and of drawing; prompts of each concept
TRIPLE = ("heart_mug", "star_robot", "banded_cat")  # the first triple of `several`, whose first two are its first pair
# Other numbers in the same code as share_20 and disk_30.
LEFT_OUT = ("share_10", "share_30", "share_40", "share_50", "disk_10", "disk_20", "disk_40", "disk_50")
PROFILES = ("evidence", "tables")


@dataclass(frozen=True)
class Subject:
    """Committed figures: ``path`` below the output, the ``key`` that their provenance stands under (None: the file is it), and the modules of
    their digest. Its cut-down run: the chain of ``profile`` (``chained``) and the ``script`` of ``few/``. ``claims``: modules that only turn
    rows into claims, which a cut-down run can't compare: their text must be the same."""

    name: str
    path: str
    key: str | None
    modules: tuple[str, ...]
    profile: str
    script: str | None
    claims: tuple[str, ...] = ()
    chained: bool = True


_SHARED = ("persres.metrics.summary", "persres.experiments.extensions.verdicts")
_CLAIMS = {
    "masks": ("persres.experiments.extensions.masks.claims", "persres.experiments.extensions.sampled", *_SHARED),
    "choosing": (
        "persres.experiments.extensions.lag_by_prompt.claims",
        "persres.experiments.extensions.sampled",
        *_SHARED,
    ),
    "stopping": ("persres.experiments.extensions.early_stopping.claims", *_SHARED),
}
_SCRIPTS = {"choosing": "masks"}  # it takes its pictures from those of masks: one run serves both
_UNCHAINED = ("stopping", "loras", "nouns")


def subject_named(name: str) -> Subject:
    """A profile of the evidence or a part of what goes past the paper. Raises PersresError where it is neither."""
    if name == "evidence":
        claims = ("persres.experiments.evidence.claims", "persres.metrics.summary")
        return Subject(name, "evidence/summary.json", "of", EVIDENCE_CODE, name, name, claims)
    if name == "tables":
        return Subject(name, "rivals/settings.json", None, CHAIN_CODE, name, None, ("persres.metrics.summary",))
    if name not in NAMES:
        raise PersresError(f"no committed figures of {name!r}; one of {', '.join((*PROFILES, *NAMES))}")
    part = study_named(name)
    script, chained = _SCRIPTS.get(name, name), name not in _UNCHAINED
    claims = _CLAIMS.get(name, _SHARED)
    return Subject(name, f"beyond/{name}/summary.json", "of", part.modules, part.profile, script, claims, chained)


def names_of(profiles: list[str], parts: list[str]) -> tuple[str, ...]:
    """What was asked for, ``all`` taken as every part; the evidence where nothing was. Raises PersresError for a name in the wrong place."""
    for profile in profiles:
        if profile not in PROFILES:
            raise PersresError(f"no committed figures of profile {profile!r}; one of {', '.join(PROFILES)}")
    for part in parts:
        if part not in (*NAMES, "all"):
            raise PersresError(f"no part {part!r}; one of {', '.join(NAMES)}, or all")
    chosen = NAMES if "all" in parts else tuple(parts)
    return (*profiles, *chosen) or PROFILES[:1]


def cut_down(root: Path, profile: str, folder: Path, batch: int | None = None) -> Path:
    """A checkout's own profile with few concepts, prompts and steps, as a settings' file in ``folder``; what it draws and how is left as it is.
    One process on the CPU; ``batch``: pictures drawn at a time."""
    raw = json.loads(
        json.dumps(yaml.safe_load((root / "params.yaml").read_text())[profile])
    )  # anchors are no longer shared
    raw["fetch"]["concepts"] = list(TRIPLE if profile == "several" else CONCEPTS)
    raw["train"] |= {"steps": STEPS, "class_images": {"steps": STEPS}}
    for variant in raw["train"]["variants"].values():
        variant["steps"] = STEPS
        if "prior_images" in variant:
            variant["prior_images"] = 4
    raw["sample"] |= {"images_per_prompt": 1, "prompts": PROMPTS, "steps": STEPS}
    raw["sample"]["configs"] = {
        n: _short(method) for n, method in raw["sample"]["configs"].items() if n not in LEFT_OUT
    }
    if not any(method.get("variant") for method in raw["sample"]["configs"].values()):
        # what a variant cost is told beside what draws with it; older code can't where nothing does
        raw["sample"]["configs"]["learned"] = {"variant": next(iter(raw["train"]["variants"]))}
    raw["tables"] = {"bootstrap": 200}
    raw["runtime"] = {"workers": 1, "device": "cpu", "sample_batch": batch or 10}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump({"profile": profile, profile: raw}, sort_keys=False))
    return path


def _short(method: dict) -> dict:
    return {key: value for key, value in method.items() if key not in ("steps", "images_per_prompt")}


def record_of(subject: Subject, out: Path) -> tuple[Path, dict, dict]:
    """The committed file, all that it says, and of that the provenance. Raises PersresError where there is none."""
    path = out / subject.path
    if not path.exists():
        raise PersresError(f"no {path}: there are no figures of {subject.name} to carry")
    said = json.loads(path.read_text())
    return path, said, said if subject.key is None else said[subject.key]
