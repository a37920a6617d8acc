"""The benchmarks measure the stages' own functions: run on small models."""

from __future__ import annotations

import json

import pytest
import torch
from family_models import RESOLUTION, narrow

from persres.benchmarks import rates
from persres.benchmarks.models import model_named
from persres.benchmarks.plain import adapted, plain_training
from persres.benchmarks.suite import goals_of, markdown
from persres.benchmarks.timing import alternated, flops, matmul_rate, ratio
from persres.benchmarks.training import photos_of
from persres.cli import main
from persres.errors import PersresError
from persres.residuals.bank import find_targets


@pytest.mark.parametrize("name", ["sd14", "sdxl"])
def test_rates_are_written_as_measured(tmp_path, monkeypatch, name, capsys):
    monkeypatch.setitem(rates.FAMILIES, name, narrow(name, 4000))
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
    assert main(["rates", *arguments, "--steps", "1", "--batches", "1,2", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "cpu.json").read_text())
    assert found["device"] == "cpu" and found["dtype"] == "float32" and "torch" in found["versions"]
    assert found["train_step_s"] > 0 and set(found["image_s"]) == set(found["image_lag_s"]) == {"1", "2"}
    assert set(found["peak_mib"]) == {"train", "image_1", "image_lag_1", "image_2", "image_lag_2"}
    assert all(value > 0 for part in ("image_s", "image_lag_s", "peak_mib") for value in found[part].values())
    table = (tmp_path / "cpu.md").read_text()
    assert table.count("| picture") == 4 and table in capsys.readouterr().out


def test_the_suite_measures_both_sides_of_each_ratio(tmp_path, capsys):
    arguments = ["--device", "cpu", "--rounds", "1", "--train-steps", "1", "--steps", "1", "--batches", "1,2"]
    assert main(["bench", *arguments, "--together", "2", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "mini_cpu.json").read_text())
    train, drawn = found["training"], found["sampling"]
    assert set(train["step_s"]) == {"ours", "plain", "cached", "2 together"} and set(drawn) == {"1", "2"}
    for row, key in ((train, "step_s"), *((row, "picture_s") for row in drawn.values())):
        assert row["floor_s"] == pytest.approx(row["gflop"] / found["matmul_gflop_s"], rel=0.02)
        for name, seconds in row[key].items():
            assert row["over_floor"][name] == pytest.approx(seconds / row["floor_s"], rel=0.05)
    # one round: its ratio is that of the seconds themselves
    assert train["of_cached"] == pytest.approx(train["step_s"]["ours"] / train["step_s"]["cached"], rel=0.01)
    assert drawn["2"]["lag_of_ours"] == pytest.approx(
        drawn["2"]["picture_s"]["lag"] / drawn["2"]["picture_s"]["ours"], rel=0.01
    )
    assert (tmp_path / "mini_cpu.png").read_bytes()[:4] == b"\x89PNG"
    table = (tmp_path / "mini_cpu.md").read_text()
    assert table in capsys.readouterr().out and table.count("| ours") >= 3 and len(found["goals"]) == 6
    assert found["versions"]["torch"] and found["threads"] >= 1


def test_goals_say_what_is_met():
    train = {
        "of_plain": 0.5,
        "of_cached": 0.8,
        "together_of_alone": {"4": 0.7, "8": 0.6},
        "together_of_plain": {"4": 0.5, "8": 0.4},
        "together_of_cached": {"4": 0.9, "8": 0.5},
    }
    drawn = {"8": {"lag_of_ours": 9.0, "of_base": 9.0}, "32": {"lag_of_ours": 1.01, "of_base": 1.1}}
    goals = goals_of({"model": "mini", "device": "cpu", "training": train, "sampling": drawn})
    met = {goal["goal"]: goal["met"] for goal in goals}
    assert met == {
        "LAG, of the same without": True,
        "normal sampling, of the base pipeline": False,
        "training alone, of the plain loop": True,
        "training alone, of the loop with caches": False,
        "four concepts in one pass, of four alone": False,
        "training as the stage does, 8 in one pass, of the plain loop": True,
        "training as the stage does, 8 in one pass, of the loop with caches": True,
    }


def test_the_plain_loops_learn_the_same_modules_at_the_same_ranks():
    measured = model_named("mini", torch.device("cpu"), "float32")
    unet, targets = adapted(measured), find_targets(measured.pipe.unet, measured.settings.rank_ratio)
    learned = {name: p for name, p in unet.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in learned.values()) == sum(t.rank * (t.width + t.width_in) for t in targets)
    assert {name.partition(".lora_")[0] for name in learned} == {target.path for target in targets}
    before = {name: p.detach().clone() for name, p in learned.items()}
    for cached in (False, True):
        run = plain_training(measured, photos_of(measured), 1, cached)
        run()
    unchanged = [name for name, p in unet.named_parameters() if name in before and not torch.equal(p, before[name])]
    assert not unchanged, "each loop has a copy of its own"


def test_alternating_turns_round_and_ratios_are_of_neighbours():
    order: list[str] = []
    taken = alternated({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3, torch.device("cpu"))
    assert "".join(order) == "ab" + "ab" + "ba" + "ab" and all(len(seconds) == 3 for seconds in taken.values())
    assert ratio([2.0, 30.0, 4.0], [1.0, 10.0, 4.0]) == 2.0


def test_operations_are_counted():
    a, b = torch.randn(8, 16), torch.randn(16, 32)
    assert flops(lambda: a @ b) == 2 * 8 * 16 * 32
    assert matmul_rate(torch.device("cpu"), torch.float32, size=64, rounds=2) > 1e6


def test_an_unknown_model_is_one_clear_error():
    with pytest.raises(PersresError, match="no model 'sdxl' to measure beside others; one of mini, sd14, sd21"):
        model_named("sdxl", torch.device("cpu"), "float32")


def test_the_page_quotes_what_was_measured(repo):
    page = (repo / "docs" / "speed.md").read_text()
    quoted = page.partition("<!-- bench -->")[2].partition("<!-- /bench -->")[0].strip()
    found = json.loads((repo / "data" / "bench" / "mini_cpu.json").read_text())
    assert quoted == markdown(found).strip() == (repo / "data" / "bench" / "mini_cpu.md").read_text().strip()
    assert found["goals"] == goals_of(found)
