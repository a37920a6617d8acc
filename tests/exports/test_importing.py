"""``persres import``: ΔW of every layer stays the same, whatever the LoRA's keys, alphas and ranks."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from persres.cli.main import main
from persres.errors import PersresError
from persres.exports.export import export
from persres.exports.importing import import_lora
from persres.pipeline import PersonalizedPipeline
from persres.residuals.file import load_bank, load_residual
from tests.exports.test_exports import saved
from tests.support.small_models import tiny_unet

LAYER = "down_blocks.0.attentions.0.proj_out"


@pytest.mark.parametrize("to", ["diffusers", "kohya"])
@pytest.mark.parametrize("linear", [False, True])
def test_an_export_is_imported_as_the_same_factors(tmp_path, to, linear):
    unet = tiny_unet(linear)
    saved(unet, tmp_path / "r.safetensors")
    layers = import_lora(export(tmp_path / "r.safetensors", to, tmp_path / "x.safetensors"), unet)
    ours = load_residual(tmp_path / "r.safetensors").layers
    assert layers.keys() == ours.keys()
    assert all(
        torch.equal(layers[key].up, ours[key].up) and torch.equal(layers[key].down, ours[key].down) for key in ours
    )


def test_alpha_of_another_tool_scales_the_factors(tmp_path):
    unet = tiny_unet()
    bank = saved(unet, tmp_path / "r.safetensors")
    tensors = load_file(export(tmp_path / "r.safetensors", "kohya", tmp_path / "k.safetensors"))
    halved = {key: value / 2 if key.endswith(".alpha") else value for key, value in tensors.items()}
    save_file(halved, tmp_path / "half.safetensors")
    delta = import_lora(tmp_path / "half.safetensors", unet)[bank.targets[0].path]
    torch.testing.assert_close(delta.matrix(), bank.up[0][0] @ bank.down[0][0] / 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {k: v for k, v in t.items() if "lora_up" not in k or "mid" not in k}, "mid_block.*has no up factor"),
        (lambda t: t | {"lora_unet_nowhere.alpha": torch.tensor(1.0)}, "lora_unet_nowhere.alpha"),
        (lambda t: t | {"lora_te_text_model.alpha": torch.tensor(1.0)}, "lora_te_text_model.alpha"),
        (lambda t: t | other_layer(), "proj_in takes no residual; .*--subject"),
    ],
)
def test_a_lora_that_does_not_fit_is_one_clear_error(tmp_path, change, message):
    unet = tiny_unet()
    saved(unet, tmp_path / "r.safetensors")
    tensors = load_file(export(tmp_path / "r.safetensors", "kohya", tmp_path / "k.safetensors"))
    save_file(change(tensors), tmp_path / "x.safetensors")
    with pytest.raises(PersresError, match=message):
        import_lora(tmp_path / "x.safetensors", unet)


def other_layer() -> dict[str, torch.Tensor]:
    name = "lora_unet_down_blocks_0_attentions_0_proj_in"
    return {f"{name}.lora_down.weight": torch.ones(2, 16, 1, 1), f"{name}.lora_up.weight": torch.ones(16, 2, 1, 1)}


def test_the_command_makes_a_residual_that_loads(tiny_pipeline, tmp_path, capsys):
    """One layer of rank 3, another of rank 5, no others, alpha unequal to the rank: ΔW as in the file, zero elsewhere."""
    shapes = {LAYER: (3, 16), "mid_block.attentions.0.proj_out": (5, 32)}
    tensors, wanted = {}, {}
    for layer, (rank, width) in shapes.items():
        down, up = torch.randn(rank, width, 1, 1), torch.randn(width, rank, 1, 1)
        tensors |= {f"unet.{layer}.lora_A.weight": down, f"unet.{layer}.lora_B.weight": up}
        wanted[layer] = up.flatten(1) @ down.flatten(1) * 2 / rank
    header = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 2, "unet.r": 5})}
    save_file(tensors, tmp_path / "theirs.safetensors", header)
    call = ["import", str(tmp_path / "theirs.safetensors"), "--model", str(tiny_pipeline), "--class", "mug"]
    assert main([*call, "--name", "my_mug"]) == 0
    path = tmp_path / "my_mug.safetensors"
    assert capsys.readouterr().out.strip() == str(path)
    pipe = PersonalizedPipeline.from_pretrained(tiny_pipeline, safety_checker=None).load_residual(path)
    assert pipe.active == "my_mug" and pipe.residuals["my_mug"].phrase == "<v*> mug"
    bank = load_bank(pipe.unet, path)
    for target, up, down in zip(bank.targets, bank.up, bank.down, strict=True):
        assert target.rank == shapes.get(target.path, (1,))[0], "ranks come from the file's shapes"
        expected = wanted.get(target.path, torch.zeros(target.width, target.width))
        torch.testing.assert_close(up[0] @ down[0], expected)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--class", "mug"], "is the LoRA itself; give another --name or --out"),
        (["--class", " ", "--name", "b"], "--class is empty"),
        (
            ["--class", "mug", "--name", "b", "--rare-token", "two words"],
            "rare_token 'two words' is 7 tokens",
        ),
        (["--class", "mug", "--name", "b", "--rare-token", "twowords"], "rare_token 'twowords' is .* tokens"),
        (["--class", "mug", "--name", "b", "--resolution", "33"], "resolution 33: .*--resolution"),
        (["--class", "mug\x1b[31m", "--name", "b"], "--class .* has a character that is no text"),
    ],
)
def test_what_can_not_be_imported_is_one_clear_error(tiny_pipeline, tmp_path, capsys, more, message):
    path = tmp_path / "a.safetensors"
    save_file({f"unet.{LAYER}.lora_A.weight": torch.ones(3, 16, 1, 1), f"unet.{LAYER}.lora_B.weight": torch.ones(16, 3, 1, 1)}, path)  # fmt: skip
    assert main(["import", str(path), "--model", str(tiny_pipeline), *more]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def peft_folder(path, alpha: float = 2.0, rank: int = 8):
    """An adapter of one layer as PEFT's ``save_pretrained`` writes it."""
    path.mkdir()
    name = f"base_model.model.{LAYER}"
    tensors = {f"{name}.lora_A.weight": torch.ones(rank, 16, 1, 1), f"{name}.lora_B.weight": torch.ones(16, rank, 1, 1)}
    save_file(tensors, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": alpha}))
    return path


def test_a_peft_folder_is_imported_at_its_scale(tiny_pipeline, tmp_path, capsys):
    """Read without its config, a LoRA of rank 8 and alpha 2 is four times too strong."""
    folder = peft_folder(tmp_path / "my_mug")
    assert main(["import", str(folder), "--model", str(tiny_pipeline), "--class", "mug"]) == 0
    path = tmp_path / "my_mug.safetensors"
    assert capsys.readouterr().out.strip() == str(path)
    assert load_residual(path).layers[LAYER].matrix().unique().tolist() == [2.0]


def test_a_peft_folder_is_generated_from(tiny_pipeline, tmp_path, capsys):
    call = ["generate", str(peft_folder(tmp_path / "adapter")), "--subject", "mug", "--model", str(tiny_pipeline)]
    call += ["--prompt", "a {} at sea", "--steps", "1", "--device", "cpu", "--out"]
    assert main([*call, str(tmp_path / "o")]) == 0 and len(list((tmp_path / "o").glob("*.png"))) == 1
    (tmp_path / "adapter" / "adapter_config.json").unlink()
    assert main([*call, str(tmp_path / "none")]) == 1
    assert "has PEFT's keys, whose scale is in adapter_config.json" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
