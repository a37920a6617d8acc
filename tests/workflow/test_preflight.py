"""`persres preflight`: each known answer on made-up results that hold and that do not; one whole call on the mini world."""

from __future__ import annotations

import json
import os

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from persres.cli.main import main
from persres.errors import PersresError
from persres.images import png_bytes, zip_bytes
from persres.methods.common.registry import load_profile, make_profile
from persres.metrics.paper_figures import MODEL
from persres.reproduction import preflight as module
from persres.reproduction.preflight import CHECKS, Check, Report, Results, derived_profile, preflight
from persres.units.context import Context


def of(name: str, results: Results) -> Check:
    """One check by the beginning of its name."""
    title, expected, known = next(check for check in CHECKS if check[0].startswith(name))
    return module._checked(title, expected, known, results)


@pytest.fixture
def results(tmp_path) -> Results:
    """Results of the paper's model: figures as published."""
    profile = derived_profile(make_profile({"fetch": {"dataset": "customconcept101"}}), None)
    made = Results(Context(profile, tmp_path, tmp_path / "work"), "dog6")
    (tmp_path / "scores").mkdir()
    write_scores(made, base=(0.81, 0.29), ours=(0.72, 0.57), ours_lag=(0.72, 0.54))
    write_costs(made, 180.0)
    write_images(made, object_level=200, rest_level=20)
    return made


def write_scores(made: Results, **means: tuple[float, float]) -> None:
    rows = [{"config": name, "clip_text": text, "dino": dino} for name, (text, dino) in means.items() for _ in range(3)]
    pd.DataFrame(rows).to_parquet(made.context.data / "scores" / "scores.parquet")
    made.__dict__.pop("scores", None)


def write_costs(made: Results, seconds: float | None, image_seconds: float | None = 1.5) -> None:
    folder = made.context.data / "costs"
    folder.mkdir(exist_ok=True)
    pd.DataFrame([{"variant": "ours", "seconds": seconds, "peak_mib": 4955, "device": "a GPU"}]).to_csv(
        folder / "train.csv", index=False
    )
    pd.DataFrame([{"config": "ours_lag", "variant": "ours", "image_seconds": image_seconds}]).to_csv(
        folder / "sample.csv", index=False
    )
    made.__dict__.pop("costs", None)


def write_images(made: Results, object_level: int, rest_level: int) -> None:
    """Ours differs from a black base image everywhere by ``object_level``; LAG by ``object_level`` in its mask's half and by ``rest_level`` elsewhere."""
    black, mask = np.zeros((8, 8, 3), np.uint8), np.zeros((4, 4), np.uint8)
    mask[:, :2] = 255
    lag = np.full_like(black, rest_level)
    lag[:, :4] = object_level
    for config, image in (("base", black), ("ours", np.full_like(black, object_level)), ("ours_lag", lag)):
        entries = {"00_000.png": png_bytes(Image.fromarray(image))}
        if config == "ours_lag":
            entries["masks/00_000.png"] = png_bytes(Image.fromarray(mask))
        path = made.context.data / "samples" / config / "dog6.zip"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(zip_bytes(entries))


@pytest.mark.parametrize("name", ["base CLIP text", "DINO", "background", "150 steps"])
def test_published_figures_pass(results, name):
    check = of(name, results)
    assert check.state == "pass" and not check.fix, check


@pytest.mark.parametrize(
    ("name", "breaks", "measured"),
    [
        ("base CLIP text", lambda r: write_scores(r, base=(0.31, 0.3), ours=(0.3, 0.5)), "0.310"),  # cosine without 2.5
        ("base CLIP text", lambda r: write_scores(r, base=(float("nan"), 0.3), ours=(0.3, 0.5)), "nan"),
        ("base CLIP text", lambda r: write_scores(r, base=(1.1, 0.3), ours=(0.3, 0.5)), "1.100"),
        ("DINO", lambda r: write_scores(r, base=(0.8, 0.30), ours=(0.8, 0.31)), "+0.010"),
        ("DINO", lambda r: write_scores(r, base=(0.8, 0.50), ours=(0.8, 0.20)), "-0.300"),
        ("background", lambda r: write_images(r, object_level=20, rest_level=200), "with LAG"),
        ("background", lambda r: write_images(r, object_level=50, rest_level=50), "with LAG"),
        ("150 steps", lambda r: write_costs(r, 6000.0), "6000 s, 4,955 MiB"),
    ],
)
def test_another_figure_fails_with_what_to_do(results, name, breaks, measured):
    breaks(results)
    check = of(name, results)
    assert check.state == "fail" and check.fix and measured in check.measured, check


@pytest.mark.parametrize(
    ("name", "breaks"),
    [
        ("150 steps", lambda r: (r.context.data / "costs" / "train.csv").write_text("")),
        ("residual", lambda r: None),  # there is none
        ("export", lambda r: None),
    ],
)
def test_what_cannot_be_read_fails_in_one_sentence(results, name, breaks):
    breaks(results)
    check = of(name, results)
    assert check.state == "fail" and check.measured and "\n" not in check.measured and check.fix


def test_a_resumed_training_and_an_unknown_model_have_no_known_answer(results):
    write_costs(results, None, None)
    assert of("150 steps", results).state == "skipped"
    results.profile = results.profile.model_copy(
        update={"base": results.profile.base.model_copy(update={"model": "someone/else"})}
    )
    check = of("base CLIP text", results)
    assert (check.state, check.measured, check.expected) == ("skipped", "0.810", "no published figure")


