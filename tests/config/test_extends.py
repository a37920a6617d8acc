"""Profiles that extend others: what they inherit, what they remove, and what is refused in one sentence."""

from __future__ import annotations

import json
import subprocess

import pytest
import yaml

from persres.config.extends import extended
from persres.config.load import read_profile, read_setting
from persres.errors import PersresError
from persres.methods.common.registry import load_profile
from persres.stages.settings import settings_text

MINI = {
    "fetch": {"dataset": "miniworld", "references": 5},
    "train": {"rank_ratio": 0.4, "variants": {"ours": {}, "slow": {"steps": 300}}},
    "sample": {"prompts": 8, "images_per_prompt": 1, "configs": {"base": {}, "ours": {"variant": "ours"}}},
    "tables": {"rows": {"table1": {"ours": "Ours", "base": "Base"}}},
}


def profiles(**others) -> dict:
    return {"profile": "mini", "mini": MINI, **others}


@pytest.mark.parametrize(
    ("child", "path", "value"),
    [
        ({}, ("sample", "prompts"), 8),
        ({"sample": {"steps": 5}}, ("sample", "prompts"), 8),  # the section's other settings stay
        ({"sample": {"prompts": None}}, ("sample", "prompts"), None),  # null is a value
        ({"fetch": {"concepts": ["a"]}}, ("fetch", "references"), 5),
        ({"train": {"variants": {"slow": {"lr": 0.1}}}}, ("train", "variants", "slow"), {"steps": 300, "lr": 0.1}),
        ({"train": {"variants": {"slow": None}}}, ("train", "variants"), {"ours": {}}),
        ({"sample": {"configs": {"ours": None, "x": {}}}}, ("sample", "configs"), {"base": {}, "x": {}}),
        ({"tables": {"rows": {"table1": None}}}, ("tables", "rows"), {}),
        ({"tables": {"rows": {"table1": {"base": None}}}}, ("tables", "rows", "table1"), {"ours": "Ours"}),
        ({"train": {"variants": {"slow": {"concepts": None}}}}, ("train", "variants", "slow", "concepts"), None),
    ],
    ids=json.dumps,
)
def test_a_profile_takes_what_it_leaves_out(child, path, value):
    before = json.dumps(MINI)
    settings = extended(profiles(mine={"extends": "mini"} | child), "mine", "params.yaml")
    assert "extends" not in settings
    for key in path:
        settings = settings[key]
    assert settings == value
    assert json.dumps(MINI) == before, "the extended profile is as it was"


def test_a_chain_and_the_order_of_names():
    """Rows stand in the order of the profile that names them."""
    rows = {"base": "B", "ours": "O", "more": "M"}
    given = profiles(
        a={"extends": "mini", "train": {"lr": 0.1}}, b={"extends": "a", "tables": {"rows": {"table1": rows}}}
    )
    settings = extended(given, "b", "params.yaml")
    assert settings["train"] == MINI["train"] | {"lr": 0.1}
    assert list(settings["tables"]["rows"]["table1"]) == ["base", "ours", "more"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mine": {"extends": "min"}}, "'mine'.extends must name one other profile, not 'min'; one of mini"),
        ({"mine": {"extends": "mine"}}, "'mine' extends itself"),
        ({"mine": {"extends": "b"}, "b": {"extends": "mine"}}, "extends itself; remove one extends of mine, b"),
        ({"mine": {"extends": "profile"}}, "must name one other profile"),
        ({"mine": {"extends": ["mini"]}}, "must name one other profile"),
        ({"mine": {"extends": None}}, "must name one other profile"),
        ({"mine": {"extends": {"mini": 1}}}, "must name one other profile"),
        ({"mine": {"extends": "flat"}, "flat": 5}, "'flat' is no mapping of settings"),
        ({"mine": {"extends": "mini", "train": {"variants": {"x": None}}}}, "'train.variants.x' removes what"),
        ({"mine": {"extends": "mini", "sample": {"configs": {"x": None}}}}, "'sample.configs.x' removes what"),
        ({"mine": {"extends": "mini", "sample": {"configs": {"ours": 5}}}}, "configs.ours"),
        ({"mine": {"extends": "mini", "sample": 5}}, "sample"),
        ({"mine": {"extends": "mini", "sample": None}}, "sample"),
        ({"mine": {"extends": "mini", "train": {"extends": "mini"}}}, "extends"),
        ({"mine": {"extends": "\x1b[31m"}}, "must name one other profile"),
    ],
    ids=json.dumps,
)
def test_what_cannot_be_extended_is_one_sentence(tmp_path, given, message):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(profiles(**given)))
    with pytest.raises(PersresError) as error:
        load_profile(path, "mine")
    assert str(path) in str(error.value) and message in str(error.value) and "\x1b" not in str(error.value)


def test_a_problem_is_named_where_it_stands(tmp_path):
    path = tmp_path / "params.yaml"
    broken = MINI | {"train": {"lr": -1, "variants": {"ours": {"rank": 0}}}}
    path.write_text(
        yaml.safe_dump({"profile": "mine", "mini": broken, "mine": {"extends": "mini", "sample": {"stps": 1}}})
    )
    with pytest.raises(PersresError) as error:
        load_profile(path)
    assert "  mine.sample.stps: unknown setting" in str(error.value)
    assert "  mini.train.lr" in str(error.value) and "mine.train" not in str(error.value)


