"""Exported residuals: ΔW of every layer, and the latents that a plain diffusers pipeline samples."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from persres.cli.main import main
from persres.config.schema import Base
from persres.exports.export import export, export_embedding
from persres.exports.verify import largest_difference, load_embedding
from persres.residuals.bank import ResidualBank
from persres.residuals.file import save_residual
from persres.residuals.targets import find_targets
from persres.seeding import generator
from tests.support.family_models import save_family
from tests.support.small_models import tiny_unet

RATIO = 0.15  # of 16 and 32 channels: two ranks


def spec_of(model, **changes) -> dict:
    base = Base(model=str(model), resolution=32).model_dump()
    settings = {"rank_ratio": RATIO, "rank": None, "target": "proj_out", "name_class": True}
    return {"base": base, "model": "none", "concept": "my_mug", "macro_class": "mug", "settings": settings} | changes


def saved(unet, path, folder="none", token=None, **spec) -> ResidualBank:
    """A strong residual on the layers of this U-Net, at two ranks."""
    targets = find_targets(unet, RATIO)
    assert len({target.rank for target in targets}) > 1, "ranks must be mixed for these tests to mean anything"
    bank = ResidualBank(targets).initialise(0, "scaled_normal", 0.5, generator("export")).requires_grad_(False)
    save_residual(path, bank.deltas(), {"spec": spec_of(folder) | spec}, token)
    return bank


@pytest.fixture(scope="module", params=["conv", "linear"])
def model(request, tiny_pipeline, tmp_path_factory):
    """The tiny pipeline, its projections convolutions as Stable Diffusion 1's or linear as 2's."""
    if request.param == "conv":
        return tiny_pipeline
    folder = shutil.copytree(tiny_pipeline, tmp_path_factory.mktemp("linear") / "model")
    tiny_unet(linear=True).save_pretrained(folder / "unet")
    return folder


@pytest.fixture
def residual(model, tmp_path):
    saved(tiny_unet("linear" in str(model)), tmp_path / "r.safetensors", model)
    return tmp_path / "r.safetensors"


def read_kohya(path) -> dict[str, torch.Tensor]:
    """ΔW by kohya's name, by its documented rule alone: up · down · alpha / rank, in whatever order the keys come."""
    tensors, deltas = load_file(path), {}
    for name in {key.split(".")[0] for key in tensors}:
        up, down = tensors[f"{name}.lora_up.weight"], tensors[f"{name}.lora_down.weight"]
        scale = tensors[f"{name}.alpha"].item() / down.shape[0]
        deltas[name] = scale * up.flatten(1) @ down.flatten(1)
    return deltas


@pytest.mark.parametrize("linear", [False, True])
def test_a_kohya_file_holds_delta_w_of_every_layer(tmp_path, linear):
    unet = tiny_unet(linear)
    bank = saved(unet, tmp_path / "r.safetensors")
    deltas = read_kohya(export(tmp_path / "r.safetensors", "kohya", tmp_path / "k.safetensors"))
    assert len(deltas) == len(bank.targets)
    for i, target in enumerate(bank.targets):
        delta = deltas["lora_unet_" + target.path.replace(".", "_")]
        torch.testing.assert_close(delta, bank.up[i][0] @ bank.down[i][0])
    shapes = {value.ndim for key, value in load_file(tmp_path / "k.safetensors").items() if key.endswith(".weight")}
    assert shapes == ({2} if linear else {4})


@pytest.mark.parametrize("to", ["diffusers", "kohya"])
def test_a_plain_pipeline_samples_the_same_latents(residual, tmp_path, to):
    exported = export(residual, to, tmp_path / f"{to}.safetensors")
    assert largest_difference(residual, exported, device="cpu") < 1e-4


def test_verification_can_fail(residual, tmp_path):
    """One factor doubled gives a large difference."""
    tensors = load_file(export(residual, "kohya", tmp_path / "k.safetensors"))
    save_file(
        {key: value * 2 if "lora_up" in key else value for key, value in tensors.items()}, tmp_path / "w.safetensors"
    )
    assert largest_difference(residual, tmp_path / "w.safetensors", device="cpu") > 1e-2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_verified_in_float32(tiny_pipeline, tmp_path, dtype):
    """In half precision both sides would round, each in its own order."""
    base = spec_of(tiny_pipeline)["base"] | {"dtype": dtype}
    saved(tiny_unet(), tmp_path / "r.safetensors", base=base)
    exported = export(tmp_path / "r.safetensors", "diffusers", tmp_path / "x.safetensors")
    assert largest_difference(tmp_path / "r.safetensors", exported, device="cpu") < 1e-4


