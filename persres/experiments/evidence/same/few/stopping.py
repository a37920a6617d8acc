"""A short training of a nameless look and of a concept with the rule that ends it, and scored pictures of what was learned."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pandas as pd

from persres.config.schema import Profile, SamplingConfig
from persres.experiments.evidence.provenance import code_of
from persres.experiments.extensions.early_stopping.measure import MODULES
from persres.experiments.extensions.early_stopping.traces import (
    ScoreSpec,
    TraceSpec,
    score_unit,
    trace_unit,
    unit_of,
)
from persres.methods.common.registry import load_profile
from persres.models.loading import model_identity
from persres.package_paths import located
from persres.units.pool import run_units
from persres.units.specs import FileRef
from persres.units.unit import Unit

SUBJECTS = {
    "nameless_0": 0.3,
    "heart_mug": 0.9,
}  # with the rule's threshold: one that hardly stops so early, and one that does
STEPS, EVERY, PROMPTS = 20, 5, (0, 9, 14, 19)


def main(params: Path, profile: str, work: Path, data: Path) -> None:
    """``learned/``: all kept states; ``rows/``: losses of every step and check, where the rule stopped, and scores."""
    settings, code, rows = load_profile(params, profile), code_of(MODULES), []
    for subject, below in SUBJECTS.items():
        unit = _unit(settings, subject, below, code)
        run_units([unit], work, trace_unit, 1, "cpu")
        rows.append(_traced(unit, work))
        folder = data / "learned" / "stopping"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(unit.folder(work) / "states.safetensors", folder / f"{subject}.safetensors")
        rows.append(_scores(settings, unit, work, code))
    (data / "rows").mkdir()
    pd.concat(rows).to_parquet(data / "rows" / "stopping.parquet")


def _unit(profile: Profile, subject: str, below: float, code: str) -> Unit[TraceSpec]:
    said = {"stop": "settled", "steps": STEPS, "settle_every": EVERY, "settle_below": below}
    settings = profile.train.variants["ours"].model_copy(update=said)
    base = profile.base
    return unit_of(TraceSpec(base=base, model=model_identity(base.model), subject=subject, settings=settings, longest=STEPS + EVERY, code=code))  # fmt: skip


def _traced(unit: Unit[TraceSpec], work: Path) -> pd.DataFrame:
    trace = json.loads((unit.folder(work) / "trace.json").read_text())
    found = [
        {"prompt": name, "image": i, "loss": v}
        for name in ("loss", "fixed", "other")
        for i, v in enumerate(trace[name])
    ]
    found.append({"prompt": "ruled", "image": 0, "stopped_after": trace["ruled"]["steps"]})
    return pd.DataFrame(found).assign(method="training", concept=unit.spec.subject)


def _scores(profile: Profile, learned: Unit[TraceSpec], work: Path, code: str) -> pd.DataFrame:
    spec = ScoreSpec(
        learned=learned.spec, steps=STEPS, prompts=PROMPTS, sampling=SamplingConfig(variant="ours", steps=12, images_per_prompt=1),
        encoders=profile.encoders, judge=FileRef.of(Path(located(profile.score.judge))), code=code,
    )  # fmt: skip
    unit = Unit("beyond_stopping_pictures", learned.spec.subject, spec)
    run_units([unit], work, score_unit, 1, "cpu")
    rows = pd.read_csv(unit.folder(work) / "scores.csv").rename(columns={"picture": "prompt"})
    return rows.assign(method="pictures", concept=learned.spec.subject, image=0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(Path, sys.argv[3:5]))
