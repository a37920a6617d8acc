"""The plan counts what the stages will do, and says only what a rate or a published number covers."""

from __future__ import annotations

import json

import pytest

from persres.cli.main import main
from persres.datasets.registry import dataset_named
from persres.errors import PersresError
from persres.methods.common.registry import load_profile, make_profile
from persres.planning.estimate import (
    PAPER_STEP_S,
    PUBLISHED_IMAGE_S,
    MeasuredSeconds,
    as_text,
    make_estimate,
    read_measured_seconds,
)
from persres.planning.measured_runs import earlier_runs
from persres.stages.sample import sample_units
from persres.stages.train import train_units
from persres.workflow import load_context, run_stage

RATES = MeasuredSeconds(1.0, 2.0, 3.0, "made up")
BENCHMARK = {"dataset": "customconcept101"}


def planned(seconds: MeasuredSeconds = RATES, **sections) -> dict:
    return {line.stage: line for line in make_estimate(make_profile({"fetch": BENCHMARK} | sections), seconds)}


def test_units_and_images_are_those_of_the_stages(tiny_params):
    where = load_context(tiny_params, None, tiny_params.parent / "data", tiny_params.parent / "work")
    run_stage("fetch", where)
    run_stage("macro_class", where)
    lines = {line.stage: line for line in make_estimate(where.profile, RATES)}
    assert lines["train"].units == len(train_units(where))
    for name in ("heart_mug", "star_robot", "banded_cat"):
        path = where.data / "learned" / "ours" / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"any")
    units = sample_units(where)
    assert lines["sample"].units == lines["score"].units == len(units) == 9
    assert lines["sample"].images == sum(len(u.spec.image_specs) for u in units) == 3 * 3 * 4 * 2
    assert lines["sample"].hours is None and lines["train"].hours is None, "no rate is known for 32 pixels"


def test_the_paper_on_its_benchmark():
    lines = planned()
    assert lines["train"].units == 101 and lines["sample"].images == 3 * 101 * 20 * 50
    assert lines["train"].hours == pytest.approx(101 * 150 * 1.0 / 3600)
    assert lines["sample"].hours == pytest.approx(101 * 20 * 50 * (2.0 + 2.0 + 3.0) / 3600)
    assert lines["train"].bytes == 2 * 101 * 4 * 1_239_040
    assert lines["score"].hours is None and "time" in lines["score"].unknown
    text = as_text(list(lines.values()), RATES, make_profile({"fetch": BENCHMARK}))
    assert "made up" in text and "303,000" in text and "4.2" in text


def test_rates_scale_with_steps_and_batch_and_class_images_count():
    half = planned(sample={"steps": 25}, train={"batch_size": 2, "steps": 75})
    assert half["sample"].hours == pytest.approx(planned()["sample"].hours / 2)
    assert half["train"].hours == pytest.approx(planned()["train"].hours / 4)
    prior = planned(train={"num_class_images": 10})["train"]
    assert prior.images == 1010 and "share a class" in prior.unknown
    assert prior.hours == pytest.approx((101 * 300 * 1.0 + 1010 * 2.0) / 3600)


def test_a_rule_that_stops_early_makes_the_hours_an_upper_bound():
    variants = {"ours": {}, "early": {"stop": "early"}}
    train = planned(train={"variants": variants}, sample={"configs": {"ours": {"variant": "ours"}}})["train"]
    assert "when early stopping ends the training of early" in train.unknown
    assert "early stopping" not in planned()["train"].unknown
    assert train.hours == pytest.approx(2 * planned()["train"].hours)


def test_a_variant_of_fewer_concepts_takes_less():
    variants = {"ours": {}, "few": {"concepts": 11, "num_class_images": 10}}
    lines = planned(train={"variants": variants}, sample={"configs": {"base": {}, "few": {"variant": "few"}}})
    assert lines["train"].units == 112 and lines["train"].images == 110
    assert lines["sample"].units == 112 and lines["sample"].images == (101 + 11) * 20 * 50
    assert lines["train"].bytes == 2 * 112 * 4 * 1_239_040


