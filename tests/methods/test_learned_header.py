"""Trained files: their header names files, not the folders of a machine; files of other methods and models are refused."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from persres.cli.main import main
from persres.config.schema import Base
from persres.errors import PersresError
from persres.exports.verify import load_embedding
from persres.methods import vico
from persres.methods.common import state_file
from persres.methods.common.train_units import train_unit
from persres.models.diffusion import load_diffusion
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


@pytest.mark.parametrize(
    "change",
    [
        lambda state: {},
        lambda state: dict(list(state.items())[1:]),
        lambda state: state | {f"{vico.PREFIX}other": torch.ones(1)},
        lambda state: {name: value[:0] for name, value in state.items()},
        lambda state: {name: value[None] for name, value in state.items()},
    ],
    ids=["none", "fewer", "more", "empty", "other shapes"],
)
def test_image_blocks_of_another_model_are_refused(tiny_pipeline, change):
    diffusion = load_diffusion(Base(model=str(tiny_pipeline), resolution=32), "cpu")
    state = {f"{vico.PREFIX}{name}": value for name, value in vico.ImageBlocks(diffusion.unet).state_dict().items()}
    assert vico.load_blocks(diffusion, state)
    with pytest.raises(PersresError, match="other image blocks; train it again"):
        vico.load_blocks(diffusion, change(state))


STATES = {
    "of whole numbers": ({"a": torch.ones(2).int()}, "a is int32"),
    "of nothing": ({"a": torch.ones(0)}, r"a is float32 \[0\], which is no trained weight"),
    "with NaN": ({"a": torch.tensor([float("nan")])}, "a holds NaN"),
    "complex": ({"a": torch.ones(2, dtype=torch.complex64)}, "a is complex64"),
    "of another kind": ({"a": torch.ones(2)}, "is not a rival's file"),
}


@pytest.mark.parametrize("kind", STATES)
def test_a_rivals_file_that_training_did_not_write_is_refused(tmp_path, kind):
    tensors, message = STATES[kind]
    form = "persres-residual-1" if kind == "of another kind" else state_file.FORMAT
    save_file(tensors, tmp_path / "x.safetensors", {"persres": json.dumps({"format": form})})
    with pytest.raises(PersresError, match=rf"x\.safetensors.*{message}"):
        state_file.load_state(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "tensors",
    [{}, {"emb_params": torch.ones(1, 3), "x": torch.ones(1, 3)}, {"clip_l": torch.ones(1, 3)}, {"*": torch.ones(3)}],
)
def test_an_embedding_that_persres_did_not_export_is_refused(tmp_path, tensors):
    save_file(tensors, tmp_path / "v.safetensors")
    with pytest.raises(PersresError, match=r"v\.safetensors is not an embedding that persres exported"):
        load_embedding(None, tmp_path / "v.safetensors", "<v*>")


@pytest.mark.parametrize("command", [["generate", "--prompt", "a {}"], ["generate", "--prompt", "a {}", "--subject", "dog", "--model", "none"],
                                     ["export"], ["import", "--model", "none", "--class", "mug", "--name", "b"]])  # fmt: skip
def test_a_pipe_in_place_of_a_file_is_refused_before_a_model_loads(tmp_path, capsys, command):
    os.mkfifo(tmp_path / "p.safetensors")
    assert main([command[0], str(tmp_path / "p.safetensors"), *command[1:]]) == 1
    assert "it is not a regular file" in capsys.readouterr().err
