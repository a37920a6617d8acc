"""Which code a unit's result depends on: neither more than computes it, nor less."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from persres.methods.common.registry import method_names
from persres.stages.jobs import JOB_TYPES
from persres.units.code_digest import PACKAGE, _left_out, digest_modules, module_file, modules_behind, significant

METHODS = [f"persres.methods.{name}" for name in method_names()]


def behind(stage: str, *named: str, package: Path = PACKAGE) -> tuple[str, ...]:
    return modules_behind((*JOB_TYPES[stage].code_modules(), *named), package)


@pytest.fixture
def copy(repo, tmp_path) -> Path:
    unneeded = shutil.ignore_patterns("__pycache__", "weights", "*.xz")
    return Path(shutil.copytree(repo / "persres", tmp_path / "persres", ignore=unneeded))


def digest(copy: Path, stage: str, *named: str) -> str:
    modules_behind.cache_clear()
    return digest_modules(behind(stage, *named, package=copy), copy)


def edit(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))


def test_a_rival_redoes_itself_alone_and_a_comment_nothing(copy):
    methods = {name: f"persres.methods.{name}" for name in ("ours", "vico", "dreambooth")}
    before = {name: digest(copy, "train", module) for name, module in methods.items()}
    assert len(set(before.values())) == 3
    vico = copy / "methods" / "vico.py"
    edit(vico, '"""ViCo', '"""Another docstring. ViCo')
    vico.write_text(vico.read_text().replace("\nclass ", "\n\n# a comment\nclass ", 1) + "\n# the end\n")
    assert {name: digest(copy, "train", module) for name, module in methods.items()} == before
    vico.write_text(vico.read_text() + "\nMORE = 1\n")
    after = {name: digest(copy, "train", module) for name, module in methods.items()}
    assert [name for name in methods if after[name] != before[name]] == ["vico"]


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("sampling/lag.py", {"sample"}),
        ("training/residual_training.py", {"train"}),
        ("miniworld/vocabulary.py", {"score"}),  # by way of the judge
        ("metrics/clip_scores.py", {"score"}),
        ("units/pool.py", set()),  # orders the work
        ("config/schema.py", set()),  # its values stand in the specs
        ("report/sheets.py", set()),
    ],
)
def test_a_change_redoes_what_it_computes(copy, file, changed):
    stages = {
        "train": ("train", "persres.methods.textual_inversion"),
        "sample": ("sample",),
        "score": ("score", "persres.miniworld.attribute_classifier"),
    }
    before = {name: digest(copy, *named) for name, named in stages.items()}
    (copy / file).write_text((copy / file).read_text() + "\nMORE = 1\n")
    after = {name: digest(copy, *named) for name, named in stages.items()}
    assert changed <= {name for name in stages if after[name] != before[name]}
    if not changed:
        assert after == before


NAMED = {"score": ["persres.miniworld.attribute_classifier"]}
# Others' packages are imported once; then a fork for each stage imports ours and says what came with it.
LOADS = """
import json, os, sys
import torch, torchvision_ops, open_clip, timm, pandas
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
for stage, modules in json.loads(sys.argv[1]).items():
    if os.fork() == 0:
        for module in modules:
            __import__(module)
        print(json.dumps({stage: [m for m in sys.modules if m.startswith("persres.")]}), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0, stage
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> dict[str, list[str]]:
    """Our modules that Python has loaded when those that do a stage's work are imported, by stage."""
    folder = tmp_path_factory.mktemp("ops")
    (folder / "torchvision_ops.py").write_text(
        (PACKAGE / "models" / "compat.py").read_text() + "\ndeclare_torchvision_ops()\n"
    )
    wanted = {
        s: [*JOB_TYPES[s].code_modules(), *NAMED.get(s, METHODS)] for s in ("train", "sample", "score", "class_images")
    }
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{PACKAGE.parent}"}
    done = subprocess.run(
        [sys.executable, "-c", LOADS, json.dumps(wanted)], check=True, capture_output=True, text=True, env=environment
    )
    return {stage: found for line in done.stdout.splitlines() for stage, found in json.loads(line).items()}


@pytest.mark.parametrize("stage", ["train", "sample", "score", "class_images"])
def test_what_python_loads_is_found(stage, loaded):
    """The imports are read, not run; here they are run. What is imported inside a function only adds to what is read."""
    found = {module for module in loaded[stage] if not _left_out(module) and says_something(module)}
    found -= (
        {"persres.prompts"} if stage == "score" else set()
    )  # the specs' own: what it fills stands in a score's items
    assert found and found <= set(behind(stage, *NAMED.get(stage, METHODS)))


def says_something(module: str) -> bool:
    """Not a package whose file holds a docstring alone, which can't change a result."""
    return bool(significant(module_file(module).read_text()).strip())
