"""Old names of settings: refused with the new name, translated in files that older versions wrote."""

from __future__ import annotations

import subprocess

import pytest
import yaml

from persres.config.legacy import RENAMED, old_names, translate
from persres.errors import PersresError
from persres.methods.common.registry import load_profile


def setting(text: str) -> dict:
    """``key`` or ``key: value`` as a mapping."""
    key, _, value = text.partition(": ")
    return {key: value or 1}


@pytest.mark.parametrize("entry", RENAMED, ids=lambda entry: f"{entry.section}.{entry.old}")
def test_every_entry_is_translated_and_named(entry):
    assert translate(setting(entry.old), entry.section) == setting(entry.new)
    assert translate({entry.section: setting(entry.old)}) == {entry.section: setting(entry.new)}
    (line,) = old_names({entry.section: setting(entry.old)})
    assert line.startswith(f"{entry.section}.") and line.endswith(f"{entry.old!r} is now {entry.new!r}")


@pytest.mark.parametrize("entry", RENAMED, ids=lambda entry: f"{entry.section}.{entry.new}")
def test_new_names_stay_and_are_known(entry):
    assert translate(setting(entry.new), entry.section) == setting(entry.new)
    assert not list(old_names({entry.section: setting(entry.new)}))


def test_names_that_the_user_gives_are_not_settings():
    settings = {"train": {"variants": {"prior_images": {"stop": "settled"}}}}
    assert translate(settings) == {"train": {"variants": {"prior_images": {"stop": "early"}}}}
    assert list(old_names(settings)) == ["train.variants.prior_images.stop: 'stop: settled' is now 'stop: early'"]


@pytest.fixture(scope="module")
def old_file(repo, tmp_path_factory):
    """params.yaml of version 0.1."""
    path = tmp_path_factory.mktemp("old") / "params.yaml"
    stored = repo / "tests" / "fixtures" / "v0_1" / "params.yaml"
    git = ["git", "-C", str(repo), "show", "6425cc7:params.yaml"]
    path.write_bytes(
        stored.read_bytes() if stored.exists() else subprocess.run(git, check=True, capture_output=True).stdout
    )
    return path


def test_the_old_file_is_refused_with_every_new_name_in_one_message(old_file):
    with pytest.raises(PersresError) as caught:
        load_profile(old_file, "tables")
    message = str(caught.value)
    for line in (
        "tables.macro_class.found: 'found' is now 'zero_shot'",
        "tables.macro_class.finder: 'finder' is now 'zero_shot_settings'",
        "tables.train.variants.with_prior.prior_images: 'prior_images' is now 'num_class_images'",
        "tables.sample.methods: 'methods' is now 'configs'",
        "tables.sample.methods.found_found.class_source: 'class_source: found' is now 'class_source: zero_shot'",
        "tables.score.judge: 'judge' is now 'attribute_classifier'",
    ):
        assert line in message
    assert "unknown" not in message, "what is named as renamed is not named again as unknown"


def test_every_profile_of_the_old_file_is_valid_once_translated(old_file, tmp_path):
    raw = yaml.safe_load(old_file.read_text())
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump({"profile": "mini"} | {n: translate(p) for n, p in raw.items() if n != "profile"}))
    for name in raw.keys() - {"profile"}:
        load_profile(path, name)
