"""A side: one checkout's cut-down run of a profile, in a process of its own with that checkout's code."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from persres.errors import PersresError
from persres.experiments.evidence.same.subjects import Subject, cut_down
from persres.units.code_digest import module_file, significant

log = logging.getLogger(__name__)
HERE = Path(__file__).parents[3]
FEW = Path(__file__).parent / "few"
# A vector half as wide or narrower adds up in another order. Not another number of threads, which does so too and by as much (a U-Net's answer
# moves by 5e-7 and by 4e-7): where cores are shared, two threads wait for one another, and took eleven times as long.
NARROW = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "AVX", "MKL_ENABLE_INSTRUCTIONS": "AVX"}
# The digest of the code behind figures, by the names that the checkout itself has for it.
DIGEST = """
import sys
from persres.experiments.extensions.study import NAMES, part_named
from persres.experiments.evidence.provenance import CHAIN_CODE, EVIDENCE_CODE, code_of
name = sys.argv[1]
print(code_of({"evidence": EVIDENCE_CODE, "tables": CHAIN_CODE}.get(name) or part_named(name).modules))
"""


@dataclass(frozen=True)
class Side:
    """A checkout at ``root`` and how it adds up: by the processor's ``narrow`` instructions or by its own, pictures of a ``batch``."""

    name: str
    root: Path
    narrow: bool = False
    batch: int | None = None


def run_side(side: Side, subject: Subject, work: Path) -> Path:
    """Run from nothing; returns the folder of what it published. Raises PersresError with the last line of what went wrong."""
    folder, began = work.resolve() / "same" / (subject.script or subject.profile) / side.name, time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    params = str(cut_down(side.root, subject.profile, folder, side.batch))
    data, scratch = folder / "data", str(folder / "work")
    data.mkdir()
    if subject.chained:
        _run(side, "-m", "persres.cli.main", "chain", "--params", params, "--profile", subject.profile, "--data", str(data), "--work", scratch)  # fmt: skip
    if subject.script is not None:
        text = (FEW / f"{subject.script}.py").read_text()
        _run(side, "-c", text, params, subject.profile, scratch, str(data))
    log.info("%s by %s: %.0f s", subject.name, side.name, time.monotonic() - began)
    return data


def digest_at(side: Side, subject: Subject) -> str:
    """Of the code behind a subject's figures, as that checkout has it."""
    return _run(side, "-c", DIGEST, subject.name).strip()


def _run(side: Side, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(side.root), "OMP_NUM_THREADS": "1"} | (NARROW if side.narrow else {})
    done = subprocess.run([sys.executable, *arguments], cwd=side.root, env=environment, capture_output=True, text=True, check=False)  # fmt: skip
    if done.returncode:
        raise PersresError(f"{side.root} failed: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode}")  # fmt: skip
    return done.stdout


def check_claims(older: Path, subject: Subject) -> None:
    """That what turns rows into claims is the same text in both checkouts, for no cut-down run can compare it. Raises PersresError."""
    for module in subject.claims:
        one, two = (_text(module, root / "persres") for root in (older, HERE))
        if one != two:
            raise PersresError(f"{subject.name}: {module} has changed, and what it makes of rows is not compared: measure again")  # fmt: skip


def _text(module: str, package: Path) -> str | None:
    path = module_file(module, package)
    return None if path is None else significant(path.read_text())