def test_what_no_number_covers_is_named_not_guessed():
    variants = {
        "ours": {},
        "vico": {"method": "vico"},
        "dreambooth": {"method": "dreambooth", "num_class_images": 0},
        "kv": {"target": "attn_kv"},
    }
    train = planned(train={"variants": variants})["train"]
    assert train.unknown.startswith("time of vico, dreambooth; size of vico, kv")
    assert train.hours == pytest.approx(2 * 101 * 150 / 3600), "ours and its ablation"
    assert train.bytes == 2 * 101 * (4 * 1_239_040 + 2 * 859_520_964)
    other = planned(base={"model": "someone/else", "resolution": 768})
    assert other["train"].hours is None and other["train"].bytes is None and other["sample"].hours is None
    assert planned(train={"rank": 8})["train"].bytes == 2 * 101 * 4 * 2 * 8 * (5 * 320 + 5 * 640 + 6 * 1280)
    assert planned(macro_class={"nearest": True})["macro_class"].hours is None


def test_measured_rates_are_used_where_they_are(tmp_path):
    path = tmp_path / "gpu.json"
    published, half = read_measured_seconds(path), read_measured_seconds(path, "bfloat16")
    assert (half.train_step_s, half.image_s) == (PAPER_STEP_S, PUBLISHED_IMAGE_S)
    assert published.image_s > 2 * half.image_s and "published" in published.source
    given_settings = {
        "train_step_s": 0.2,
        "train_batch": 2,
        "image_s": {"1": 2.0, "4": 1.5},
        "image_lag_s": {"4": 1.6},
        "sample_steps": 25,
        "device": "some GPU",
    }
    path.write_text(json.dumps(given_settings))
    measured = read_measured_seconds(path)
    assert (measured.train_step_s, measured.image_s, measured.image_lag_s) == (0.4, 3.0, 3.2)
    assert str(path) in measured.source and "some GPU" in measured.source
    for text in (
        "{",
        "[]",
        '{"train_step_s": 1}',
        json.dumps(given_settings | {"train_step_s": 0}),
        json.dumps(given_settings | {"image_s": 1}),
    ):
        path.write_text(text)
        with pytest.raises(PersresError, match=r"gpu\.json does not hold measured rates"):
            read_measured_seconds(path)


