"""Base models as people have them: one file, a half-precision variant, no safety checker; pickles are refused with the conversion."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from persres.config.schema import Base
from persres.errors import PersresError
from persres.models.base_model import (
    config_source,
    load_as,
    load_pipeline,
    loading_arguments,
    loading_code,
    pipeline_name,
)
from persres.models.diffusion import load_diffusion, load_scheduler, load_tokenizer
from persres.models.loading import model_identity
from persres.models.single_file import FIRST_LAYER
from tests.conftest import ROOT
from tests.support.family_models import narrow
from tests.support.single_files import save_single_file

PARTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


@pytest.fixture
def folder(tiny_pipeline, tmp_path):
    """A copy of the tiny pipeline, to be changed."""
    return shutil.copytree(tiny_pipeline, tmp_path / "folder")


@pytest.fixture
def single(tiny_pipeline, tmp_path):
    """The tiny pipeline as one file, with its configuration in the folder of the same name."""
    shutil.copytree(tiny_pipeline, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    return save_single_file(tiny_pipeline, tmp_path / "model.safetensors")


def same_weights(pipe, folder) -> bool:
    expected = {part: load_file(folder / part / f"{name}.safetensors") for part, name in PARTS.items()}
    state = {part: getattr(pipe, part).state_dict() for part in PARTS}
    return all(torch.equal(state[part][key], value.float()) for part in PARTS for key, value in expected[part].items())


def test_one_file_has_the_weights_of_its_folder(single, tiny_pipeline):
    pipe = load_pipeline(single, safety_checker=None)
    assert type(pipe).__name__ == "StableDiffusionPipeline" and same_weights(pipe, tiny_pipeline)
    diffusion = load_diffusion(Base(model=str(single), resolution=32), "cpu")
    assert diffusion.unet.dtype == torch.float32 and "<v*>" in diffusion.tokenizer.get_vocab()
    assert load_scheduler(str(single)).config.beta_schedule == "scaled_linear"
    assert "<v*>" in load_tokenizer(Base(model=str(single))).get_vocab()
    assert model_identity(str(single)).startswith(f"{single}@") and pipeline_name(single) == "StableDiffusionPipeline"


def test_the_configuration_of_one_file_is_the_folder_next_to_it_or_the_hub(single, tmp_path):
    assert config_source(single) == str(tmp_path / "model")
    other = shutil.copy(single, tmp_path / "other.safetensors")
    assert config_source(other) == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert loading_arguments(other, {"config": "mine"})["config"] == "mine"


WRONG_FILES = {
    "a LoRA": ({"lora_unet_x.lora_down.weight": torch.ones(1)}, "is a LoRA, not a base model"),
    "a U-Net of diffusers": ({"down_blocks.0.resnets.0.conv1.weight": torch.ones(1)}, "has no U-Net of Stable Diffusion"),
    "an autoencoder": ({"first_stage_model.a": torch.ones(1)}, "has no U-Net of Stable Diffusion"),
    "FLUX": ({"model.diffusion_model.double_blocks.0.a": torch.ones(1)}, "has no U-Net of Stable Diffusion"),
    "the refiner": ({FIRST_LAYER: torch.ones(8, 4, 3, 3), "conditioner.embedders.0.model.a": torch.ones(1)}, "is SDXL's refiner"),
    "no text encoder": ({FIRST_LAYER: torch.ones(8, 4, 3, 3), "first_stage_model.a": torch.ones(1)}, "without text encoder"),
    "no autoencoder": ({FIRST_LAYER: torch.ones(8, 4, 3, 3), "cond_stage_model.a": torch.ones(1)}, "has no autoencoder"),
    "inpainting": (
        {FIRST_LAYER: torch.ones(8, 9, 3, 3), "cond_stage_model.a": torch.ones(1), "first_stage_model.a": torch.ones(1)},
        "has a U-Net of 9 input channels",
    ),
    "SD 2 without its configuration": (
        {FIRST_LAYER: torch.ones(8, 4, 3, 3), "cond_stage_model.model.a": torch.ones(1), "first_stage_model.a": torch.ones(1)},
        "does not say whether it predicts noise or velocity",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG_FILES)
def test_a_file_that_is_no_whole_model_says_what_it_is(tmp_path, kind):
    tensors, message = WRONG_FILES[kind]
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(PersresError, match=rf"x\.safetensors.*{message}"):
        config_source(tmp_path / "x.safetensors")


def test_sdxl_is_recognised_by_its_second_text_encoder(tmp_path):
    names = (FIRST_LAYER, "conditioner.embedders.1.model.a", "first_stage_model.a")
    save_file({name: torch.ones(4, 4) for name in names}, tmp_path / "x.safetensors")
    assert pipeline_name(tmp_path / "x.safetensors") == "StableDiffusionXLPipeline"
    assert config_source(tmp_path / "x.safetensors") == "stabilityai/stable-diffusion-xl-base-1.0"


def test_one_file_of_sdxl_has_the_weights_of_its_folder(tmp_path):
    from persres.experiments.benchmarks.families import build_pipeline
    from persres.experiments.miniworld_training.tokenizer import write_tokenizer

    write_tokenizer(tmp_path / "words", 77)
    words = len(json.loads((tmp_path / "words" / "vocab.json").read_text()))
    # OpenCLIP's projection is square, and diffusers counts on that.
    second, unet = {"projection_dim": 48}, {"projection_class_embeddings_input_dim": 48 + 6 * 16}
    pipe = build_pipeline(narrow("sdxl", words).changed(second=second, unet=unet), tmp_path / "words")
    pipe.save_pretrained(tmp_path / "model")
    path = save_single_file(tmp_path / "model", tmp_path / "model.safetensors", layers=2)
    loaded = load_pipeline(path)
    assert type(loaded).__name__ == "StableDiffusionXLPipeline"
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        state = getattr(loaded, part).state_dict()
        assert all(torch.equal(state[key], value) for key, value in getattr(pipe, part).state_dict().items()), part


def converted(error, monkeypatch) -> str:
    """Runs the code of a refusal's command in this process, with the shell's arguments; returns the new file or folder."""
    words = shlex.split(str(error).partition("convert it: ")[2])
    assert words[:2] == ["python", "-c"]
    monkeypatch.setattr(sys, "argv", ["-c", *words[3:]])
    exec(words[2], {})
    return words[-1]


def pickled(path):
    torch.save({"state_dict": {"a": torch.ones(2), "step": 3}}, path)
    return path


@pytest.mark.parametrize("name", ["x.bin", "x.pt", "x.pth", "x.CKPT", "renamed.safetensors"])
def test_a_pickle_is_refused_before_it_is_opened(tmp_path, name):
    with pytest.raises(PersresError, match=rf"{name} is a pickle, which can run code when it is opened; .*python -c"):
        load_pipeline(pickled(tmp_path / name))


@pytest.mark.parametrize("name", ["my model.ckpt", "renamed.safetensors"])
def test_the_command_of_the_refusal_converts_a_pickle(tmp_path, monkeypatch, name):
    with pytest.raises(PersresError) as caught:
        load_pipeline(pickled(tmp_path / name))
    assert list(load_file(converted(caught.value, monkeypatch))) == ["a"]


@pytest.mark.parametrize("name", ["other", "model.gguf", "model.SafeTensors"])
def test_a_file_of_another_suffix_is_refused(single, name):
    """diffusers would open it as a pickle."""
    with pytest.raises(PersresError, match=rf"{name} does not end in \.safetensors"):
        load_pipeline(shutil.copy(single, single.with_name(name)))


@pytest.mark.parametrize("scheme", ["https", "http"])
def test_an_address_is_refused_as_one(scheme):
    address = f"{scheme}://huggingface.co/someone/model/resolve/main/model.safetensors"
    with pytest.raises(PersresError, match=rf"{address} is an address; download the file, and give its path"):
        load_pipeline(address)


@pytest.mark.parametrize("name", ["none.safetensors", "none.ckpt"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(PersresError, match=rf"no file .*{name}"):
        load_pipeline(tmp_path / name)


def renamed(folder, variant, parts=PARTS):
    for part in parts:
        path = folder / part / f"{PARTS[part]}.safetensors"
        path.rename(path.with_name(f"{PARTS[part]}.{variant}.safetensors"))
    return folder


@pytest.mark.parametrize("variant", ["fp16", "bf16", "non_ema"])
@pytest.mark.parametrize("parts", [tuple(PARTS), ("unet",)])
def test_a_variant_is_used_where_there_is_nothing_else(folder, tiny_pipeline, variant, parts):
    pipe = load_pipeline(renamed(folder, variant, parts))
    assert same_weights(pipe, tiny_pipeline) and pipe.unet.dtype == torch.float32


def test_variants_next_to_plain_weights_are_not_used_and_fp16_is_preferred(folder):
    shutil.copy(
        folder / "unet" / "diffusion_pytorch_model.safetensors",
        folder / "unet" / "diffusion_pytorch_model.fp16.safetensors",
    )
    assert loading_arguments(folder, {})["variant"] is None
    assert loading_arguments(folder, {"variant": "mine"})["variant"] == "mine"
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(
        folder / "unet" / "diffusion_pytorch_model.bf16.safetensors"
    )
    assert loading_arguments(folder, {})["variant"] == "fp16"
    for name in ("fp16", "bf16"):
        path = folder / "unet" / f"diffusion_pytorch_model.{name}.safetensors"
        path.rename(path.with_name(f"diffusion_pytorch_model.{name}-00001-of-00002.safetensors"))
    assert loading_arguments(folder, {})["variant"] == "fp16"


class OnTheHub:
    """A pipeline class whose repository has only the fp16 variant."""

    calls: tuple = ()


def test_a_hub_repository_with_only_a_variant_is_loaded_by_it(monkeypatch):
    from diffusers import DiffusionPipeline

    def load(kind, name, **arguments):
        kind.calls += (arguments.get("variant"),)
        if arguments.get("variant") != "fp16":
            raise OSError("Error no file named diffusion_pytorch_model.safetensors found in directory x")
        return arguments

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", classmethod(load))
    assert load_as(OnTheHub, "someone/model", {})["variant"] == "fp16" and OnTheHub.calls == (None, "fp16")
    with pytest.raises(OSError, match="no file named"):
        load_as(OnTheHub, "someone/model", {"variant": "bf16"})


FILES = "{'text_encoder/model.%s', 'unet/diffusion_pytorch_model.%s', 'vae/diffusion_pytorch_model.%s'}"


@pytest.mark.parametrize(
    ("files", "variant"),
    [
        (FILES % (("fp16.safetensors",) * 3), "fp16"),
        (FILES % (("bf16.safetensors",) * 3), "bf16"),
        (FILES % ("safetensors", "fp16.safetensors", "bin"), "fp16"),
        (FILES % ("fp16.safetensors", "bf16.safetensors", "fp16.safetensors"), "fp16"),
    ],
)
def test_the_variant_of_a_hub_repository_is_read_from_the_list_of_its_files(monkeypatch, files, variant):
    """diffusers lists them in its error."""
    from diffusers import DiffusionPipeline

    def load(kind, name, **arguments):
        if arguments.get("variant") is None:
            raise OSError(f"Could not find the necessary `safetensors` weights in {files} (variant=None)")
        return arguments["variant"]

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", classmethod(load))
    assert load_as(OnTheHub, "someone/model", {}) == variant


def test_a_hub_repository_of_pickles_is_refused_with_the_command(monkeypatch):
    from diffusers import DiffusionPipeline

    def load(kind, name, **arguments):
        raise OSError(f"Could not find the necessary `safetensors` weights in {FILES % (('bin',) * 3)} (variant=None)")

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", classmethod(load))
    with pytest.raises(
        PersresError, match=r"someone/model has its weights as a pickle, .*someone/model model-safetensors"
    ):
        load_as(OnTheHub, "someone/model", {})


def with_parts(folder, **parts):
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | parts))
    return folder


def test_a_folder_without_its_safety_checker_is_loaded_without_one(folder, tiny_pipeline):
    checker = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    extractor = {"feature_extractor": ["transformers", "CLIPImageProcessor"]}
    pipe = load_pipeline(with_parts(folder, **checker, **extractor, requires_safety_checker=True))
    assert pipe.safety_checker is None and not pipe.config.requires_safety_checker and same_weights(pipe, tiny_pipeline)


def test_a_folder_without_a_part_that_is_needed_names_it(folder):
    shutil.rmtree(folder / "vae")
    with pytest.raises(PersresError, match=r"has no folder vae, which its model_index\.json names"):
        load_pipeline(folder)


@pytest.mark.parametrize(
    ("files", "fix"),
    [
        (("a.safetensors", "b.safetensors"), r"give the file, .*a\.safetensors"),
        (("notes.txt",), "give a folder that diffusers saved, or one safetensors file"),
        ((), "give a folder that diffusers saved"),
    ],
)
def test_a_folder_that_is_no_diffusers_model_says_what_to_give(tmp_path, files, fix):
    for name in files:
        (tmp_path / name).touch()
    for load in (load_pipeline, pipeline_name):
        with pytest.raises(PersresError, match=rf"has no model_index\.json, so it is no diffusers model; {fix}"):
            load(tmp_path)


def to_bin(folder):
    for part, name in PARTS.items():
        target = "pytorch_model.bin" if part == "text_encoder" else f"{name}.bin"
        torch.save(load_file(folder / part / f"{name}.safetensors"), folder / part / target)
        (folder / part / f"{name}.safetensors").unlink()
    return folder


def test_a_folder_of_pickles_is_refused_with_a_command_that_converts_it(folder, tiny_pipeline, monkeypatch):
    with pytest.raises(PersresError, match=r"has its .* as .*bin, a pickle, which can run code") as caught:
        load_pipeline(to_bin(folder))
    assert same_weights(load_pipeline(converted(caught.value, monkeypatch)), tiny_pipeline)
    assert same_weights(load_pipeline(folder, use_safetensors=False), tiny_pipeline), "the caller may insist"


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_every_part_has_one_precision_whatever_its_file_has(folder, dtype):
    for part, name in PARTS.items():
        path = folder / part / f"{name}.safetensors"
        save_file({key: value.half() for key, value in load_file(path).items()}, path, {"format": "pt"})
    config = json.loads((folder / "text_encoder" / "config.json").read_text())
    (folder / "text_encoder" / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    pipe = load_pipeline(folder, dtype=dtype)
    assert {getattr(pipe, part).dtype for part in PARTS} == {dtype or torch.float32}


def code_of(model) -> tuple[str, dict]:
    """The arguments that the code of a page loads this model with."""
    calls = []

    class Kind:
        from_pretrained = from_single_file = staticmethod(
            lambda *names, **arguments: calls.append((names[0], arguments))
        )

    code, kind = loading_code(str(model), "torch.float16")
    exec(code, {kind: Kind, "torch": torch})
    return calls[0]


def test_pages_load_every_kind_of_base_model_in_one_precision(folder, single, tiny_pipeline):
    half = {"dtype": torch.float16}
    assert code_of("someone/model") == ("someone/model", half)
    assert code_of(tiny_pipeline) == (str(tiny_pipeline), half)
    assert code_of(single) == (str(single), half | {"config": str(single.with_suffix(""))})
    checker = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "requires_safety_checker": True}
    with_parts(renamed(folder, "fp16"), **checker)
    missing = {"safety_checker": None, "requires_safety_checker": False}
    assert code_of(folder) == (str(folder), half | missing | {"variant": "fp16"})


# Without weights of diffusers or transformers: tokenizers and schedulers. `cls` is ours, and completes its arguments.
NO_WEIGHTS = re.compile(r"\bcls$|Tokenizer|Scheduler|EfficientNet|transformers, kind|\bP$")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "docs").rglob("*.ipynb"))]
# The training of the mini world's models saves what it loads in half precision; its code is part of a checkpoint's identity.
CODE = [path for path in sorted((ROOT / "persres").rglob("*.py")) if "miniworld_training" not in path.parts]


@pytest.mark.parametrize("pages", [PAGES, CODE], ids=["pages", "code"])
def test_every_load_states_its_dtype(pages):
    """Without it, transformers takes the file's precision and diffusers float32, and half-precision files do not run."""
    silent = []
    for page in pages:
        for call in re.finditer(
            r"([\w.\"', ()]*?)\.from_(?:pretrained|single_file)\(((?:[^()]|\([^()]*\))*)\)", page.read_text(), re.DOTALL
        ):
            if call[2] and "dtype" not in call[2] and "cls" not in call[2] and not NO_WEIGHTS.search(call[1]):
                silent.append(f"{page.relative_to(ROOT)}: {call[0]}")
    assert not silent