@pytest.mark.parametrize(
    ("fetch", "concept", "dataset", "name"),
    [
        ({"dataset": "customconcept101", "concepts": ["pet_cat1"]}, None, "dreambooth", "dog6"),
        ({"dataset": "dreambooth"}, "cat2", "dreambooth", "cat2"),
        ({"dataset": "dreambooth", "concepts": ["cat", "dog"]}, None, "dreambooth", "cat"),
        ({"dataset": "miniworld"}, None, "miniworld", "banded_cat"),
    ],
)
def test_one_concept_with_the_profiles_models_and_training(fetch, concept, dataset, name):
    profile = make_profile(
        {
            "fetch": fetch,
            "base": {"dtype": "bfloat16"},
            "train": {"rank": 8, "variants": {"ours": {}, "b": {}}},
            "sample": {"cfg_scale": 7.5},
        }
    )
    derived = derived_profile(profile, concept)
    assert (derived.fetch.dataset, derived.fetch.concepts) == (dataset, (name,))
    assert derived.base == profile.base and derived.train.variant("ours").rank == 8
    assert (
        list(derived.sample.configs) == ["base", "ours", "ours_lag"] and derived.sample.config("ours").cfg_scale == 7.5
    )
    assert derived.sample.prompts == 16


def test_a_folder_without_concepts_is_refused(tmp_path):
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(PersresError, match=r"fetch\.folder: .*(no folder|holds no concept)"):
            derived_profile(make_profile({"fetch": {"dataset": "folder", "folder": str(folder)}}), None)


@pytest.mark.parametrize(
    "change", [{"model": "someone/none"}, {"model": "/no/folder"}, {"rare_token": "a rare phrase"}]
)
def test_a_model_that_fails_is_the_first_check_and_the_rest_is_skipped(repo, tmp_path, monkeypatch, change):
    monkeypatch.setattr("persres.reproduction.readiness._unreachable", lambda url: "HTTP 404")
    mini = load_profile(repo / "params.yaml", "mini")
    broken = mini.model_copy(update={"base": mini.base.model_copy(update=change)})
    report = preflight("mine", broken, None, tmp_path)
    assert [check.state for check in report.checks] == ["fail"] + ["skipped"] * len(CHECKS)
    assert report.checks[0].fix and report.failed == [report.checks[0]]
    assert "fail    models" in report.text() and json.loads(report.as_json())["checks"][0]["state"] == "fail"


def test_the_report_is_plain_text():
    checks = (Check("a", "fail", "x\x1b[31m", "y", "do\x07 z"),)
    report = Report("p", "m\x1b[0m", "float32", 64, "c", checks)
    assert report.text().replace("\n", "").isprintable()


def test_the_whole_command_on_the_mini_world(repo, tmp_path, monkeypatch, capsys):
    """Few steps, so that it takes seconds: the gain in DINO may be missing, all else holds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "PROMPTS", 4)
    monkeypatch.setitem(module.TEXT_SCORES, "package:miniworld/weights/sd", (0.6, 1.4))
    settings = {"extends": "mini", "train": {"steps": 20}, "sample": {"steps": 5}, "runtime": {"workers": 1}}
    raw = yaml.safe_load((repo / "params.yaml").read_text())
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw | {"quick": settings}))
    code = main(["preflight", "--profile", "quick"])
    report = json.loads((tmp_path / "data" / "preflight.json").read_text())
    states = {check["name"]: check["state"] for check in report["checks"]}
    assert code == int("fail" in states.values()) and {name for name, state in states.items() if state == "fail"} <= {
        "DINO, base to ours"
    }
    assert states["rare token"] == states["base CLIP text"] == states["background, LAG"] == states["export"] == "pass"
    assert (report["profile"], report["device"], report["dtype"], report["concept"]) == (
        "quick",
        "cpu",
        "float32",
        "banded_cat",
    )
    output = capsys.readouterr().out
    assert "pass    export" in output and "data/preflight.json" in output
    assert main(["estimate", "--profile", "quick"]) == 0
    assert "train ours" in capsys.readouterr().out, "the estimate counts by its seconds"


@pytest.mark.skipif(not os.environ.get("PERSRES_FULL_SIZE"), reason="gigabytes; set PERSRES_FULL_SIZE=1")
def test_random_weights_of_full_size(repo, tmp_path, monkeypatch, capsys):
    """Stable Diffusion v1.4's shape at 64 pixels: the size and the export pass, the scores of noise fail, and nothing raises."""
    import torch

    from persres.experiments.benchmarks.families import FAMILIES
    from persres.experiments.benchmarks.models import random_pipeline

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "PROMPTS", 2)
    random_pipeline(FAMILIES["sd14"], "float32", torch.device("cpu")).save_pretrained(tmp_path / "sd14")
    for known in ("LAYERS", "PARAMETERS", "TEXT_SCORES"):
        monkeypatch.setitem(getattr(module, known), str(tmp_path / "sd14"), getattr(module, known)[MODEL])
    quick = {
        "extends": "mini",
        "base": {"model": str(tmp_path / "sd14"), "rare_token": "sks"},
        "train": {"steps": 2, "batch_size": 1, "rank_ratio": 0.05},
        "sample": {"steps": 2},
        "runtime": {"workers": 1},
    }
    raw = yaml.safe_load((repo / "params.yaml").read_text())
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw | {"quick": quick}))
    assert main(["preflight", "--profile", "quick"]) == 1
    print(capsys.readouterr().out)
    states = {
        check["name"]: check["state"]
        for check in json.loads((tmp_path / "data" / "preflight.json").read_text())["checks"]
    }
    assert states["residual"] == states["export"] == "pass" and states["DINO, base to ours"] == "fail"
