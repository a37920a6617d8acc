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
    with pytest.raises(PersresError, match=r"has its unet as .*, a pickle, which can run code"):
        images_of(residual, tmp_path / "o", model=str(folder), other_base=True)


class SafetyChecker:
    """Withholds the images of those numbers, in the order of sampling, as diffusers' checker does: black, and marked."""

    def __init__(self, *numbers: int) -> None:
        self.numbers, self.calls = numbers, 0

    def __call__(self, pipe, image, device, dtype):
        self.calls += 1
        withheld = self.calls - 1 in self.numbers
        return (image * 0 if withheld else image), [withheld]


@pytest.mark.parametrize(
    ("numbers", "prompts", "options"),
    [
        ((0,), (PROMPT,), {"lag": False}),
        ((1, 2), (PROMPT, "a {} at sea"), {"count": 2, "lag": True}),
        ((0, 1), (PROMPT,), {"count": 3, "lag": "auto"}),
    ],
)
def test_an_image_that_the_safety_checker_withholds_is_named_and_not_saved(
    residual, tmp_path, monkeypatch, logged, numbers, prompts, options
):
    from diffusers import StableDiffusionPipeline

    names = list(images_of(residual, tmp_path / "all", prompts, **options))
    checker = SafetyChecker(*numbers)
    monkeypatch.setattr(StableDiffusionPipeline, "run_safety_checker", lambda *rest: checker(*rest))
    written = []
    with pytest.raises(
        PersresError, match=rf"{len(numbers)} of {len(names)} images are withheld by the model's safety"
    ):
        for path in generate(residual, prompts, tmp_path / "o", GenerateOptions(steps=1, device="cpu", **options)):
            written.append(path.name)
    withheld = [names[number] for number in numbers]
    assert written == [name for name in names if name not in withheld], "the others are finished"
    assert sorted(path.name for path in (tmp_path / "o").glob("*")) == sorted(written)
    assert all(f"{name} is withheld" in logged.text for name in withheld)


def test_the_command_fails_where_an_image_is_withheld(residual, tmp_path, monkeypatch, capsys):
    from diffusers import StableDiffusionPipeline

    checker = SafetyChecker(0)
    monkeypatch.setattr(StableDiffusionPipeline, "run_safety_checker", lambda *rest: checker(*rest))
    assert main([*arguments(residual, tmp_path / "o"), "--count", "2"]) == 1
    printed = capsys.readouterr()
    assert len(printed.out.split()) == 1 and "1 of 2 images are withheld" in printed.err


@pytest.mark.parametrize("where", [(..., 0, 0), (slice(None), 1), ...])
def test_an_image_of_nan_is_no_result(residual, tmp_path, monkeypatch, where):
    from diffusers import AutoencoderKL

    decode = AutoencoderKL.decode

    def overflowing(self, *rest, **options):
        sample = decode(self, *rest, **options)[0]
        sample[where] = float("nan")
        return (sample,)

    monkeypatch.setattr(AutoencoderKL, "decode", overflowing)
    with pytest.raises(PersresError, match=r"NaN or infinity.*use dtype float32 or bfloat16"):
        images_of(residual, tmp_path / "o")
    assert not list((tmp_path / "o").glob("*"))


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("a {} \udcff", {}, r"prompt 'a \{\} .*udcff' has a character that is no text"),
        ("a {} \0", {}, "has a character that is no text"),
        ("a {} \x1b[2J", {}, "has a character that is no text"),
        ("a {}" + " very" * 2000, {}, "is longer than 5000"),
        (PROMPT, {"strength": float("nan")}, "strength is nan; give a finite number"),
        (PROMPT, {"strength": float("inf")}, "strength is inf"),
        (PROMPT, {"cfg_scale": float("nan")}, "cfg_scale is nan"),
    ],
)
def test_what_can_make_no_image_is_refused_before_the_model_loads(tmp_path, prompt, options, message):
    with pytest.raises(PersresError, match=message):
        list(generate(tmp_path / "none.safetensors", (prompt,), tmp_path / "o", GenerateOptions(**options)))
    (tmp_path / "file").touch()
    with pytest.raises(PersresError, match="is a file; give --out"):
        list(generate(tmp_path / "none.safetensors", (PROMPT,), tmp_path / "file"))


@pytest.mark.parametrize("prompt", ["../../{}", "/etc/{}", "a {}\n\u202ex", "{} $(touch x) `y` ;|&", "..\\{}:con"])
def test_a_prompt_never_leads_out_of_the_folder(residual, tmp_path, prompt):
    (name,) = images_of(residual, tmp_path / "o", (prompt,), lag=False)
    assert all(c.isalnum() or c in "_." for c in name) and name.count(".") == 1
    assert [path.name for path in (tmp_path / "o").iterdir()] == [name]


def test_a_file_name_with_an_escape_is_printable_in_the_settings(residual, tmp_path):
    odd = residual.rename(tmp_path / "m\x1b[2J\n.safetensors")
    (path,) = generate(odd, (PROMPT,), tmp_path / "o", GenerateOptions(steps=1, device="cpu", lag=False))
    assert settings_in(path)["residual"] == "m\\x1b[2J\\n.safetensors" and path.name.isprintable()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_precision_can_be_given(residual, tmp_path, capsys, dtype):
    """The residual was trained in float32; a file name belongs to its precision, and the default has the name of earlier versions."""
    call = arguments(residual, tmp_path / "o")
    assert main(call) == 0 and main([*call, "--dtype", dtype]) == 0
    plain, given = capsys.readouterr().out.split()
    assert plain != given and settings_in(given)["dtype"] == dtype and "dtype" not in settings_in(plain)
    same = np.array_equal(np.asarray(Image.open(plain)), np.asarray(Image.open(given)))
    assert same == (dtype == "float32")


def test_a_precision_that_is_none_is_refused_before_any_work(residual, tmp_path, capsys):
    with pytest.raises(PersresError, match="dtype 'int8' is not known; give float32, bfloat16, float16"):
        images_of(residual, tmp_path / "o", dtype="int8")
    assert main([*arguments(residual, tmp_path / "o"), "--dtype", "half"]) == 2
    assert not (tmp_path / "o").exists()
