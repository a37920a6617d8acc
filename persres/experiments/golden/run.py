"""The golden run: a small run of the whole package whose figures are committed, to see when the code computes something else.

It trains, samples and scores on the mini world with every method, mask and study cut down to a few steps. The figures stand in
``data/golden/figures.json`` with the tolerance of each kind. A test compares them with today's.
"""

from __future__ import annotations

import json
import subprocess
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch

from persres.errors import PersresError
from persres.experiments.golden.chain import chain_figures, golden_context
from persres.experiments.golden.figures import Collector, Figures
from persres.experiments.golden.studies import study_figures
from persres.units.files import write_atomic

FILE = Path("data/golden/figures.json")
ADVICE = "the code computes something else; if that is intended measure again, then `persres dev golden --record`"
# Largest difference of a figure by kind: absolute, and relative to the recorded one. Four times what was measured between 1 and 2 threads
# and between ATEN_CPU_CAPABILITY avx2 and default; without a measured difference, one pixel of a mask. Other kinds must be equal.
TOLERANCES: dict[str, tuple[float, float]] = {
    "image": (1.2e-3, 0.0),
    "mask": (1e-3, 0.0),
    "loss": (0.0, 1e-4),
    "weights": (0.0, 2e-4),
    "direction": (0.03, 0.0),
    "lora": (0.0, 4e-4),
    "class": (5e-4, 0.0),
    "score": (1e-3, 0.0),
    "dino_object": (0.012, 0.0),
    "background_change": (1e-5, 0.0),
    "localisation": (1e-3, 0.0),
}


def measure_golden() -> Figures:
    """Run everything in a temporary folder; returns the figures. The number of threads stays the caller's."""
    out = Collector()
    with TemporaryDirectory() as folder, patch.object(torch, "set_num_threads"):
        context = golden_context(Path(folder))
        chain_figures(context, out)
        study_figures(context, out)
    return out.figures


def golden_differences(recorded: dict, figures: Figures) -> list[str]:
    """One line for each figure that is missing, new, or differs from the recorded one by more than its tolerance."""
    lines = []
    for kind in sorted({*recorded["figures"], *figures}):
        before, now = recorded["figures"].get(kind, {}), figures.get(kind, {})
        absolute, relative = recorded["tolerances"].get(kind, (0.0, 0.0))
        for name in sorted({*before, *now}):
            if name not in before or name not in now:
                lines.append(f"{kind} {name}: {'not recorded' if name in now else 'no longer measured'}")
            elif not _near(before[name], now[name], absolute, relative):
                lines.append(f"{kind} {name}: recorded {before[name]}, now {now[name]}")
    return lines


def _near(before: float | str, now: float | str, absolute: float, relative: float) -> bool:
    if isinstance(before, str) or isinstance(now, str):
        return before == now
    return abs(now - before) <= absolute + relative * abs(before)


def read_golden(path: Path = FILE) -> dict:
    """The recorded figures. Raises PersresError where there are none."""
    if not path.exists():
        raise PersresError(f"no {path}; run `persres dev golden --record`")
    return json.loads(path.read_text())


def record_golden(figures: Figures, path: Path = FILE) -> None:
    """Write the figures with their tolerances, the commit that computed them, and the date."""
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    recorded = {
        "measured": f"at commit {git.stdout.strip() or 'unknown'} on {date.today().isoformat()}",
        "tolerances": TOLERANCES,
        "figures": {kind: dict(sorted(part.items())) for kind, part in sorted(figures.items())},
    }
    write_atomic(path, (json.dumps(recorded, indent=0) + "\n").encode())


def run_golden(record: bool, path: Path = FILE) -> str:
    """Measure, then compare or record; returns a summary. Raises PersresError that lists the differences."""
    figures = measure_golden()
    count = sum(len(part) for part in figures.values())
    lines = golden_differences(read_golden(path), figures) if path.exists() else []
    if record:
        record_golden(figures, path)
        return f"{count} figures recorded in {path}, {len(lines)} of them differ from before"
    if lines:
        raise PersresError("\n".join([f"{len(lines)} of {count} golden figures differ: {ADVICE}", *lines]))
    return f"{count} golden figures are as recorded {read_golden(path)['measured']}"