@pytest.mark.parametrize(
    ("mine", "message"),
    [
        ("{trian: {lr: 1}}", "unknown sections (trian)"),
        ("{extends: mini, smaple: {}, a: 1}", "unknown sections (a, smaple)"),
        ("5", "unknown sections (no mapping)"),
        ("[train]", "unknown sections (no mapping)"),
        ("{5: {}}", "unknown sections (5)"),
    ],
)
def test_a_section_that_no_stage_watches_is_refused(tmp_path, mine, message):
    """DVC would call a run with it up to date."""
    path = tmp_path / "params.yaml"
    path.write_text(f"profile: mine\nmini: {{}}\nmine: {mine}\n")
    with pytest.raises(PersresError) as error:
        settings_text(path, None)
    assert message in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(
    "mine",
    ["", "{}", "{encoders: }", "{encoders: 5}", "{train: {lr: 2020-01-01}}", "{extends: mini, encoders: {clip: }}"],
)
def test_every_section_is_there_for_dvc(tmp_path, mine):
    """What is wrong in a section is its stage's to say."""
    path = tmp_path / "params.yaml"
    path.write_text(f"profile: mine\nmini: {{runtime: {{workers: 1}}}}\nmine: {mine}\n")
    settings = yaml.safe_load(settings_text(path, None))
    assert list(settings) == [
        "profile",
        "base",
        "encoders",
        "fetch",
        "macro_class",
        "train",
        "sample",
        "score",
        "tables",
    ]
    assert settings["encoders"] == 5 or set(settings["encoders"]) == {"clip", "dino"}


def test_anchors_load_as_before(tmp_path):
    """A params.yaml of an earlier version shares sections by YAML's anchors."""
    path = tmp_path / "params.yaml"
    path.write_text(
        "profile: b\na:\n  fetch: &f {dataset: miniworld}\n  train: &t {lr: 0.1}\nb:\n  fetch: *f\n  train: {<<: *t, steps: 3}\n"
    )
    settings = load_profile(path)
    assert (settings.fetch.dataset, settings.train.variant("ours").lr, settings.train.variant("ours").steps) == (
        "miniworld",
        0.1,
        3,
    )


def test_every_reader_follows_extends(repo):
    path = repo / "params.yaml"
    assert read_setting(path, "evidence", "runtime", "workers") == 0
    assert read_setting(path, "paper", "base", "model") == "CompVis/stable-diffusion-v1-4"
    assert read_profile(path, "tables")[2]["macro_class"]["zero_shot"] is True
    assert load_profile(path, "paper").macro_class.nearest and not load_profile(path, "table1").macro_class.nearest


def test_the_shipped_profiles_are_what_they_were_with_anchors(repo, tmp_path):
    """The last version with anchors, where its commit is at hand."""
    git = ["git", "-C", str(repo), "show", "84cb0fb:params.yaml"]
    shown = subprocess.run(git, capture_output=True, text=True, check=False)
    if shown.returncode:
        pytest.skip("the commit is not in this clone")
    (tmp_path / "params.yaml").write_text(shown.stdout)
    for name in ("mini", "masks", "tables", "photos", "paper"):
        before, now = (load_profile(path, name) for path in (tmp_path / "params.yaml", repo / "params.yaml"))
        if name in ("photos", "paper"):  # those of the mini world grow with it
            assert now == before, name
        assert now.base == before.base and now.encoders == before.encoders and now.runtime == before.runtime


def test_no_profile_has_an_anchor(repo):
    """`dvc exp run -S` would change every profile that shares it."""
    events = list(yaml.parse((repo / "params.yaml").read_text()))
    assert not [event.anchor for event in events if getattr(event, "anchor", None)]


@pytest.mark.parametrize(
    "change",
    [
        "mini.train.rank_ratio=0.2",
        "paper.macro_class.nearest=false",
        "mini.base.model='local-dir:some where/{x}'",
        "mini.encoders.clip.model=null",
        "mini.sample.configs.ours_lag.lag=auto",
        "+mini.sample.configs.new={variant: ours, steps: 5}",
        "profile=evidence",
    ],
)
def test_dvcs_writer_changes_one_setting(repo, tmp_path, change):
    """`dvc exp run -S` writes the whole file again; text with colons between braces would come back broken."""
    from dvc.utils.hydra import apply_overrides

    path = tmp_path / "params.yaml"
    path.write_text((repo / "params.yaml").read_text())
    before = flat(yaml.safe_load(path.read_text()))
    apply_overrides(path, [change])
    after = flat(yaml.safe_load(path.read_text()))
    changed = {key for key in before | after if before.get(key, "") != after.get(key, "")}
    key = change.partition("=")[0].lstrip("+")
    assert changed and all(name.startswith(key) for name in changed)


def flat(value, path: str = "") -> dict:
    if not isinstance(value, dict) or not value:
        return {path: value}
    entries = (flat(inner, f"{path}.{key}" if path else str(key)) for key, inner in value.items())
    return {key: inner for entry in entries for key, inner in entry.items()}
