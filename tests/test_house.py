"""Rules of the house that code can check."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import pytest

from persres.cli import main


def imports(path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_the_library_imports_neither_prefect_nor_dvc_nor_pickle(repo):
    for path in (repo / "persres").rglob("*.py"):
        assert not imports(path) & {"prefect", "dvc", "pickle", "tasks", "flows"}, path
        assert "torch.save" not in path.read_text() and "torch.load" not in path.read_text(), path


def test_files_stay_short_and_public_things_are_documented(repo):
    for folder in ("persres", "tasks", "flows"):
        for path in (repo / folder).rglob("*.py"):
            text = path.read_text()
            assert len(text.splitlines()) < 400, path
            tree = ast.parse(text)
            assert ast.get_docstring(tree), f"{path} has no docstring"
            for node in tree.body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                    assert ast.get_docstring(node), f"{path}: {node.name} has no docstring"


def test_samplers_touch_no_file_and_no_progress_bar(repo):
    assert imports(repo / "persres" / "samplers.py") <= {"__future__", "collections", "torch", "diffusers", "persres"}
    assert imports(repo / "persres" / "conditioning.py") <= {
        "__future__",
        "collections",
        "dataclasses",
        "typing",
        "torch",
    }


def test_no_if_mini_in_the_method(repo):
    for name in ("residuals", "lag", "samplers", "training", "prompts", "models", "stages/train", "stages/sample"):
        text = (repo / "persres" / f"{name}.py").read_text().lower()
        assert not re.search(r"\bmini\b|miniworld", text), name


def test_show_without_a_run_is_one_clear_error(tmp_path, capsys):
    assert main(["show", "--data", str(tmp_path)]) == 1
    assert "run make repro first" in capsys.readouterr().err


def test_the_command_line_starts_without_loading_models():
    """``persres --help`` must not import diffusers: it takes seconds."""
    code = "import sys, persres.cli\nassert not {'diffusers', 'transformers', 'open_clip', 'timm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("stage", ["nothing", ""])
def test_an_unknown_stage_is_refused(stage):
    with pytest.raises(SystemExit) as caught:
        main(["run", stage])
    assert caught.value.code == 2
