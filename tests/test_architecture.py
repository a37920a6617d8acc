"""Architecture rules that code can check: layers, cycles, file lengths, docstrings, what each stage watches."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from persres.cli.main import main
from persres.experiments.dvc_dependencies import stage_code, with_code
from persres.methods.common.registry import method_names
from persres.units.code_digest import PACKAGE, imports_of, significant
from persres.workflow import STAGES

# From the ground up; docs/development.md says what each is. A module imports from its own layer and those before it.
LAYERS = [
    "errors",
    "untrusted",
    "seeding",
    "package_paths",
    "prompts",
    "logging",
    "config",
    "images",
    "units",
    "versions",
    "miniworld",
    "datasets",
    "models",
    "residuals",
    "sampling",
    "exports",
    "pipeline_mixins",
    "pipeline",
    "training",
    "methods",
    "metrics",
    "report",
    "stages",
    "planning",
    "workflow",
    "personal",
    "personalization",
    "fleet",
    "generate",
    "doctor",
    "reproduction",
    "cli",
    "experiments",
    "cli.main",
    "__main__",
]


def modules() -> dict[str, Path]:
    """Every module of the library by its dotted name."""
    paths = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return paths


def layer(module: str) -> int:
    name = module.removeprefix("persres.")
    fitting = [known for known in LAYERS if name == known or name.startswith(f"{known}.")]
    assert fitting, f"{module} belongs to no layer: add it to LAYERS and to docs/development.md"
    return LAYERS.index(max(fitting, key=len))


def upward(module: str, imported: set[str]) -> list[str]:
    """The imports of higher layers; a package may be above its modules."""
    return [name for name in imported if layer(name) > layer(module) and not module.startswith(f"{name}.")]


def test_arrows_run_downwards_only():
    wrong = {module: upward(module, imports_of(module)) for module in modules() if module != "persres"}
    assert not {module: names for module, names in wrong.items() if names}


def test_no_cycle():
    graph = {module: imports_of(module) - {module} for module in modules()}
    TopologicalSorter(graph).prepare()  # raises CycleError, naming the cycle


def test_upward_imports_and_cycles_are_detected(tmp_path):
    package = tmp_path / "persres"
    (package / "units").mkdir(parents=True)
    for name, text in (
        ("errors", "def f():\n    from persres.units import pool\n"),
        ("units/pool", "import persres.errors\n"),
    ):
        (package / f"{name}.py").write_text(text)
    (package / "units" / "__init__.py").write_text("")
    imported = {name: imports_of(name, package) for name in ("persres.errors", "persres.units.pool")}
    assert upward("persres.errors", imported["persres.errors"]) and not upward(
        "persres.units.pool", imported["persres.units.pool"]
    )
    with pytest.raises(ValueError, match="cycle"):
        TopologicalSorter(imported).prepare()


def test_the_page_names_every_layer(repo):
    page = (repo / "docs" / "development.md").read_text()
    table = page.split("| layer | what |")[1].split("\n\n")[0]
    names = [
        n.rstrip("/").replace("/", ".")
        for row in table.splitlines()
        for n in re.findall(r"`([\w/]+)`", row[: row.find("|", 1)])
    ]
    assert names == LAYERS


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_the_library_imports_neither_prefect_nor_pickle_and_dvc_in_one_place():
    for path in modules().values():
        allowed = {"dvc"} if path == PACKAGE / "versions" / "git_dvc.py" else set()
        assert not imports(path) & {"prefect", "dvc", "pickle", "tasks", "flows"} - allowed, path
        assert "torch.save" not in path.read_text() and "torch.load" not in path.read_text(), path


def test_files_are_short_and_public_objects_have_docstrings(repo):
    for folder in ("persres", "tasks", "flows"):
        for path in (repo / folder).rglob("*.py"):
            text = path.read_text()
            assert len(text.splitlines()) < 400, path
            tree = ast.parse(text)
            assert ast.get_docstring(tree), f"{path} has no docstring"
            for node in tree.body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                    assert ast.get_docstring(node), f"{path}: {node.name} has no docstring"


def test_samplers_touch_no_file_and_no_progress_bar():
    plain = {"__future__", "collections", "dataclasses", "typing", "torch", "diffusers", "persres"}
    assert imports(PACKAGE / "sampling" / "samplers.py") <= plain
    assert imports(PACKAGE / "models" / "conditioning.py") <= plain - {"diffusers", "persres"}


def test_only_its_dataset_names_the_mini_world():
    """And the command line's help, and the experiments, which measure on it."""
    allowed = (
        "miniworld/",
        "experiments/",
        "datasets/miniworld.py",
        "datasets/registry.py",
        "cli/",
        "personalization.py",
    )
    for path in modules().values():
        name = path.relative_to(PACKAGE).as_posix()
        if not name.startswith(allowed):
            words = re.findall(r"\bmini\b|mini_?world", significant(path.read_text()).lower())
            assert not words, f"{name}: {words}"


