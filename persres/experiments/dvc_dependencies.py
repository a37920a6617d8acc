"""``persres dev deps``: the code that each DVC stage watches, written into dvc.yaml from the imports themselves.

A unit's spec watches the code that computes its result (persres/units/code_digest.py) and decides what is done again. DVC only decides
whether to start a stage at all, so its list may be wider and must not be narrower: here it is everything that the stage imports,
defaults and specs included, but for what only reports or schedules. A comment in a rival's file starts the stage; its
units are found finished, and nothing after it runs.
"""

from __future__ import annotations

import re
from pathlib import Path

from persres.datasets.registry import DATASETS, DRAWN
from persres.errors import PersresError
from persres.methods.common.registry import method_names
from persres.metrics.scores import SCORE_MODULES
from persres.units.code_digest import PACKAGE, imports_of, module_file, significant
from persres.workflow import STAGES

# Says how a run goes, changes no file that it leaves.
SILENT = {
    f"persres.{name}"
    for name in (
        "errors",
        "logging",
        "training.previews",
        "config.legacy",
        "config.problems",
        "units.locks",
        "units.main_module",
        "units.pool",
        "units.provenance",
    )
}
# Watched whole: a new file in them is one more method, dataset, mask or metric, with nothing else to change here.
WHOLE = tuple(
    f"persres/{name}"
    for name in ("datasets", "methods", "metrics", "models", "report", "residuals", "sampling", "training")
)
# Modules that a stage reaches by a name in the settings.
NAMED = {
    "fetch": [f"persres.datasets.{name}" for name in DATASETS],
    "train": [f"persres.methods.{name}" for name in method_names()],
    "sample": [
        *(f"persres.methods.{name}" for name in method_names()),
        *(modules.renderer for modules in DRAWN.values()),
    ],
    "score": [*SCORE_MODULES, *(modules.classifier for modules in DRAWN.values())],
}


def stage_code(stage: str) -> list[str]:
    """The files and folders of code behind a stage, as paths from the repository's root, sorted."""
    seen: set[str] = set()
    todo = [f"persres.stages.{stage}", *NAMED.get(stage, [])]
    while todo:
        module = todo.pop()
        if module not in seen and module not in SILENT:
            seen.add(module)
            todo += imports_of(module)
    files = {module_file(module).relative_to(PACKAGE.parent).as_posix() for module in seen}
    return sorted({_entry(file) for file in files if significant((PACKAGE.parent / file).read_text()).strip()})


def _entry(file: str) -> str:
    return next((folder for folder in WHOLE if file.startswith(f"{folder}/")), file)


def with_code(text: str) -> str:
    """The text of dvc.yaml with every stage's code dependencies as they are now; all else stands."""
    for stage in STAGES:
        block = re.search(rf"^  {stage}:\n(?:    .*\n)*?    deps:\n((?:      - .*\n)+)", text, re.MULTILINE)
        if block is None:
            raise PersresError(f"dvc.yaml: stage {stage} has no deps; write the stage and its data there first")
        data = [line[8:] for line in block[1].splitlines() if not _is_code(line[8:])]
        lines = "".join(f"      - {entry}\n" for entry in sorted([*data, *stage_code(stage)]))
        text = text[: block.start(1)] + lines + text[block.end(1) :]
    return text


def _is_code(entry: str) -> bool:
    return entry.startswith("persres/") and "/weights/" not in entry


def write_dependencies(path: Path) -> bool:
    """Rewrite a dvc.yaml; returns whether anything changed. Raises PersresError where it is not there or lacks a stage."""
    if not path.exists():
        raise PersresError(f"{path} not found; run from the folder that holds it")
    old = path.read_text()
    new = with_code(old)
    path.write_text(new)
    return new != old
