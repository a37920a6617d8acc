"""A new method is one file in persres/methods/ and a line in params.yaml; tested on a copy of the package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

METHOD = '''
"""A method of this test: it trains the U-Net's last bias."""

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


@pytest.fixture
def copy(repo, tmp_path) -> Path:
    """The package without its weights, and one file more."""
    unneeded = shutil.ignore_patterns("__pycache__", "weights")
    shutil.copytree(repo / "persres", tmp_path / "copy" / "persres", ignore=unneeded)
    shutil.copy(repo / "dvc.yaml", tmp_path / "copy")
    (tmp_path / "copy" / "persres" / "methods" / "last_bias.py").write_text(METHOD.lstrip())
    return tmp_path / "copy"


def persres(copy: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(copy)}
    command = [sys.executable, "-m", "persres", *arguments]
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)


def test_a_method_is_one_file_and_a_line_of_settings(copy, tiny_params):
    settings = yaml.safe_load(tiny_params.read_text())
    tiny = settings["tiny"]
    tiny["fetch"] |= {"concepts": ["heart_mug"]}
    tiny["train"]["variants"] = {"ours": {}, "bias": {"method": "last_bias", "steps": 2, "lr": 0.5}}
    tiny["sample"]["configs"] = {"base": {}, "ours": {"variant": "ours"}, "bias": {"variant": "bias"}}
    (copy / "params.yaml").write_text(yaml.safe_dump(settings))
    done = persres(copy, "run")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(copy / "data" / "tables" / "table1.csv").set_index("config")
    assert table.loc["bias", "params"] == 4 and table["dino"].notna().all()
    archives = [(copy / "data" / "samples" / name / "heart_mug.zip").read_bytes() for name in ("base", "bias")]
    assert archives[0] != archives[1]
    assert "nothing has changed" in persres(copy, "dev", "deps", "--write").stdout, "DVC watches the new file already"


def test_its_settings_are_typed_like_any_others(copy, tiny_params):
    settings = yaml.safe_load(tiny_params.read_text())
    settings["tiny"]["train"]["variants"] = {
        "bias": {"method": "last_bias", "captoin": "x"},
        "x": {"method": "nothing"},
    }
    (copy / "params.yaml").write_text(yaml.safe_dump(settings))
    done = persres(copy, "run", "train")
    assert done.returncode == 1
    assert "variants.bias.captoin: unknown setting" in done.stderr
    assert "no method 'nothing'; one of custom_diffusion, dreambooth, last_bias" in done.stderr