def test_no_stage_names_a_method():
    below = (
        "units/",
        "models/",
        "residuals/",
        "sampling/",
        "training/",
        "metrics/",
        "report/",
        "stages/",
        "pipeline",
        "workflow",
    )
    for path in modules().values():
        name = path.relative_to(PACKAGE).as_posix()
        if name.startswith(below):
            tree = ast.parse(path.read_text())
            constants = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
            assert not constants & set(method_names()), f"{name} names {constants & set(method_names())}"


def test_the_library_logs_and_only_the_command_line_prints():
    for name, path in modules().items():
        calls = [n.func for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        prints = [call.id for call in calls if isinstance(call, ast.Name) and call.id == "print"]
        assert not prints or name.startswith("persres.cli.") or name == "persres.experiments.cli", name


def test_dvc_depends_on_what_the_stages_import(repo):
    text = (repo / "dvc.yaml").read_text()
    assert with_code(text) == text, "the imports have changed: run persres dev deps --write"
    assert "persres/miniworld/vocabulary.py" in stage_code("score")  # through the attribute classifier
    assert not any("experiments" in entry or "cli" in entry for stage in STAGES for entry in stage_code(stage))


def test_show_without_a_run_is_one_clear_error(tmp_path, capsys):
    assert main(["show", "--data", str(tmp_path)]) == 1
    assert "run make repro first" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["nothing", ""])
def test_an_unknown_stage_is_refused(stage, capsys):
    assert main(["run", stage]) == 2
    assert "tables" in capsys.readouterr().err, "it lists the stages"


def seconds_of(code: str) -> float:
    """The least processor time of three runs: other load only adds to it."""
    timed = f"import time; t = time.process_time(); {code}; print(time.process_time() - t)"
    runs = [subprocess.run([sys.executable, "-c", timed], check=True, capture_output=True, text=True) for _ in range(3)]
    return min(float(done.stdout.split()[-1]) for done in runs)


@pytest.mark.alone
def test_importing_takes_no_time():
    """Next to the two packages that any command needs."""
    heavy = "{'torch', 'diffusers', 'transformers', 'open_clip', 'timm', 'pandas', 'scipy'}"
    needed = seconds_of("import typer, tqdm")
    for name, times in (("persres", 1), ("persres.cli.main", 3)):
        assert seconds_of(f"import sys, {name}; assert not {heavy} & set(sys.modules)") < times * needed, name


def test_stages_that_sample_nothing_import_no_diffusers():
    """Every stage is a process of its own, and diffusers takes seconds."""
    slow = "{'diffusers', 'transformers', 'open_clip', 'timm'}"
    code = (
        f"import sys, persres.workflow, persres.stages.fetch, persres.stages.tables; print({slow} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


def test_public_names_are_the_same_at_every_use():
    """A module with a public name would replace it from the second use on."""
    import persres

    for name in persres.__all__:
        assert getattr(persres, name) is getattr(persres, name) and not inspect.ismodule(getattr(persres, name)), name


@pytest.mark.alone
def test_help_is_quick():
    run = "from persres.cli.main import main\ntry:\n main(['--help'])\nexcept SystemExit: pass"
    assert seconds_of(f"exec({run!r})") < 10 * seconds_of("import typer, tqdm")  # 4 times on an idle machine
