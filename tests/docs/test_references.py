"""Paths, commands and make targets that pages, docstrings, comments and messages name exist."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer.main

from persres.cli.main import RENAMED, app
from tests.support.doc_blocks import ROOT, pages

CODE = ("persres", "tasks", "flows", "tests", "Makefile", "params.yaml", "dvc.yaml", "pyproject.toml", "prefect.yaml")
SELF = Path(__file__).name
PATH = re.compile(r"(?<![\w/.*<{-])((?:persres|tests|docs|data|tasks|flows)/[\w./*<>‹›{}-]*[\w*>/›}])")
MAKE = re.compile(
    r"`make ([a-z][a-z0-9-]*)|^\s*(?:\S*#\s*)?make ([a-z][a-z0-9-]*)|; run make ([a-z][a-z0-9-]*)", re.MULTILINE
)
PERSRES = re.compile(
    r"(?:`|[\"'] ?|\(|&& |run |use |^\t)persres ((?:dev )?[a-z][a-z-]*)(?=[ `'\"),.;:]|$)", re.MULTILINE
)
PUBLISHED = "|".join(("concepts", "costs", "macro_class", "learned", "samples", "scores", "tables", "sheets", "cards"))
MADE = re.compile(
    rf"data/({PUBLISHED}|photos|bench/gpu.json|settings.yaml|preflight.json)(/|$)|(persres|tests)/.*[<>‹›*{{}}]|(data|docs)/.*[<>‹›{{}}]"
)  # by a run, or a pattern


def files() -> list[Path]:
    """Pages, and tracked code without fixtures."""
    listed = subprocess.run(["git", "ls-files", "--", *CODE], cwd=ROOT, capture_output=True, text=True, check=True)
    code = [ROOT / name for name in listed.stdout.split("\n") if name.endswith((".py", ".yaml", ".toml", "Makefile"))]
    code = [path for path in code if "fixtures" not in path.parts and path.name != SELF and path.exists()]
    return [*pages(), *code, ROOT / "persres" / "miniworld" / "weights" / "MODEL_CARD.md"]


def matches(pattern: re.Pattern, paths: list[Path]) -> Iterator[tuple[str, str]]:
    """Matches with file and line."""
    for path in paths:
        text = path.read_text()
        for match in pattern.finditer(text):
            yield (
                f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}",
                next(filter(None, match.groups())),
            )


def exists(path: str) -> bool:
    path = path.rstrip(".")
    return bool(MADE.match(path)) or (ROOT / path).exists() or (ROOT / f"{path}.py").exists()


def test_named_paths_exist():
    library = [path for path in files() if path.parts[len(ROOT.parts)] != "tests"]  # tests write files of their own
    missing = [f"{at}: {path}" for at, path in matches(PATH, library) if not exists(path)]
    assert not missing, "\n".join(missing)


@cache
def commands() -> set[str]:
    group = typer.main.get_command(app)
    return {*group.commands, *(f"dev {name}" for name in group.commands["dev"].commands), "dev"}


def test_named_commands_exist():
    words = {"is", "are", "on", "and", "has", "needs", "reads", "itself", "dev"}  # of sentences about persres
    wrong = [
        f"{at}: persres {name}"
        for at, name in matches(PERSRES, files())
        if name not in commands() and name.split()[0] not in words and not at.startswith(("persres/cli/main", "tests/"))
    ]
    assert not wrong, "\n".join(wrong)


def test_named_make_targets_exist():
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    words = {"it", "sure", "room", "sense", "the", "a", "nothing"}
    wrong = [f"{at}: make {name}" for at, name in matches(MAKE, files()) if name not in targets | words]
    assert not wrong, "\n".join(wrong)


def test_help_of_make_names_every_target_and_only_those():
    makefile = (ROOT / "Makefile").read_text()
    listed = set(re.findall(r'@echo "make ([a-z0-9-]+)', makefile))
    phony = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split())
    assert listed <= phony and phony <= set(re.findall(r"^([a-z][a-z0-9-]*):", makefile, re.MULTILINE))


def test_the_package_has_the_settings_file():
    assert (ROOT / "persres" / "params.yaml").resolve() == ROOT / "params.yaml", "a link, so that both are the same"


@pytest.mark.parametrize(
    ("pattern", "text", "name"),
    [
        (PATH, "see `persres/nothing/here.py`", "persres/nothing/here.py"),
        (PERSRES, "run `persres chain` again", "chain"),
        (MAKE, "`make scale` does it", "scale"),
    ],
)
def test_false_references_are_caught(pattern, text, name, tmp_path):
    match = pattern.search(text)
    assert next(filter(None, match.groups())) == name
    assert name in RENAMED or not exists(name)
