"""The benchmarks measure the stages' own functions: run on small models."""

from __future__ import annotations

import json
import re
from dataclasses import asdict

import pytest
import torch

from persres.cli.main import main
from persres.errors import PersresError
from persres.experiments.benchmarks import full_size
from persres.experiments.benchmarks.goals import goals_of
from persres.experiments.benchmarks.models import ModelChoice, load_measured
from persres.experiments.benchmarks.plain import adapted, plain_training
from persres.experiments.benchmarks.suite import SuiteSettings
from persres.experiments.benchmarks.tables import markdown
from persres.experiments.benchmarks.timing import alternated, flops, matmul_rate, ratio
from persres.experiments.benchmarks.training import photos_of
from persres.experiments.evidence import pages, speed
from persres.residuals.targets import find_targets
from tests.support.family_models import RESOLUTION, narrow


@pytest.mark.parametrize("name", ["sd14", "sdxl"])
def test_rates_are_written_as_measured(tmp_path, monkeypatch, name, capsys):
    monkeypatch.setitem(full_size.FAMILIES, name, narrow(name, 4000))
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
    assert main(["dev", "full-size", *arguments, "--steps", "1", "--batches", "1,2", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "cpu.json").read_text())
    assert record["device"] == "cpu" and record["dtype"] == "float32" and "torch" in record["versions"]
    assert record["train_step_s"] > 0 and set(record["image_s"]) == set(record["image_lag_s"]) == {"1", "2"}
    assert set(record["peak_mib"]) == {"train", "image_1", "image_lag_1", "image_2", "image_lag_2"}
    assert all(value > 0 for part in ("image_s", "image_lag_s", "peak_mib") for value in record[part].values())
    table = (tmp_path / "cpu.md").read_text()
    assert table.count("| image") == 4 and table in capsys.readouterr().out


def test_the_suite_measures_both_sides_of_each_ratio(tmp_path, capsys):
    arguments = ["--device", "cpu", "--rounds", "1", "--train-steps", "1", "--steps", "1", "--batches", "1,2"]
    assert (
        main(
            ["dev", "bench", *arguments, "--concepts-per-batch", "2", "--sampled-concepts", "2", "--out", str(tmp_path)]
        )
        == 0
    )
    record = json.loads((tmp_path / "mini_cpu.json").read_text())
    training, sampling, batched = record["training"], record["sampling"], record["batched"]
    assert set(training["median_s"]) == {"ours", "plain", "cached", "2 concepts"} and set(sampling) == {"1", "2"}
    for row in (training, *sampling.values()):
        assert row["flop_bound_s"] == pytest.approx(row["gflop"] / record["matmul_gflop_s"], rel=0.02)
        for name, seconds in row["median_s"].items():
            assert row["over_flop_bound"][name] == pytest.approx(seconds / row["flop_bound_s"], rel=0.05)
    assert set(batched["median_s"]) == {"one by one", "in one batch", "one by one, LAG", "in one batch, LAG"}
    for row in (training, batched, *sampling.values()):  # one round: its ratio is that of the seconds themselves
        for name, others in row["ratios"].items():
            for other, ratio_ in others.items():
                assert ratio_["ratio"] == pytest.approx(row["median_s"][name] / row["median_s"][other], rel=0.02)
                assert ratio_["low"] == ratio_["ratio"] == ratio_["high"]
    assert (tmp_path / "mini_cpu.png").read_bytes()[:4] == b"\x89PNG"
    table = (tmp_path / "mini_cpu.md").read_text()
    assert table in capsys.readouterr().out and table.count("| ours") >= 3 and "| in one batch, LAG |" in table
    assert [goal["goal"] for goal in record["goals"] if goal["goal"].startswith("sampling")] == [
        "sampling with LAG / without, batch 1",
        "sampling with LAG / without, batch 2",
        "sampling without LAG / diffusers' pipeline, batch 1",
        "sampling without LAG / diffusers' pipeline, batch 2",
    ]
    assert record["versions"]["torch"] and record["threads"] >= 1 and record["amount"]["steps"] == 1


def measured(ratio: float, low: float = 0.0, high: float = 9.0) -> dict[str, float]:
    return {"ratio": ratio, "low": low, "high": high}