def test_the_size_of_every_dataset(tmp_path):
    def size(**fetch):
        return dataset_named(fetch["dataset"]).size(make_profile({"fetch": fetch}).fetch)

    assert size(dataset="customconcept101") == (101, 2020)
    assert size(dataset="customconcept101", concepts=["pet_cat1"]) == (1, 20)
    assert size(dataset="dreambooth") == (30, 750)
    assert size(dataset="miniworld") == (10, 200)
    with pytest.raises(PersresError, match="no folder"):
        size(dataset="folder", folder=str(tmp_path / "none"))
    for name, given_settings in (
        ("a", {"macro_class": "dog"}),
        ("b", {"macro_class": "cat", "prompts": [["style", "a {}"]]}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "concept.json").write_text(json.dumps(given_settings))
    assert size(dataset="folder", folder=str(tmp_path)) == (2, 9)
    (tmp_path / "a" / "concept.json").write_text("{")
    with pytest.raises(PersresError, match=r"not valid \(Invalid JSON"):
        size(dataset="folder", folder=str(tmp_path))


def test_the_command_prints_and_leaves_nothing(repo, tmp_path, capsys):
    given = ["--params", str(repo / "params.yaml"), "--data", str(tmp_path / "data"), "--work", str(tmp_path / "work")]
    assert main(["estimate", *given, "--profile", "paper"]) == 0
    assert "GPU" in capsys.readouterr().out
    assert main(["estimate", *given, "--profile", "mini"]) == 0
    output = capsys.readouterr().out
    assert "sample" in output and "Rates are known for 512 pixels only" in output
    assert not list(tmp_path.iterdir())
    assert len(make_estimate(load_profile(repo / "params.yaml", "mini"), RATES)) == 6


MANIFESTS = {  # stage -> facts of a unit, and its spec
    "train": (
        {"seconds": 30.0, "steps": 150, "of_steps": 150},
        {"concept": "a", "variant": "x", "macro_class": "dog", "photos": [], "class_images": None},
    ),
    "sample": (
        {"seconds": 40.0, "images": 2, "sampled": 2, "parameters": 0},
        {
            "concept": "a",
            "config": "x",
            "macro_class": "dog",
            "phrase": "dog",
            "learned": None,
            "photos": [],
            "renderer": None,
        },
    ),
    "class_images": (
        {"seconds": 10.0, "images": 5, "sampled": 5},
        {"prompt": "a dog", "count": 5, "steps": 4, "cfg_scale": 6.0},
    ),
    "score": ({"seconds": 3.0}, {"concept": "a", "config": "x", "category": "toy"}),
}


def earlier(work, stage: str, name: str, base: dict, facts: dict | None = None, **spec) -> None:
    """A finished unit of an earlier run."""
    measured, fields = MANIFESTS[stage]
    folder = work / stage / name
    folder.mkdir(parents=True)
    manifest = {
        "spec_hash": "0" * 16,
        "stage": stage,
        "name": f"x/{name}",
        "files": {},
        "facts": {"device": "a GPU"} | measured | (facts or {}),
        "spec": {"base": base, "model": "m", "code": "c"} | fields | spec,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


PROMPTS = [{"number": n, "group": "style", "text": "a {}"} for n in (0, 1)]


def test_seconds_of_earlier_runs_count_first_and_are_named(tmp_path):
    profile = make_profile(
        {
            "fetch": BENCHMARK,
            "base": {"model": "m", "resolution": 64, "dtype": "bfloat16"},
            "train": {"variants": {"ours": {}, "dreambooth": {"method": "dreambooth"}, "vico": {"method": "vico"}}},
            "sample": {"configs": {"base": {}, "lag": {"variant": "ours", "lag": True}, "vico": {"variant": "vico"}}},
        }
    )
    base = profile.base.model_dump()
    settings = {name: variant.model_dump() for name, variant in profile.train.variants.items()}
    sampling = profile.sample.config("base").model_dump() | {"images_per_prompt": 1}
    lag = profile.sample.config("lag").model_dump() | {"images_per_prompt": 1}
    earlier(tmp_path, "train", "a", base, settings=settings["ours"])
    earlier(tmp_path, "train", "b", base, {"seconds": 1.0, "steps": 5}, settings=settings["ours"])  # resumed
    earlier(tmp_path, "train", "c", base | {"dtype": "float32"}, {"seconds": 99.0}, settings=settings["ours"])
    earlier(tmp_path, "train", "d", base | {"model": "other"}, {"seconds": 99.0}, settings=settings["vico"])
    earlier(tmp_path / "preflight", "train", "e", base, {"seconds": 600.0}, settings=settings["dreambooth"])
    earlier(tmp_path, "sample", "a", base, sampling=sampling, prompts=PROMPTS, method=None)
    earlier(tmp_path, "sample", "b", base, {"seconds": 50.0}, sampling=lag, prompts=PROMPTS, method="ours")
    earlier(tmp_path, "class_images", "a", base)
    (tmp_path / "train" / "damaged").mkdir()
    (tmp_path / "train" / "damaged" / "manifest.json").write_text("{")
    runs = earlier_runs(tmp_path, profile)
    assert runs.devices == ("a GPU",)
    assert runs.seconds["train ours"] == pytest.approx(30 / (150 * 4)) and "train vico" not in runs.seconds
    assert runs.seconds["sample"] == pytest.approx(40 / (2 * 50)) and runs.seconds["class_images"] == pytest.approx(0.5)
    lines = {line.stage: line for line in make_estimate(profile, RATES, runs)}
    assert lines["train"].unknown.startswith("time of vico") and lines["sample"].unknown == "time of vico"
    assert lines["sample"].hours == pytest.approx(101 * 20 * 50 * (20.0 + 25.0) / 3600)
    text = as_text(list(lines.values()), RATES, profile, runs)
    assert "earlier runs of m (a GPU, bfloat16, 64 pixels)" in text and "train ours 0.05 s per training sample" in text


@pytest.mark.parametrize(
    ("measured", "dtype", "named"),
    [
        ("bfloat16", "float32", "not in the profile's float32"),
        ("float32", "float32", "on some GPU in float32:"),
        (None, "float16", "on some GPU:"),
    ],
)
def test_the_dtype_of_measured_rates_is_named(tmp_path, measured, dtype, named):
    figures = {
        "train_step_s": 0.2,
        "train_batch": 4,
        "image_s": {"1": 2.0},
        "image_lag_s": {"4": 1.6},
        "sample_steps": 50,
    }
    (tmp_path / "gpu.json").write_text(json.dumps(figures | {"device": "some GPU", "dtype": measured}))
    seconds = read_measured_seconds(tmp_path / "gpu.json", dtype)
    assert named in seconds.source
    profile = make_profile({"fetch": BENCHMARK, "base": {"dtype": dtype}})
    assert f"Rates for {dtype}" in as_text(make_estimate(profile, seconds), seconds, profile)
