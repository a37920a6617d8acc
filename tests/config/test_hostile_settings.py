"""Settings of wrong types, sizes and names: one error that names the setting, whatever the file holds."""

from __future__ import annotations

import os

import pytest
import yaml

from persres.config.load import load_params
from persres.errors import PersresError
from persres.methods.common.registry import settings_types

FETCH = {"dataset": "folder", "folder": "photos"}
NAN, INF = float("nan"), float("inf")


def load(tmp_path, settings):
    """The profile of these settings; text is the whole file."""
    path = tmp_path / "params.yaml"
    text = settings if isinstance(settings, str) else yaml.safe_dump({"profile": "p", "p": {"fetch": FETCH} | settings})
    path.write_text(text)
    return load_params(path, None, settings_types())


@pytest.mark.parametrize("value", [NAN, INF, -INF, -1.0, 1e300, "0.1", [0.1], None, True])
@pytest.mark.parametrize(
    "where", ["train.lr", "train.weight_decay", "sample.strength", "sample.cfg_scale", "train.class_images.cfg_scale"]
)
def test_a_wrong_number_is_named(tmp_path, where, value):
    section, *inner = where.split(".")
    settings = {inner[-1]: value} if len(inner) == 1 else {inner[0]: {inner[1]: value}}
    with pytest.raises(PersresError, match=rf"p\.{section}\.") as error:
        load(tmp_path, {section: settings})
    assert inner[-1] in str(error.value)


@pytest.mark.parametrize("value", [-1, 0, 10**40, 1.5, "5", [5], {}])
@pytest.mark.parametrize(
    "where",
    [
        "base.resolution",
        "train.steps",
        "train.batch_size",
        "train.rank",
        "sample.steps",
        "sample.images_per_prompt",
        "tables.bootstrap",
    ],
)
def test_a_wrong_count_is_named(tmp_path, where, value):
    section, key = where.split(".")
    with pytest.raises(PersresError, match=rf"p\.{section}.*{key}"):
        load(tmp_path, {section: {key: value}})


@pytest.mark.parametrize("seed", [2**63, -(2**70), 0.5, "1"])
@pytest.mark.parametrize("section", ["sample", "train", "tables", "fetch"])
def test_a_seed_has_64_bits(tmp_path, section, seed):
    settings = {section: (FETCH if section == "fetch" else {}) | {"seed": seed}}
    with pytest.raises(PersresError, match=rf"p\.{section}.*seed"):
        load(tmp_path, settings)
    assert load(tmp_path, {"sample": {"seed": -5}}).sample.seed == -5


@pytest.mark.parametrize(
    "name", ["..", "a/b", "a\nb", "a\n", "\x1b[31m", "", ".a", "-a", "a ", "é", "x" * 300, 5, None]
)
@pytest.mark.parametrize("where", [("train", "variants"), ("sample", "configs")])
def test_names_that_become_folders_are_plain(tmp_path, where, name):
    section, key = where
    with pytest.raises(PersresError, match=rf"p[:.].*{section}"):
        load(tmp_path, {section: {key: {name: {}}}})
    assert load(tmp_path, {"train": {"variants": {"lr_0.1-b": {}}}, "sample": {"configs": {"base": {}}}})


@pytest.mark.parametrize("text", ["", "a\x00b", "\x1b]0;x\x07", "x" * 100_000])
@pytest.mark.parametrize("key", ["model", "token", "rare_token"])
def test_text_that_is_no_text_is_named(tmp_path, key, text):
    with pytest.raises(PersresError, match=rf"p\.base\.{key}") as error:
        load(tmp_path, {"base": {key: text}})
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("device", ["banana", "cuda:", "cuda:-1", "CPU", "cpu; rm", ""])
def test_an_unknown_device_is_named(tmp_path, device):
    with pytest.raises(PersresError, match=r"p\.runtime\.device"):
        load(tmp_path, {"runtime": {"device": device}})
    assert load(tmp_path, {"runtime": {"device": "cuda:1"}}).runtime.device == "cuda:1"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "5",
        "profile: [a]\n",
        "profile: 5\n5: {}\n",
        "profile: p\np: 5\n",
        "profile: p\np: {1: 2}\n",
        "profile: p\np: {train: {1: 2}}\n",
        "profile: p\np: {train: {default: {1: 2}}}\n",
        "profile: p\np: {train: {default: 5}}\n",
        "profile: p\np: {train: {variants: {x: {method: [a]}}}}\n",
        "profile: p\np: {train: {variants: {x: {1: 2}}}}\n",
        "profile: p\np: {train: {variants: [a]}}\n",
        "profile: p\np: {sample: {configs: {x: 5}}}\n",
        "profile: p\np: {sample: {configs: {x: {1: 2}}}}\n",
        "profile: p\np: &x [*x]\n",
        "[" * 5000,
        "\x00",
        "!!python/object/apply:os.system [id]",
    ],
)
def test_any_other_file_is_one_clear_error(tmp_path, text):
    with pytest.raises(PersresError, match=r"params\.yaml") as error:
        load(tmp_path, text)
    assert len(str(error.value)) < 2000


@pytest.mark.parametrize("kind", ["folder", "bytes", "pipe"])
def test_a_file_that_is_no_text_file_is_one_clear_error(tmp_path, kind):
    path = tmp_path / "params.yaml"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(b"\xff\xfe\x00\xd8profile: p")
    with pytest.raises(PersresError, match=r"params\.yaml"):
        load_params(path, None, settings_types())
