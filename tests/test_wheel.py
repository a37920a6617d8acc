"""The wheel: its files, and that it works without a checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

UV = Path(sys.executable).parent / "uv"


@pytest.fixture(scope="module")
def wheel(repo, tmp_path_factory) -> Path:
    """Built from the checkout with the installed setuptools, without network."""
    out, source = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE", "params.yaml"):
        shutil.copy(repo / name, source)
    for name in ("persres", "tasks", "flows"):  # in a copy: setuptools writes next to its sources
        shutil.copytree(repo / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    command = [UV, "build", "--wheel", "--no-build-isolation", "--python", sys.executable, "--out-dir", out, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(out.glob("persres-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A folder with only the installed package and its command."""
    site = tmp_path_factory.mktemp("site")
    command = [UV, "pip", "install", "--quiet", "--no-deps", "--target", site, "--python", sys.executable, wheel]
    subprocess.run(command, check=True, capture_output=True)
    return site


def run(installed: Path, folder: Path, *command: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(installed), "COLUMNS": "100"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_holds_the_library_with_weights_and_nouns_and_no_global_tasks(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"persres"}
    for wanted in ("params.yaml", "miniworld/weights/sd/unet/config.json", "miniworld/weights/nouns.txt"):
        assert f"persres/{wanted}" in names
    assert [name for name in names if name.startswith("persres/datasets/wordnet/") and name.endswith(".xz")]
    assert not [name for name in names if "tests" in name or "experiments" in name or name.endswith(".pyc")]


def test_it_works_in_an_empty_folder(installed, tmp_path):
    """Settings, the mini world's models and WordNet's nouns come from the package."""
    code = """
import persres
from persres.datasets.wordnet import load_candidates
from persres.methods.common.registry import load_profile
from persres.models.diffusion import load_diffusion
from pathlib import Path
profile = load_profile(Path(persres.__file__).parent / "params.yaml", "mini")
diffusion = load_diffusion(profile.base, "cpu")
nouns = [len(load_candidates(source)) for source in ("wordnet", profile.macro_class.candidates)]
print(persres.__file__, len(persres.find_targets(diffusion.unet)), *nouns)
"""
    path, targets, nouns, mini_nouns = run(installed, tmp_path, sys.executable, "-c", code).split()[-4:]
    assert Path(path).is_relative_to(installed)
    assert (int(targets), int(nouns), int(mini_nouns)) == (7, 117_798, 8)


def test_its_command_runs_in_an_empty_folder(installed, tmp_path):
    command = str(installed / "bin" / "persres")
    assert "personalize" in run(installed, tmp_path, command, "--help")
    assert "sample" in run(installed, tmp_path, command, "estimate", "--profile", "mini")


def test_dev_commands_need_a_checkout(installed, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(installed)}
    # without the finder of an editable install, which knows the checkout
    code = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
from persres.cli.main import main
sys.exit(main(["dev", "deps"]))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "persres dev needs a checkout: git clone" in done.stderr
