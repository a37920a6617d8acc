"""Whether today's code computes what older code computed, bit for bit: then figures made by the older code stand for today's.

A change of the code behind committed figures makes them "older code" (persres.evidence.provenance), also where it moved functions, added a
choice or made a tensor on another device. Measuring everything again takes hours; this runs the same profile, cut down, by both checkouts on one
machine and compares what they learned, drew and scored. Where all is the same, today's digest is recorded beside the old one.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import yaml
from safetensors.torch import load_file

from persres.errors import PersresError
from persres.evidence.provenance import CHAIN_CODE, EVIDENCE_CODE, code_of
from persres.images import unzip_bytes

log = logging.getLogger(__name__)
HERE = Path(__file__).parents[2]
STEPS, PROMPTS, CONCEPTS = 12, 4, ("heart_mug", "rally_car")  # of training and of drawing; prompts of each concept
FIGURES = {
    "evidence": ("evidence/summary.json", "of", EVIDENCE_CODE),
    "tables": ("rivals/settings.json", None, CHAIN_CODE),
}
# The localisation of a few scenes, as both checkouts have it; printed as JSON.
LOCALISE = """
import json, sys
from pathlib import Path
from persres.evidence.localisation import measure
from persres.evidence.scenes import nameable_case
from persres.methods.common.registry import load_profile
from persres.models.diffusion import load_diffusion
base = load_profile(Path(sys.argv[1]), sys.argv[2]).base
diffusion = load_diffusion(base, "cpu")
print(json.dumps(list(measure(diffusion, [(nameable_case(diffusion, 8, base.token), None)], base.token))))
"""


def run_same(older: Path, profile: str, work: Path, out: Path) -> dict[str, int]:
    """Run ``profile`` cut down by the checkout ``older`` and by this one, compare, and record today's digest beside the one of the
    committed figures below ``out``; returns how many of each kind are the same. Raises PersresError naming the first that is not."""
    if profile not in FIGURES:
        raise PersresError(f"no committed figures of profile {profile!r}; one of {', '.join(FIGURES)}")
    if not (older / "params.yaml").exists():
        raise PersresError(f"{older} is no checkout of persres; git worktree add {older} COMMIT makes one")
    found = {}
    for side, root in (("older", older.resolve()), ("today", HERE)):
        folder = work.resolve() / "same" / profile / side
        found[side] = folder / "data"
        log.info("%s: %s", side, root)
        params = _cut_down(root, profile, folder)
        _run(root, "-m", "persres.cli", "chain", "--params", str(params), "--profile", profile, "--data", str(folder / "data"), "--work", str(folder / "work"))  # fmt: skip
        if profile == "evidence":
            (folder / "data" / "localisation.json").write_text(_run(root, "-c", LOCALISE, str(params), profile))
    counts = compare(found["older"], found["today"])
    _record(out, profile, counts)
    return counts


def _cut_down(root: Path, profile: str, folder: Path) -> Path:
    """A checkout's own profile with few concepts, prompts and steps; what it draws and how is left as it is."""
    raw = json.loads(
        json.dumps(yaml.safe_load((root / "params.yaml").read_text())[profile])
    )  # anchors are no longer shared
    raw["fetch"]["concepts"], raw["train"]["steps"] = list(CONCEPTS), STEPS
    raw["train"]["class_images"] = {"steps": STEPS}
    for variant in raw["train"]["variants"].values():
        variant["steps"] = STEPS
        if "prior_images" in variant:
            variant["prior_images"] = 4
    raw["sample"] |= {"images_per_prompt": 1, "prompts": PROMPTS, "steps": STEPS}
    for method in raw["sample"]["methods"].values():
        for key in ("steps", "images_per_prompt"):
            method.pop(key, None)
    raw["tables"] = {"bootstrap": 200}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump({"profile": profile, profile: raw}, sort_keys=False))
    return path


def _run(root: Path, *arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True, check=False)  # fmt: skip
    if done.returncode:
        raise PersresError(f"{root} failed: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode}")  # fmt: skip
    return done.stdout


def compare(older: Path, today: Path) -> dict[str, int]:
    """Counts of tensors learned, pictures and score rows that two published folders have in common and that are the same to the bit.
    Raises PersresError naming the first that differs, and where they have nothing in common."""
    counts = {
        "tensors": _tensors(older, today),
        "pictures": _pictures(older, today),
        "score rows": _scores(older, today),
    }
    if (older / "localisation.json").exists():
        rows = [json.loads((folder / "localisation.json").read_text()) for folder in (older, today)]
        if rows[0] != rows[1]:
            raise PersresError("localisation is not the same: measure again")
        counts["localisation rows"] = len(rows[0])
    if not all(counts.values()):
        raise PersresError(f"{older} and {today} share nothing to compare: {counts}")
    return counts


def _shared(older: Path, today: Path, pattern: str) -> list[tuple[Path, Path]]:
    pairs = [(path, today / path.relative_to(older)) for path in sorted(older.glob(pattern))]
    return [pair for pair in pairs if pair[1].exists()]


def _tensors(older: Path, today: Path) -> int:
    count = 0
    for one, two in _shared(older, today, "learned/*/*.safetensors"):
        first, second = load_file(one), load_file(two)
        differ = set(first) ^ set(second) or {k for k in first if not first[k].equal(second[k])}
        if differ:
            raise PersresError(f"{one.parent.name}/{one.name}: {sorted(differ)[0]} is not the same: measure again")
        count += len(first)
    return count


def _pictures(older: Path, today: Path) -> int:
    count = 0
    for one, two in _shared(older, today, "samples/*/*.zip"):
        first, second = unzip_bytes(one), unzip_bytes(two)
        differ = set(first) ^ set(second) or {name for name in first if first[name] != second[name]}
        if differ:
            raise PersresError(f"{one.parent.name}/{one.name}: {sorted(differ)[0]} is not the same: measure again")
        count += len(first)
    return count


def _scores(older: Path, today: Path) -> int:
    keys = ["method", "concept", "prompt", "image"]
    one, two = (pd.read_parquet(f / "scores" / "scores.parquet").drop(columns="spec_hash").set_index(keys).sort_index() for f in (older, today))  # fmt: skip
    shared = one.index.intersection(two.index)
    if not one.loc[shared].equals(two.loc[shared][one.columns]):
        raise PersresError("scores are not the same: measure again")
    return len(shared)


def _record(out: Path, profile: str, counts: dict[str, int]) -> None:
    name, key, modules = FIGURES[profile]
    path = out / name
    said = json.loads(path.read_text())
    (said if key is None else said[key])["same"] = {"code": code_of(modules), "compared": counts}
    path.write_text(json.dumps(said, indent=1) + "\n")
