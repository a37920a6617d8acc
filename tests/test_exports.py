"""Exported residuals do elsewhere what they do here: ΔW layer by layer, and pictures of a plain diffusers pipeline."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import tiny_unet
from safetensors.torch import load_file, save_file

from persres.cli import main
from persres.config import Base
from persres.errors import PersresError
from persres.exports.export import export, export_embedding, import_lora, largest_difference
from persres.models.diffusion import load_diffusion
from persres.residuals.bank import ResidualBank, find_targets
from persres.residuals.file import load_residual, save_residual
from persres.seeding import generator

RATIO = 0.15  # of 16 and 32 channels: two ranks


def spec_of(model, **changes) -> dict:
    base = Base(model=str(model), resolution=32).model_dump()
    settings = {"rank_ratio": RATIO, "rank": None, "target": "proj_out", "name_class": True}
    return {"base": base, "model": "none", "concept": "my_mug", "macro_class": "mug", "settings": settings} | changes


def saved(unet, path, model="none") -> ResidualBank:
    targets = find_targets(unet, RATIO)
    assert len({target.rank for target in targets}) > 1, "ranks must be mixed for these tests to mean anything"
    bank = ResidualBank(targets).initialise(0, "scaled_normal", 0.5, generator("export")).requires_grad_(False)
    save_residual(path, bank.to_state(), targets, {"spec": spec_of(model)})
    return bank


@pytest.fixture
def residual(tiny_pipeline, tmp_path):
    """A residual with two ranks on the tiny pipeline."""
    load_diffusion.cache_clear()
    diffusion = load_diffusion(Base(model=str(tiny_pipeline), resolution=32), "cpu")
    saved(diffusion.unet, tmp_path / "r.safetensors", tiny_pipeline)
    return tmp_path / "r.safetensors"


def read_kohya(path) -> dict[str, torch.Tensor]:
    """ΔW by kohya's name, by its documented rule alone: up · down · alpha / rank, in whatever order the keys come."""
    tensors, found = load_file(path), {}
    for name in {key.split(".")[0] for key in tensors}:
        up, down = tensors[f"{name}.lora_up.weight"], tensors[f"{name}.lora_down.weight"]
        scale = tensors[f"{name}.alpha"].item() / down.shape[0]
        found[name] = scale * up.flatten(1) @ down.flatten(1)
    return found


@pytest.mark.parametrize("linear", [False, True])
def test_kohyas_file_holds_delta_w_of_every_layer(tmp_path, linear):
    unet = tiny_unet(linear)
    bank = saved(unet, tmp_path / "r.safetensors")
    found = read_kohya(export(tmp_path / "r.safetensors", "kohya", tmp_path / "k.safetensors"))
    assert len(found) == len(bank.targets)
    for i, target in enumerate(bank.targets):
        delta = found["lora_unet_" + target.path.replace(".", "_")]
        torch.testing.assert_close(delta, bank.up[i][0] @ bank.down[i][0])
    shapes = {value.ndim for key, value in load_file(tmp_path / "k.safetensors").items() if key.endswith(".weight")}
    assert shapes == ({2} if linear else {4})


@pytest.mark.parametrize("to", ["diffusers", "kohya"])
@pytest.mark.parametrize("linear", [False, True])
def test_what_was_exported_comes_back(tmp_path, to, linear):
    unet = tiny_unet(linear)
    saved(unet, tmp_path / "r.safetensors")
    state = import_lora(export(tmp_path / "r.safetensors", to, tmp_path / "x.safetensors"), unet)
    ours, _ = load_residual(tmp_path / "r.safetensors")
    assert state.keys() == ours.keys() and all(torch.equal(state[key], ours[key]) for key in ours)


def test_another_tools_alpha_is_kept(tmp_path):
    unet = tiny_unet()
    bank = saved(unet, tmp_path / "r.safetensors")
    tensors = load_file(export(tmp_path / "r.safetensors", "kohya", tmp_path / "k.safetensors"))
    halved = {key: value / 2 if key.endswith(".alpha") else value for key, value in tensors.items()}
    save_file(halved, tmp_path / "half.safetensors")
    state, target = import_lora(tmp_path / "half.safetensors", unet), bank.targets[0]
    delta = state[f"{target.path}.up"] @ state[f"{target.path}.down"]
    torch.testing.assert_close(delta, bank.up[0][0] @ bank.down[0][0] / 2)


@pytest.mark.parametrize("to", ["diffusers", "kohya"])
def test_a_plain_pipeline_draws_the_same_with_the_exported_file(residual, tmp_path, to):
    exported = export(residual, to, tmp_path / f"{to}.safetensors")
    assert largest_difference(residual, exported, device="cpu") < 1e-4


def test_a_wrong_file_is_told_from_a_right_one(residual, tmp_path):
    """The comparison can fail: one factor doubled, and the largest difference is far from none."""
    tensors = load_file(export(residual, "kohya", tmp_path / "k.safetensors"))
    save_file(
        {key: value * 2 if "lora_up" in key else value for key, value in tensors.items()}, tmp_path / "w.safetensors"
    )
    assert largest_difference(residual, tmp_path / "w.safetensors", device="cpu") > 1e-2


def test_v_star_as_a_textual_inversion_file(residual, tiny_pipeline, tmp_path):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline, safety_checker=None)
    rare = pipe.text_encoder.get_input_embeddings().weight[pipe.tokenizer.convert_tokens_to_ids("sks</w>")].clone()
    out = export_embedding(residual, tmp_path / "v.safetensors", "cpu")
    assert {key: list(value.shape) for key, value in load_file(out).items()} == {"emb_params": [1, 24]}
    pipe.load_textual_inversion(str(out), token="<v*>")
    loaded = pipe.text_encoder.get_input_embeddings().weight[pipe.tokenizer.convert_tokens_to_ids("<v*>")]
    assert torch.equal(loaded, rare)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {k: v for k, v in t.items() if "lora_up" not in k or "mid" not in k}, "only its down factor"),
        (lambda t: t | {"lora_unet_nowhere.alpha": torch.tensor(1.0)}, "lora_unet_nowhere.alpha.*of no layer"),
        (lambda t: t | {"lora_te_text_model.alpha": torch.tensor(1.0)}, "lora_te_text_model.alpha"),
    ],
)
def test_a_lora_that_does_not_fit_is_one_clear_error(tmp_path, change, message):
    unet = tiny_unet()
    saved(unet, tmp_path / "r.safetensors")
    save_file(
        change(load_file(export(tmp_path / "r.safetensors", "kohya", tmp_path / "k.safetensors"))),
        tmp_path / "x.safetensors",
    )
    with pytest.raises(PersresError, match=message):
        import_lora(tmp_path / "x.safetensors", unet)


def test_the_command_exports_and_verifies(residual, tmp_path, capsys):
    arguments = ["export", str(residual), "--to", "kohya", "--embedding", "--verify", "--device", "cpu", "--json"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["largest_difference"] < 1e-4 and said["tolerance"] == 1e-4
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["r.kohya.safetensors", "r.v_star.safetensors"]
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    assert main(["export", str(tmp_path / "broken.safetensors"), "--out", str(tmp_path / "none")]) == 1
    assert "broken.safetensors" in capsys.readouterr().err and not (tmp_path / "none").exists()