@pytest.mark.parametrize("trained", [False, True])
def test_v_star_as_an_embedding_samples_the_same_latents(tiny_pipeline, tmp_path, trained):
    """``<v*>`` in the prompt, loaded by load_textual_inversion."""
    token = torch.randn(24, generator=generator("token")) if trained else None
    path = tmp_path / "r.safetensors"
    saved(tiny_unet(), path, tiny_pipeline, token)
    exported = export(path, "kohya", tmp_path / "k.safetensors")
    embedding = export_embedding(path, tmp_path / "v.safetensors", "cpu")
    if trained:
        assert torch.equal(load_file(embedding)["emb_params"][0], token)
    assert largest_difference(path, exported, embedding, steps=2, device="cpu") < 1e-4
    save_file({"emb_params": load_file(embedding)["emb_params"] * 2}, tmp_path / "w.safetensors")
    assert largest_difference(path, exported, tmp_path / "w.safetensors", steps=2, device="cpu") > 1e-3, "it can fail"


def test_sdxl_has_a_vector_for_each_tower_and_samples_the_same(tmp_path):
    """Linear projections, mixed ranks, two towers; the file's keys are those of ComfyUI and A1111."""
    from diffusers import StableDiffusionXLPipeline

    folder, path = save_family("sdxl", tmp_path), tmp_path / "r.safetensors"
    pipe = StableDiffusionXLPipeline.from_pretrained(folder)
    base = Base(model=str(folder), resolution=64).model_dump()
    saved(pipe.unet, path, base=base)
    embedding = export_embedding(path, tmp_path / "v.safetensors", "cpu")
    assert {key: list(v.shape) for key, v in load_file(embedding).items()} == {"clip_l": [1, 32], "clip_g": [1, 48]}
    load_embedding(pipe, embedding, "<v*>")
    for tokenizer, encoder in ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)):
        table, number = encoder.get_input_embeddings().weight, tokenizer.convert_tokens_to_ids
        assert torch.equal(table[number("<v*>")], table[number("sks</w>")])
    exported = export(path, "diffusers", tmp_path / "x.safetensors")
    assert largest_difference(path, exported, embedding, steps=1, device="cpu") < 1e-4


def test_v_star_as_a_textual_inversion_file(tiny_pipeline, tmp_path):
    """The calls of docs/diffusers.md."""
    from diffusers import StableDiffusionPipeline

    saved(tiny_unet(), tmp_path / "r.safetensors", tiny_pipeline)
    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline, safety_checker=None)
    rare = pipe.text_encoder.get_input_embeddings().weight[pipe.tokenizer.convert_tokens_to_ids("sks</w>")].clone()
    out = export_embedding(tmp_path / "r.safetensors", tmp_path / "v.safetensors", "cpu")
    assert {key: list(value.shape) for key, value in load_file(out).items()} == {"emb_params": [1, 24]}
    pipe.load_textual_inversion(str(out), token="<v*>")
    loaded = pipe.text_encoder.get_input_embeddings().weight[pipe.tokenizer.convert_tokens_to_ids("<v*>")]
    assert torch.equal(loaded, rare)


def test_the_command_exports_and_verifies(tiny_pipeline, tmp_path, capsys):
    residual = tmp_path / "r.safetensors"
    saved(tiny_unet(), residual, tiny_pipeline)
    arguments = ["export", str(residual), "--to", "kohya", "--embedding", "--verify", "--device", "cpu", "--json"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["largest_difference"] < 1e-4 and report["tolerance"] == 1e-4
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "r.kohya.json",
        "r.kohya.safetensors",
        "r.v_star.safetensors",
    ]
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    assert main(["export", str(tmp_path / "broken.safetensors"), "--out", str(tmp_path / "none")]) == 1
    assert "broken.safetensors" in capsys.readouterr().err and not (tmp_path / "none").exists()
