"""The typed edge: every problem at once, unknown keys refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from persres.config.schema import SamplingConfig
from persres.errors import PersresError
from persres.methods.common.registry import load_profile
from persres.methods.ours import Ours
from persres.stages import STAGES
from persres.stages.settings import settings_text


def write(tmp_path, **sections):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump({"profile": "mini", "mini": {"fetch": {"dataset": "miniworld"}} | sections}))
    return path


def test_the_shipped_file_holds_both_profiles(repo):
    for name in ("mini", "paper"):
        load_profile(repo / "params.yaml", name)


def test_defaults_are_the_papers(repo):
    paper = load_profile(repo / "params.yaml", "paper")
    variant, sampling = paper.train.variant("ours"), paper.sample.config("ours_lag")
    assert paper.base.model == "CompVis/stable-diffusion-v1-4"
    assert (variant.rank_ratio, variant.steps, variant.batch_size, variant.lr) == (0.05, 150, 4, 1e-3)
    assert (sampling.steps, sampling.cfg_scale, sampling.lag, sampling.images_per_prompt) == (50, 6.0, True, 50)
    assert (paper.encoders.dino.resize, paper.encoders.dino.crop) == (256, 224)


def test_all_problems_in_one_message(tmp_path):
    path = write(tmp_path, train={"stepz": 3, "lr": -1}, sample={"steps": "many"}, nonsense={})
    with pytest.raises(PersresError) as caught:
        load_profile(path)
    text = str(caught.value)
    for part in (
        "mini.train.stepz: unknown setting",
        "mini.train.lr",
        "mini.sample.steps",
        "mini.nonsense: unknown setting",
    ):
        assert part in text


def test_problems_inside_variants_are_named(tmp_path):
    path = write(
        tmp_path,
        train={"variants": {"ours": {"rnak": 1}}},
        sample={"configs": {"a": {"variant": "theirs"}, "b": {"lagg": True}}},
    )
    with pytest.raises(PersresError) as caught:
        load_profile(path)
    for part in (
        "train.variants.ours.rnak: unknown setting",
        "sample.configs.b.lagg: unknown setting",
        "no training variant 'theirs'",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("concepts", [["a", "b", "a"]])
def test_a_concept_named_twice(tmp_path, concepts):
    with pytest.raises(PersresError, match="concept named twice: a"):
        load_profile(write(tmp_path, fetch={"dataset": "miniworld", "concepts": concepts}))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "just words",
        "profile: mini",
        "profile: other\nmini: {}",
        "mini: [",
        "profile: mini\nmini: {fetch: {dataset: folder}}",
    ],
)
def test_broken_files(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(PersresError, match=r"params\.yaml"):
        load_profile(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(PersresError, match="not found"):
        load_profile(tmp_path / "params.yaml")


def test_lag_without_a_residual_is_refused(tmp_path):
    with pytest.raises(PersresError, match="needs a residual"):
        load_profile(write(tmp_path, sample={"configs": {"x": {"lag": True}}}))


def test_sparse_variants_over_typed_defaults(tmp_path):
    params = load_profile(write(tmp_path, train={"lr": 0.01, "variants": {"ours": {}, "rank1": {"rank": 1}}}))
    assert params.train.variant("rank1") == Ours(lr=0.01, rank=1)
    assert params.sample.config("base") == SamplingConfig()


def watched(stage: dict) -> list[str]:
    """The keys of data/settings.yaml on which a stage of dvc.yaml depends."""
    return [key for files in stage.get("params", []) for key in files["data/settings.yaml"]]


def test_dvc_watches_the_params_that_decide_a_stage_and_keeps_no_output(repo):
    """Its code: tests/test_architecture.py."""
    stages = yaml.safe_load((repo / "dvc.yaml").read_text())["stages"]
    assert list(stages) == ["settings", *STAGES]
    assert "params.yaml" in stages["settings"]["deps"]
    for name, stage in stages.items():
        assert name == "settings" or name in watched(stage)
        assert all((repo / d).exists() for d in stage["deps"] if d.startswith("persres/"))
        assert not any("runtime" in p for p in watched(stage))
        assert not any(isinstance(out, dict) and out.get("persist") for out in stage["outs"])


@pytest.mark.parametrize("profile", ["mini", "evidence", "sweep", "tables", "photos", "table1", "paper"])
def test_every_shipped_profile_is_valid(repo, profile):
    assert load_profile(repo / "params.yaml", profile).sample.configs


@pytest.mark.parametrize(
    "profile", ["mini", "evidence", "masks", "multi_concept", "sweep", "tables", "photos", "table1", "paper"]
)
def test_every_key_that_dvc_watches_stands_in_every_profile(repo, profile):
    """DVC refuses a stage whose key is missing, defaults or not."""
    settings = yaml.safe_load(settings_text(repo / "params.yaml", profile))
    for stage in yaml.safe_load((repo / "dvc.yaml").read_text())["stages"].values():
        for key in watched(stage):
            value = settings
            for part in key.split("."):
                assert part in value, f"{key} is missing for {profile}"
                value = value[part]


def test_the_paper_profile_has_every_row_of_the_papers_tables(repo):
    from persres.metrics.paper_figures import PAPER

    rows = load_profile(repo / "params.yaml", "paper").tables.rows
    for table, known in PAPER.items():
        assert set(known) <= set(rows[table].values()), table


def test_profile_selects_one_and_changes_nothing_else(repo, tmp_path, capsys):
    from persres.cli.main import main

    path = tmp_path / "params.yaml"
    before = (repo / "params.yaml").read_text()
    path.write_text(before)
    assert main(["profile", "paper", "--params", str(path)]) == 0
    assert path.read_text() == before.replace("profile: mini", "profile: paper", 1)
    assert main(["profile", "nonsense", "--params", str(path)]) == 1
    assert "no profile 'nonsense'" in capsys.readouterr().err and "profile: paper" in path.read_text()


BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))  # fmt: skip
STRANGE = [
    b"\xff\xfe\x00", b"profile: \xc3\x28", b"\0", b"[" * 5000, BOMB.encode(), b"profile: &a [*a]", b"profile: [a]\na: {}", b"profile: {a: b}", b"profile: 5\n5: {}",
    b"profile: null", b"profile: a\na: 5", b"profile: a\na: [x]", b"profile: a\na: text", b"profile: a\na: 0", b"profile: a\na: {5: 5, null: 1}", b"? [a]\n: b",
    b"profile: a\na: {train: {lr: 0x" + b"f" * 5000 + b"}}", b"profile: a\na: {train: {lr: " + b"9" * 5000 + b"}}", b"profile: a\na: {train: {lr: .nan}}",
    b"profile: a\na: {train: {variants: [1]}}", b"profile: a\na: {train: {variants: null, default: 5}}", b"profile: a\na: {train: {variants: {x: {method: [1]}}}}", b"profile: a\na: {tables: {rows: {5: 5}}}", b"profile: a\na: {train: {variants: {x: 5}}}", b"profile: a\na: {sample: {configs: {x: {variant: [1]}}}}",
    b"profile: a\na: {sample: {configs: {x: {variant: {}}, 5: {}}}}", b"profile: a\na: {base: {model: [1]}}", b"profile: a\na: {fetch: {dataset: 2020-01-01}}",
    b"profile: !!python/object/apply:os.system ['touch ran']", b"profile: a\n1: {}\nb: {}", b"profile: a\na: {\"\x1b[31m\": 1}", b"profile: a\na: {" + b"x" * 3000 + b": 1}",
    b"profile: a\na: {" + b", ".join(b"k%d: 1" % n for n in range(5000)) + b"}", b"profile: a\na: 2020-99-99", b"profile: a\na: 1:1:1:1", b"profile: a\na: !!binary x", b"%YAML 9.9\n---\n",
]  # fmt: skip


@pytest.mark.parametrize("data", STRANGE, ids=lambda data: repr(data[:25]))
def test_strange_settings_are_one_message(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "params.yaml"
    path.write_bytes(data)
    with pytest.raises(PersresError, match=r"params\.yaml") as error:
        load_profile(path)
    text = str(error.value)
    assert len(text) < 30_000 and text.replace("\n", "").isprintable() and "Traceback" not in text
    assert [entry.name for entry in tmp_path.iterdir()] == ["params.yaml"]


@pytest.mark.parametrize("profile", ["", "profile", "\x1b[31m", "x" * 5000, "\\1"])
def test_a_profile_that_is_none(repo, profile):
    with pytest.raises(PersresError, match="no profile") as error:
        load_profile(repo / "params.yaml", profile or "-")
    assert len(str(error.value)) < 600 and str(error.value).isprintable()


def test_settings_from_pipes_devices_and_folders_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"#" * (5 << 20))
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "large", Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(PersresError, match=str(path)):
            load_profile(path)


def test_settings_of_other_systems_are_read(tmp_path):
    text = "profile: a\na: {fetch: {dataset: miniworld}}"
    for number, data in enumerate((text.replace("\n", "\r\n").encode("utf-8-sig"), text.encode("utf-16"))):
        path = tmp_path / f"{number}.yaml"
        path.write_bytes(data)
        load_profile(path)
