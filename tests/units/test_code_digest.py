"""Which code a unit's result depends on: neither more than computes it, nor less."""

from __future__ import annotations

import ast
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


TEXT = '''
"""A module."""
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from persres.errors import PersresError
from persres.sampling import masks
from persres.sampling.masks import median

if TYPE_CHECKING:
    from persres.config.schema import Base

__all__ = ["Settings", "masked"]
LEVELS: tuple[float, ...] = (0.3, 0.8)


class Settings(BaseModel):
    """Settings."""

    steps: int = 150
    name: str | None = None


def masked(x: torch.Tensor, area: float = 0.5) -> torch.Tensor:
    """A mask."""
    if area <= 0:
        raise PersresError(f"area is {area}; make it positive")
    log.info("masked %s", area)
    total = median(x) + masks.otsu(x, area)  # both
    return nn.functional.relu(total - LEVELS[0])
'''

SAME_RESULT = {
    "docstring": ('"""A mask."""', '"""One mask\n\n    of many."""'),
    "no docstring": ('    """Settings."""\n\n', ""),
    "comment": ("# both", "# one and the other"),
    "formatting": ("median(x) + masks.otsu(x, area)", "(\n        median(x)\n        + masks.otsu(x, area)\n    )"),
    "import inside the function": (
        '    """A mask."""',
        '    """A mask."""\n    from persres.sampling.masks import median\n',
    ),
    "function imported by name": ("masks.otsu", "otsu"),
    "import by another name": ("import median\n", "import median as middle\n"),
    "annotation of an argument": ("area: float", "area: int | float"),
    "annotation of a constant": ("LEVELS: tuple[float, ...]", "LEVELS"),
    "exported names": ('__all__ = ["Settings", "masked"]', '__all__ = ["Settings"]'),
    "message of an error": ("make it positive", "it must be positive"),
    "log": ('"masked %s"', '"a mask of %s"'),
    "what type checkers read": ("import Base", "import Base, Clip"),
    "spelling of a library's module": ("nn.functional.relu", "torch.nn.functional.relu"),
}
OTHER_RESULT = {
    "constant": ("0.3", "0.4"),
    "operator": ("median(x) +", "median(x) -"),
    "comparison": ("area <= 0", "area < 0"),
    "default": ("area: float = 0.5", "area: float = 0.4"),
    "default of a field": ("steps: int = 150", "steps: int = 100"),
    "type of a field": ("steps: int", "steps: float"),
    "type of a field without a default": ("name: str | None", "name: str"),
    "statement": ("    return nn", "    total = total * 2\n    return nn"),
    "function called": ("masks.otsu", "masks.soft"),
    "function behind a name": ("import median\n", "import quantile as median\n"),
    "error raised": ("raise PersresError", "raise ValueError"),
    "order of arguments": ("otsu(x, area)", "otsu(area, x)"),
    "function of a library": ("nn.functional.relu", "nn.functional.silu"),
    "base class": ("BaseModel", "Section"),
}  # fmt: skip


def edited(change: tuple[str, str]) -> str:
    before, after = change
    assert before in TEXT
    text = TEXT.replace(before, after)
    if after == "otsu":
        text = text.replace("import median\n", "import median, otsu\n", 1)
    return text.replace("median(x)", "middle(x)") if "as middle" in after else text


@pytest.mark.parametrize("change", SAME_RESULT.values(), ids=SAME_RESULT)
def test_an_edit_that_computes_the_same_has_the_same_digest(change):
    assert significant(edited(change)) == significant(TEXT)


@pytest.mark.parametrize("change", OTHER_RESULT.values(), ids=OTHER_RESULT)
def test_an_edit_that_computes_something_else_has_another_digest(change):
    assert significant(edited(change)) != significant(TEXT)


def test_a_module_that_only_re_exports_computes_nothing():
    text = '"""Names."""\n\nfrom persres.sampling.masks import median\n\n__all__ = ["median"]\n'
    assert significant(text) == "" == significant("") == significant('"""A docstring."""\n')


def test_a_renamed_and_moved_module_keeps_the_digest(copy):
    before = digest(copy, "sample")
    moved = copy / "masking_rules" / "cuts.py"
    moved.parent.mkdir()
    (moved.parent / "__init__.py").write_text('"""A new package."""\n')
    (copy / "sampling" / "masks.py").rename(moved)
    for path in copy.rglob("*.py"):
        text = path.read_text()
        path.write_text(text.replace("persres.sampling.masks", "persres.masking_rules.cuts"))
    assert digest(copy, "sample") == before
    edit(moved, "round(area * attention.shape[1])", "round(area * attention.shape[1]) + 1")
    assert digest(copy, "sample") != before


def test_every_statement_of_the_package_counts(copy):
    """A constant changed in any function of a module changes the digest: nothing is left out by accident."""
    path = copy / "sampling" / "lag.py"
    text, before = path.read_text(), significant(path.read_text())
    numbers = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant) and type(node.value) is int]
    assert len(numbers) > 10
    for node in numbers:
        lines = text.split("\n")
        line = lines[node.lineno - 1]
        lines[node.lineno - 1] = f"{line[: node.col_offset]}{node.value + 7}{line[node.end_col_offset :]}"
        if lines[node.lineno - 1].isascii():
            assert significant("\n".join(lines)) != before, line


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
    return {
        stage: loaded_modules for line in done.stdout.splitlines() for stage, loaded_modules in json.loads(line).items()
    }


@pytest.mark.parametrize("stage", ["train", "sample", "score", "class_images"])
def test_what_python_loads_is_in_the_digest(stage, loaded):
    """The imports are read, not run; here they are run. What is imported inside a function only adds to what is read."""
    loaded_modules = {module for module in loaded[stage] if not _left_out(module) and says_something(module)}
    loaded_modules -= (
        {"persres.prompts"} if stage == "score" else set()
    )  # the specs' own: what it fills stands in a score's items
    assert loaded_modules and loaded_modules <= set(behind(stage, *NAMED.get(stage, METHODS)))


def says_something(module: str) -> bool:
    """Not a package whose file holds a docstring alone, which can't change a result."""
    return bool(significant(module_file(module).read_text()).strip())
