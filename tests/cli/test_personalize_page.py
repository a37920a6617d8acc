"""The page that ``persres personalize`` leaves next to a residual, run on the mini world: its weights are stored in half precision."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from persres.methods.common.registry import load_profile
from persres.personalization import usage_text
from tests.support.doc_blocks import blocks

RESIDUAL = Path(__file__).parent.parent / "fixtures" / "v0_1" / "residuals" / "ours.safetensors"


def test_the_page_of_a_mini_world_residual_runs(tmp_path, monkeypatch):
    profile = load_profile(profile="mini")
    profile = profile.model_copy(update={"sample": profile.sample.model_copy(update={"steps": 2})})
    shutil.copy(RESIDUAL, tmp_path / "my_mug.safetensors")
    (block,) = blocks(usage_text(profile, "my_mug", "mug"), "page")
    monkeypatch.chdir(tmp_path)
    exec(block.text, {})
    assert (tmp_path / "beach.png").exists()


@pytest.mark.parametrize("model", ["someone/model", "my models/x.safetensors", 'a "quoted" name'])
def test_the_page_names_the_model_in_one_line_of_code(model, monkeypatch):
    monkeypatch.setattr("persres.models.base_model.loading_arguments", lambda model, arguments: {"dtype": None})
    monkeypatch.setattr("persres.models.base_model.supported_pipeline", lambda model: "StableDiffusionPipeline")
    profile = load_profile(profile="mini")
    profile = profile.model_copy(update={"base": profile.base.model_copy(update={"model": model})})
    (block,) = blocks(usage_text(profile, "my_mug", "mug"), "page")
    compile(block.text, "page", "exec")
    kind = (
        "StableDiffusionPipeline.from_single_file"
        if model.endswith(".safetensors")
        else "DiffusionPipeline.from_pretrained"
    )
    assert f"pipe = {kind}(" in block.text