def test_goals_say_what_is_met_at_each_batch():
    train = {
        "ratios": {
            "ours": {"plain": measured(0.5), "cached": measured(0.8)},
            "cached": {"plain": measured(0.9)},
            "4 concepts": {"plain": measured(0.5), "cached": measured(0.9), "ours": measured(0.7)},
        }
    }
    sampling = {
        batch: {"ratios": {"lag": {"ours": measured(lag, 0.9, 1.3)}, "ours": {"base pipeline": measured(1.1)}}}
        for batch, lag in (("1", 1.2), ("32", 1.01))
    }
    record = {"model": "mini", "device": "cpu", "training": train, "sampling": sampling}
    goals = {goal["goal"]: goal for goal in goals_of(record)}
    assert {name: goal["met"] for name, goal in goals.items()} == {
        "sampling with LAG / without, batch 1": False,
        "sampling with LAG / without, batch 32": True,
        "sampling without LAG / diffusers' pipeline, batch 1": False,
        "sampling without LAG / diffusers' pipeline, batch 32": False,
        "training of 4 concepts per batch / of 1": False,
        "training of 1 concept per batch / plain loop": True,
        "training of 1 concept per batch / loop with caches": False,
        "training of 4 concepts per batch / plain loop": True,
        "training of 4 concepts per batch / loop with caches": False,
    }
    assert (
        goals["sampling with LAG / without, batch 32"]["low"],
        goals["sampling with LAG / without, batch 32"]["high"],
    ) == (0.9, 1.3)


def test_a_gpus_goals_are_of_seconds():
    train = {"median_s": {"ours": 0.06, "4 concepts": 0.03}, "rounds_s": {"ours": [0.05, 0.08], "4 concepts": [0.03]}}
    sampling = {"16": {"steps": 10, "median_s": {"ours": 0.04}, "rounds_s": {"ours": [0.04]},
                    "ratios": {"lag": {"ours": measured(1.0)}, "ours": {"base pipeline": measured(1.0)}}}}  # fmt: skip
    goals = goals_of({"model": "sd14", "device": "an H100", "training": train, "sampling": sampling})
    values = {goal["goal"]: (goal["measured"], goal["high"], goal["met"]) for goal in goals[2:]}
    assert values == {
        "150 training steps of 1 concept, s": (9.0, 12.0, True),
        "150 training steps of 4 concepts per batch, s per concept": (4.5, 4.5, False),
        "one image of 50 steps, batch 16, s": (0.2, 0.2, True),
    }


def test_the_plain_loops_learn_the_same_modules_at_the_same_ranks():
    measured = load_measured(ModelChoice("mini"), torch.device("cpu"))
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
    # of each round's own, not of the medians 4 and 4
    assert ratio([2.0, 30.0, 4.0], [1.0, 10.0, 4.0]) == {"ratio": 2.0, "low": 1.0, "high": 3.0}


def test_operations_are_counted():
    a, b = torch.randn(8, 16), torch.randn(16, 32)
    assert flops(lambda: a @ b) == 2 * 8 * 16 * 32
    assert matmul_rate(torch.device("cpu"), torch.float32, size=64, rounds=2) > 1e6


def test_an_unknown_model_is_one_clear_error():
    with pytest.raises(PersresError, match="no model 'sdxl' for this benchmark; one of mini, sd14, sd21"):
        load_measured(ModelChoice("sdxl"), torch.device("cpu"))


def test_the_page_quotes_what_was_measured(repo):
    page, record = (repo / "docs" / "speed.md").read_text(), speed.records(repo / "data" / "bench")
    assert set(pages.block_names(page, "bench")) == set(speed.BLOCKS)
    assert pages.fill(page, record, speed.BLOCKS, "bench") == page, "docs/speed.md is stale: run persres dev pages"
    assert markdown(record["mini_cpu"]) == (repo / "data" / "bench" / "mini_cpu.md").read_text()
    assert record["mini_cpu"]["goals"] == goals_of(record["mini_cpu"])
    run = record["chain"]["dvc"]
    assert run["overhead"] == pytest.approx((run["wall_s"] - run["bare_s"]) / run["bare_s"], abs=1e-3)
    assert f"| *total* | {run['wall_s']:.0f} |" in page and f"is {run['overhead']:.0%} more" in page


def test_make_bench_measures_as_the_committed_run_did(repo):
    recipe = re.search(r"^bench: setup\n\t(.*)$", (repo / "Makefile").read_text(), re.MULTILINE)[1]
    record = json.loads((repo / "data" / "bench" / "mini_cpu.json").read_text())
    values = {
        name.replace("-", "_"): tuple(map(int, value.split(",")))
        for name, value in re.findall(r"--([\w-]+) ([\d,]+)", recipe)
    }
    settings = asdict(SuiteSettings()) | {
        name: value if isinstance(getattr(SuiteSettings, name), tuple) else value[0] for name, value in values.items()
    }
    assert f"OMP_NUM_THREADS={record['threads']} " in recipe
    assert {name: json.loads(json.dumps(settings[name])) for name in record["amount"]} == record["amount"]
