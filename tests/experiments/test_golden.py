"""The golden run: every part of the chain and each study's core computes what it computed when its figures were recorded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from persres.cli.main import main
from persres.errors import PersresError
from persres.experiments.golden import run as golden
from persres.experiments.golden.figures import Collector, image_statistics, mask_statistics, weight_changes
from persres.experiments.golden.run import (
    ADVICE,
    TOLERANCES,
    golden_differences,
    measure_golden,
    read_golden,
    record_golden,
)


def test_the_code_computes_what_it_computed(repo):
    recorded = read_golden(repo / golden.FILE)
    lines = golden_differences(recorded, measure_golden())
    assert not lines, "\n".join([f"{len(lines)} golden figures differ: {ADVICE}", *lines[:40]])


def test_the_record_says_when_it_was_measured_and_holds_every_kind(repo):
    recorded = read_golden(repo / golden.FILE)
    assert recorded["measured"].startswith("at commit ") and " on 20" in recorded["measured"]
    assert set(recorded["figures"]) - {"text"} == set(TOLERANCES) == set(recorded["tolerances"])
    assert sum(map(len, recorded["figures"].values())) > 1000


def recorded(**figures) -> dict:
    return {"tolerances": {"loss": [0.0, 0.01], "mask": [0.1, 0.0]}, "figures": figures}


def test_a_figure_beyond_its_tolerance_is_named():
    before = recorded(loss={"a": 1.0, "b": 2.0}, mask={"m": 0.5}, text={"t": "cat"})
    same = {"loss": {"a": 1.0099, "b": 1.981}, "mask": {"m": 0.59}, "text": {"t": "cat"}}
    assert golden_differences(before, same) == []
    other = {"loss": {"a": 1.02, "b": 2.0}, "mask": {"m": 0.39}, "text": {"t": "dog"}}
    assert [line.split(":")[0] for line in golden_differences(before, other)] == ["loss a", "mask m", "text t"]


def test_a_figure_that_is_missing_or_new_is_named():
    before = recorded(loss={"a": 1.0})
    assert golden_differences(before, {"loss": {"b": 1.0}}) == ["loss a: no longer measured", "loss b: not recorded"]
    assert golden_differences(before, {}) == ["loss a: no longer measured"]


def test_a_number_that_became_text_differs():
    assert golden_differences(recorded(text={"t": "1"}), {"text": {"t": 1.0}}) != []


def test_the_command_compares_and_records(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(golden, "measure_golden", lambda: {"loss": {"a": 1.0}})
    assert main(["dev", "golden", "--record"]) == 0 and (tmp_path / golden.FILE).exists()
    assert main(["dev", "golden"]) == 0
    assert "1 golden figures are as recorded at commit" in capsys.readouterr().out
    monkeypatch.setattr(golden, "measure_golden", lambda: {"loss": {"a": 2.0}})
    assert main(["dev", "golden"]) == 1
    assert ADVICE in capsys.readouterr().err
    assert read_golden()["figures"] == {"loss": {"a": 1.0}}, "only --record writes"


def test_without_a_record_the_message_names_the_command(tmp_path):
    with pytest.raises(PersresError, match="golden --record"):
        read_golden(tmp_path / "none.json")
    record_golden({"loss": {"a": 1.0}}, tmp_path / "figures.json")
    assert read_golden(tmp_path / "figures.json")["tolerances"]["loss"] == list(TOLERANCES["loss"])


def test_image_statistics_see_what_happens_to_an_image():
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    pixels[:20, :30] //= 3
    before = image_statistics(pixels)
    changed = [pixels[::-1], pixels[:, ::-1], pixels[..., ::-1], 255 - pixels, pixels.transpose(1, 0, 2)]
    for other in changed:
        assert max(abs(before[name] - value) for name, value in image_statistics(other).items()) > 0.01


def test_mask_statistics_see_area_and_place():
    left = np.zeros((16, 16))
    left[:, :4] = 1
    assert mask_statistics(left)["area"] == 0.25 and mask_statistics(left)["across"] < -0.1
    assert mask_statistics(left.T)["down"] == mask_statistics(left)["across"]


def test_nan_is_left_out_and_a_name_is_measured_once():
    out = Collector()
    out.add_all("score", "a", {"x": float("nan"), "y": None, "z": 1.23456789})
    assert out.figures == {"score": {"a/z": 1.23457}}
    with pytest.raises(ValueError, match="twice"):
        out.add("score", "a/z", 1.0)
    out.add_image("i", Image.new("RGB", (8, 8), "red"))
    assert out.figures["image"]["i/red_minus_blue"] == 1.0


def test_weight_changes_of_a_residual_and_of_full_weights(tmp_path):
    (tmp_path / "unet").mkdir()
    frozen = {"a.proj_out.weight": torch.eye(4)[..., None, None].contiguous(), "b.c.d.weight": torch.ones(2)}
    save_file(frozen, tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    up, down = torch.ones(4, 1, 1, 1), torch.ones(1, 4, 1, 1)
    save_file({"unet.a.proj_out.lora_A.weight": down, "unet.a.proj_out.lora_B.weight": up}, tmp_path / "r.safetensors")
    ((path, (size, projection)),) = weight_changes(tmp_path / "r.safetensors", tmp_path).items()
    assert path == "a.proj_out" and size == pytest.approx(2.0) and projection != 0
    save_file({"unet.b.c.d.weight": torch.tensor([1.0, 2.0]), "token": torch.ones(3)}, tmp_path / "w.safetensors")
    changes = weight_changes(tmp_path / "w.safetensors", tmp_path)
    assert changes["b.c"][0] == pytest.approx(0.5**0.5) and changes["token"][0] == pytest.approx(3**0.5)
