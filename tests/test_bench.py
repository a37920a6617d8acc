"""The bench measures the stages' own functions: run on a narrow model."""

from __future__ import annotations

import json

import pytest
from family_models import RESOLUTION, narrow

from persres import bench
from persres.cli import main


@pytest.mark.parametrize("name", ["sd14", "sdxl"])
def test_bench_writes_what_it_measured(tmp_path, monkeypatch, name, capsys):
    monkeypatch.setitem(bench.FAMILIES, name, narrow(name, 4000))
    arguments = [
        "--family",
        name,
        "--device",
        "cpu",
        "--resolution",
        str(RESOLUTION),
        "--train-steps",
        "2",
        "--train-batch",
        "1",
    ]
    assert main(["bench", *arguments, "--steps", "1", "--batches", "1,2", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "cpu.json").read_text())
    assert found["device"] == "cpu" and found["dtype"] == "float32" and "torch" in found["versions"]
    assert found["train_step_s"] > 0 and set(found["image_s"]) == set(found["image_lag_s"]) == {"1", "2"}
    assert set(found["peak_mib"]) == {"train", "image_1", "image_lag_1", "image_2", "image_lag_2"}
    assert all(value > 0 for part in ("image_s", "image_lag_s", "peak_mib") for value in found[part].values())
    table = (tmp_path / "cpu.md").read_text()
    assert table.count("| picture") == 4 and table in capsys.readouterr().out
