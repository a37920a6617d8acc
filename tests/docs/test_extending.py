"""What docs/development.md says about extending persres: each addition is made in a copy of the package, and one run uses all of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

MASK = '''def upper(attention: torch.Tensor, area: float = 0.5) -> torch.Tensor:
    """The upper half of the image."""
    return (torch.arange(attention.shape[1]) < attention.shape[1] / 2).to(attention).expand_as(attention)


'''
RIVAL = '''"""A rival of this test: it trains the U-Net's last bias."""

from typing import Literal

from persres.methods.common.rival import Rival, RivalSettings
from persres.training.batches import TrainingPlan, plain_batch


class LastBias(RivalSettings):
    """One setting of this method only."""

    method: Literal["last_bias"] = "last_bias"
    caption: str = "a photo of a {} {}"


def plan(diffusion, settings, data):
    """Photos with one caption."""
    caption = settings.caption.format(data.base.token, data.macro_class)
    batch = lambda step, draw: plain_batch(data.photos, caption, settings.batch_size, draw)
    return TrainingPlan(["unet.conv_out.bias"], {"unet.": settings.lr}, batch)


METHOD = Rival("last_bias", LastBias, lambda token, rare, macro_class: f"{token} {macro_class}", plan)
'''
SCORE = '''"""A score of this test."""

import numpy as np


def brightness(inputs):
    """One half for each image, [n]."""
    return np.full(len(inputs.names), 0.5)
'''
DATASET = '''"""A dataset of this test: one square."""

from PIL import Image

from persres.datasets.layout import Concept, write_concept


def fetch(settings, folder):
    """Write one concept."""
    here = write_concept(folder, Concept("square", "shape", "mug", (("background", "a photo of a {}"),)))
    Image.new("RGB", (64, 64), "red").save(here / "images" / "0.png")
    return 1


def size(settings):
    """One concept with one prompt."""
    return 1, 1
'''
COMMAND = '''def hello() -> None:
    """Print a greeting."""
    print("hello")


COMMANDS = {
    "hello": Command(hello),
'''
PARAMETRISATION = """PARAMETRISATIONS: dict[str, Parametrisation] = {
    "bounded": Parametrisation(_scaled_normal, lambda up, down: (30 * up.tanh(), down)),
"""
# addition -> file -> its text, or (a text in it, what stands there afterwards)
ADDITIONS: dict[str, dict[str, str | tuple[str, str]]] = {
    "a mask": {
        "persres/sampling/masks.py": ("def otsu_means(", MASK + "def otsu_means("),
        "persres/config/schema.py": ('MaskName = Literal["median", ', 'MaskName = Literal["upper", "median", '),
    },
    "a rival": {"persres/methods/last_bias.py": RIVAL},
    "a score": {
        "persres/metrics/brightness.py": SCORE,
        "persres/metrics/scores.py": (
            "SCORES = {score.name: score for score in (\n",
            'SCORES = {score.name: score for score in (\n    Score("brightness", "brightness", "brightness"),\n',
        ),
    },
    "a CLI command": {"persres/cli/run.py": ("COMMANDS = {\n", COMMAND)},
    "a dataset": {
        "persres/datasets/square.py": DATASET,
        "persres/datasets/registry.py": ('    "folder": None,\n', '    "folder": None,\n    "square": None,\n'),
    },
    "a parametrisation of the residual": {
        "persres/residuals/parametrisations.py": (
            "PARAMETRISATIONS: dict[str, Parametrisation] = {\n",
            PARAMETRISATION,
        )
    },
}


@pytest.fixture(scope="module")
def copy(repo, tmp_path_factory) -> Path:
    """The package without its weights, with every addition."""
    copy = tmp_path_factory.mktemp("copy")
    shutil.copytree(repo / "persres", copy / "persres", ignore=shutil.ignore_patterns("weights"))
    shutil.copy(repo / "dvc.yaml", copy)
    for files in ADDITIONS.values():
        for name, change in files.items():
            path = copy / name
            if isinstance(change, tuple):
                before, text = path.read_text(), change[0]
                assert before.count(text) == 1, f"{name} no longer has {text!r} once"
                path.write_text(before.replace(*change))
            else:
                path.write_text(change)
    return copy


def persres(copy: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(copy)}
    command = [sys.executable, "-m", "persres", *arguments]
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)


def test_the_page_lists_the_files_of_each_addition(repo):
    page = (repo / "docs" / "development.md").read_text()
    rows = re.findall(r"^\| (a [^|]+) \| (.*?) \|", page, re.MULTILINE)
    listed = {
        name: {re.sub(r"<\w+>", "*", path) for path in re.findall(r"`(persres/[^`]+)`", files)} for name, files in rows
    }
    assert set(listed) == set(ADDITIONS)
    for name, files in ADDITIONS.items():
        assert len(files) == len(listed[name]) <= 2
        for path in files:
            assert any(Path(path).match(pattern) for pattern in listed[name]), (
                f"{name}: {path} is not in {listed[name]}"
            )


def test_one_run_uses_every_addition(copy, tiny_params):
    settings = yaml.safe_load(tiny_params.read_text())
    tiny = settings["tiny"]
    tiny["fetch"] = {"dataset": "square"}
    tiny["train"]["variants"] = {
        "ours": {},
        "bounded": {"init": "bounded"},
        "bias": {"method": "last_bias", "steps": 2, "lr": 0.5},
    }
    tiny["sample"]["configs"] = {
        "base": {},
        "ours": {"variant": "ours"},
        "upper": {"variant": "ours", "lag": True, "mask": "upper"},
        "bounded": {"variant": "bounded"},
        "bias": {"variant": "bias"},
    }
    (copy / "params.yaml").write_text(yaml.safe_dump(settings))
    ran = persres(copy, "run")
    assert ran.returncode == 0, ran.stderr
    table = pd.read_csv(copy / "data" / "tables" / "table1.csv", index_col=0)
    assert table["brightness"].tolist() == [0.5] * 5 and table["dino"].notna().all()
    assert table.loc["bias", "params"] == 4
    archives = {(copy / "data" / "samples" / name / "square.zip").read_bytes() for name in tiny["sample"]["configs"]}
    assert len(archives) == 5
    assert persres(copy, "hello").stdout == "hello\n"


def test_the_settings_of_a_new_method_are_typed(copy, tiny_params):
    settings = yaml.safe_load(tiny_params.read_text())
    settings["tiny"]["train"]["variants"] = {
        "bias": {"method": "last_bias", "captoin": "x"},
        "x": {"method": "nothing"},
    }
    (copy / "params.yaml").write_text(yaml.safe_dump(settings))
    refused = persres(copy, "run", "train")
    assert refused.returncode == 1
    assert "variants.bias.captoin: unknown setting" in refused.stderr
    assert "no method 'nothing'; one of custom_diffusion, dreambooth, last_bias" in refused.stderr
