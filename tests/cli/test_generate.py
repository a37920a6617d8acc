"""``persres generate``: the same settings give the same image under the same name; other settings never replace it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from persres.cli.main import main
from persres.errors import PersresError
from persres.generate import PROMPT_LENGTH, GenerateOptions, generate
from persres.models.loading import model_identity
from tests.exports.test_exports import saved
from tests.support.small_models import tiny_unet

PROMPT = "a photo of a {} on the beach"


@pytest.fixture
def residual(tiny_pipeline, tmp_path):
    saved(tiny_unet(), tmp_path / "mug.safetensors", tiny_pipeline, model=model_identity(str(tiny_pipeline)))
    return tmp_path / "mug.safetensors"


def images_of(residual, out, prompts=(PROMPT,), **options) -> dict[str, np.ndarray]:
    """Images by file name, in the order of sampling."""
    options = GenerateOptions(**{"steps": 1, "device": "cpu"} | options)
    return {path.name: np.asarray(Image.open(path)) for path in generate(residual, tuple(prompts), out, options)}


def settings_in(path) -> dict:
    return json.loads(Image.open(path).text["persres"])


def arguments(residual, out) -> list[str]:
    """The command line for an image of two steps."""
    return ["generate", str(residual), "--prompt", PROMPT, "--steps", "2", "--device", "cpu", "--out", str(out)]


def test_an_image_belongs_to_its_seed_prompt_and_number(residual, tmp_path):
    three = images_of(residual, tmp_path / "a", count=3)
    again = images_of(residual, tmp_path / "b", ("a {} in the snow", PROMPT), count=2)
    assert len(three) == 3 and len(again) == 4
    assert all(np.array_equal(three[name], again[name]) for name in list(three)[:2]), "whatever the count and the order"
    images = list(three.values())
    assert not np.array_equal(images[0], images[1])
    (other,) = images_of(residual, tmp_path / "b", seed=1).values()
    assert not np.array_equal(other, images[0])
    metadata = settings_in(next((tmp_path / "a").glob("*_002.png")))
    assert (
        metadata["number"] == 2 and metadata["seed"] == 0 and metadata["prompt"] == "a photo of a <v*> mug on the beach"
    )


def test_without_lag_it_is_another_image_of_another_name(residual, tmp_path, capsys):
    call = arguments(residual, tmp_path / "o")
    for options in ([], ["--no-lag"], ["--masks", "paper"], ["--strength", "0.5", "--no-lag"]):
        assert main([*call, *options]) == 0
    names = capsys.readouterr().out.split()
    assert len(set(names)) == 4 and all(name.endswith("_0_000.png") for name in names)
    assert [settings_in(name)["lag"] for name in names] == ["auto", False, True, False]
    images = [np.asarray(Image.open(name)) for name in names]
    assert not any(np.array_equal(images[1], other) for other in (images[0], *images[2:]))


def test_prompts_with_the_same_words_do_not_replace_each_other(residual, tmp_path):
    long = "a photo of a {} on the beach " + "and the sea " * 8
    alike = (
        PROMPT,
        PROMPT + "!",
        "A photo: of a {}, on the beach",
        long + "by day",
        long + "by night",
        "日" * 90 + "{}",
    )
    names = list(images_of(residual, tmp_path / "o", alike, lag=False))
    assert len(set(names)) == len(alike) == len(list((tmp_path / "o").iterdir()))
    assert all(len(name.encode()) < 200 for name in names) and len(names[3]) == PROMPT_LENGTH + len(
        "_01234567_0_000.png"
    )
    first = (tmp_path / "o" / names[0]).read_bytes()
    assert list(images_of(residual, tmp_path / "o", lag=False)) == names[:1], "the same settings are the same file"
    assert (tmp_path / "o" / names[0]).read_bytes() == first


@pytest.fixture(scope="module")
def moved(tiny_pipeline, tmp_path_factory):
    """The same weights in another folder, and other weights."""
    folder = tmp_path_factory.mktemp("moved")
    for name in ("same", "other"):
        shutil.copytree(tiny_pipeline, folder / name)
    tiny_unet(seed=7).save_pretrained(folder / "other" / "unet")
    return folder


def test_a_base_model_of_other_weights_needs_an_option(residual, moved, tmp_path, capsys):
    here = images_of(residual, tmp_path / "a")
    there = images_of(residual, tmp_path / "b", model=str(moved / "same"))
    assert np.array_equal(next(iter(here.values())), next(iter(there.values())))
    call = arguments(residual, tmp_path / "o")
    assert main([*call, "--model", str(moved / "other")]) == 1
    error = capsys.readouterr().err
    assert "was trained on" in error and "--other-base" in error and not (tmp_path / "o").exists()
    assert main([*call, "--model", str(moved / "other"), "--other-base"]) == 0
    (path,) = (tmp_path / "o").iterdir()
    assert settings_in(path)["model"] == str(moved / "other")


def test_a_hub_name_and_a_folder_give_a_warning(tiny_pipeline, tmp_path, logged):
    path = tmp_path / "hub.safetensors"
    saved(tiny_unet(), path, tiny_pipeline, model="CompVis/stable-diffusion-v1-4")
    images_of(path, tmp_path / "o")
    assert "hub.safetensors was trained on CompVis/stable-diffusion-v1-4" in logged.text
    assert "can't be compared" in logged.text


def test_a_residual_can_not_name_a_pickled_base(residual, tiny_pipeline, tmp_path):
    """Weights as pickles are code; a header must not bring any in."""
    folder = shutil.copytree(tiny_pipeline, tmp_path / "pickled")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(PersresError, match="cannot load the base model"):
        images_of(residual, tmp_path / "o", model=str(folder), other_base=True)
