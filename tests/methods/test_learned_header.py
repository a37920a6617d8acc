"""The header of a trained file names files, not the folders of the machine that trained it."""

from __future__ import annotations

import json

import pytest

from persres.config.schema import Base
from persres.methods.common.train_units import train_unit
from persres.residuals.header import header_facts, read_header, without_folders
from tests.methods.test_batched_training import units


def test_a_trained_file_has_no_folder_of_this_machine(tmp_path, tiny_pipeline):
    (unit,) = units(tmp_path, Base(model=str(tiny_pipeline), resolution=32), ("mug",), steps=1)
    train_unit(unit, tmp_path / "work", "cpu")
    info = read_header(unit.folder(tmp_path / "work") / "learned.safetensors")
    assert [photo["path"] for photo in info["spec"]["photos"]] == ["mug0.png"]
    assert info["spec"]["base"]["model"] == str(tiny_pipeline), "by which it is loaded"
    assert str(tmp_path) not in json.dumps(info) and header_facts(info)["photos"] == 1


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ({"path": "/home/me/photos/a.png", "digest": "1"}, {"path": "a.png", "digest": "1"}),
        ({"path": "data/photos/a.png", "digest": "1"}, {"path": "data/photos/a.png", "digest": "1"}),
        ({"prior_folder": "~/private/cats"}, {"prior_folder": "cats"}),
        ([{"path": "../me/a.png"}, "/x/b", "a photo of a {}"], [{"path": "a.png"}, "b", "a photo of a {}"]),
        ({"base": {"model": "/models/sd"}, "model": "/models/sd@12"}, {"base": {"model": "/models/sd"}, "model": "sd@12"}),
    ],
)  # fmt: skip
def test_only_names_remain(value, written):
    assert without_folders(value) == written
