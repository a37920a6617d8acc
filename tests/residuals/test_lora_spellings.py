"""One LoRA under the names of every tool that writes them: read as the same deltas, or refused with the true reason."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from persres.errors import PersresError
from persres.residuals.adapter_metadata import lora_path
from persres.residuals.ldm_names import ldm_name
from persres.residuals.lora import read_lora
from persres.seeding import generator
from tests.support.small_models import tiny_unet

RANK, ALPHA = 3, 1.5
LAYERS = (
    "down_blocks.0.attentions.0.proj_out",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0",
    "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "down_blocks.0.resnets.0.conv1",
    "down_blocks.0.downsamplers.0.conv",
    "down_blocks.1.resnets.0.conv_shortcut",
    "mid_block.attentions.0.proj_in",
    "mid_block.resnets.1.time_emb_proj",
    "up_blocks.0.upsamplers.0.conv",
    "up_blocks.1.attentions.1.proj_out",
    "up_blocks.1.resnets.1.conv2",
    "time_embedding.linear_1",
    "conv_in",
    "conv_out",
)
# In tiny_unet, by hand: one resnet a block on the way down, two on the way up, no attention in the first block up.
ORIGINAL = (
    "input_blocks.1.1.proj_out",
    "input_blocks.1.1.transformer_blocks.0.attn1.to_q",
    "input_blocks.1.1.transformer_blocks.0.attn2.to_out.0",
    "input_blocks.1.1.transformer_blocks.0.ff.net.0.proj",
    "input_blocks.1.0.in_layers.2",
    "input_blocks.2.0.op",
    "input_blocks.3.0.skip_connection",
    "middle_block.1.proj_in",
    "middle_block.2.emb_layers.1",
    "output_blocks.1.1.conv",
    "output_blocks.3.1.proj_out",
    "output_blocks.3.0.out_layers.3",
    "time_embed.0",
    "input_blocks.0.0",
    "out.2",
)


@pytest.fixture(scope="module")
def unet():
    return tiny_unet()


@pytest.fixture(scope="module")
def factors(unet):
    """(down, up) by layer."""
    factors = {}
    for layer in LAYERS:
        weight, draw = unet.get_submodule(layer).weight, generator("spelling", layer)
        down = torch.randn((RANK, *weight.shape[1:]), generator=draw)
        factors[layer] = down, torch.randn((len(weight), RANK, *[1] * (weight.ndim - 2)), generator=draw)
    return factors


def kohya(name: str) -> tuple[str, str]:
    return f"{name}.lora_down.weight", f"{name}.lora_up.weight"


def peft(name: str) -> tuple[str, str]:
    return f"{name}.lora_A.weight", f"{name}.lora_B.weight"


def original(layer: str) -> str:
    return dict(zip(LAYERS, ORIGINAL, strict=True))[layer]


SPELLINGS = {
    "kohya": lambda layer: kohya("lora_unet_" + layer.replace(".", "_")),
    "kohya's SDXL": lambda layer: kohya("lora_unet_" + original(layer).replace(".", "_")),
    "ComfyUI": lambda layer: kohya("diffusion_model." + original(layer)),
    "ComfyUI, PEFT's factors": lambda layer: peft("diffusion_model." + original(layer)),
    "a checkpoint's names": lambda layer: kohya("model.diffusion_model." + original(layer)),
    "OneTrainer": lambda layer: kohya("unet." + original(layer)),
    "diffusers": lambda layer: peft("unet." + layer),
    "a U-Net alone": peft,
    "PEFT's adapter name": lambda layer: (f"unet.{layer}.lora_A.default.weight", f"unet.{layer}.lora_B.default.weight"),
    "diffusers' linear layers": lambda layer: (f"unet.{layer}.lora_linear_layer.down.weight", f"unet.{layer}.lora_linear_layer.up.weight"),
    "diffusers' old layers": lambda layer: (f"unet.{layer}.lora.down.weight", f"unet.{layer}.lora.up.weight"),
}  # fmt: skip


@pytest.mark.parametrize("alpha", [None, ALPHA])
@pytest.mark.parametrize("tool", SPELLINGS)
def test_every_spelling_is_read_as_the_same_deltas(unet, factors, tmp_path, tool, alpha):
    tensors = {}
    for layer, (down, up) in factors.items():
        names = SPELLINGS[tool](layer)
        tensors |= {names[0]: down, names[1]: up}
        if alpha is not None:
            stem = names[0].partition(".lora")[0]
            tensors[f"{stem}.alpha"] = torch.tensor(alpha)
    save_file(tensors, tmp_path / "x.safetensors")
    deltas = read_lora(str(tmp_path / "x.safetensors"), "mug", unet, []).unet
    assert set(deltas) == set(LAYERS)
    for layer, (down, up) in factors.items():
        scale = 1 if alpha is None else alpha / RANK
        torch.testing.assert_close(deltas[layer].matrix(), scale * up.flatten(1) @ down.flatten(1))


def test_old_attention_processors_are_read(unet, factors, tmp_path):
    layers = [layer for layer in LAYERS if ".attn" in layer]
    names = [layer.removesuffix(".0").replace(".to_", ".processor.to_") for layer in layers]
    tensors = {}
    for layer, name in zip(layers, names, strict=True):
        tensors |= {
            f"unet.{name}_lora.down.weight": factors[layer][0],
            f"unet.{name}_lora.up.weight": factors[layer][1],
        }
    save_file(tensors, tmp_path / "x.safetensors")
    assert set(read_lora(tmp_path / "x.safetensors", "mug", unet, []).unet) == set(layers)


SD = {  # of SD 1.x and XL, as kohya's conversion tables have them
    "down_blocks.0.attentions.1.proj_out": "input_blocks.2.1.proj_out",
    "down_blocks.1.attentions.0.proj_out": "input_blocks.4.1.proj_out",
    "down_blocks.2.attentions.1.proj_out": "input_blocks.8.1.proj_out",
    "down_blocks.2.downsamplers.0.conv": "input_blocks.9.0.op",
    "mid_block.attentions.0.proj_out": "middle_block.1.proj_out",
    "up_blocks.0.attentions.2.proj_out": "output_blocks.2.1.proj_out",
    "up_blocks.1.attentions.0.proj_out": "output_blocks.3.1.proj_out",
    "up_blocks.3.attentions.2.proj_out": "output_blocks.11.1.proj_out",
    "up_blocks.1.upsamplers.0.conv": "output_blocks.5.2.conv",
    "add_embedding.linear_2": "label_emb.0.2",
}


@pytest.mark.parametrize("path", SD)
def test_the_original_names_of_stable_diffusion(path):
    assert ldm_name(path) == SD[path]


class Tower(torch.nn.Module):
    """A text encoder of one layer, with or without ``text_model`` in its paths."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        layer = torch.nn.ModuleDict(
            {"self_attn": torch.nn.ModuleDict({n: torch.nn.Linear(4, 4) for n in ("q_proj", "out_proj")})}
        )
        layer["mlp"] = torch.nn.ModuleDict({"fc1": torch.nn.Linear(4, 8)})
        inner = torch.nn.ModuleDict({"encoder": torch.nn.ModuleDict({"layers": torch.nn.ModuleList([layer])})})
        inner["embeddings"] = torch.nn.ModuleDict({"token_embedding": torch.nn.Embedding(4, 4)})
        for name, module in {"text_model": inner}.items() if prefix else inner.items():
            self.add_module(name, module)


TEXT = "encoder.layers.0.self_attn.q_proj"
FIRST = {
    "kohya": kohya("lora_te_text_model_" + TEXT.replace(".", "_")),
    "kohya's SDXL": kohya("lora_te1_text_model_" + TEXT.replace(".", "_")),
    "diffusers": peft("text_encoder.text_model." + TEXT),
    "diffusers 0.42": peft("text_encoder." + TEXT),
    "diffusers' old": ("text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.down.weight", "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.up.weight"),
    "linear": (f"text_encoder.text_model.{TEXT}.lora_linear_layer.down.weight", f"text_encoder.text_model.{TEXT}.lora_linear_layer.up.weight"),
    "ComfyUI": kohya("text_encoders.clip_l.transformer.text_model." + TEXT),
    "OneTrainer": kohya("clip_l.text_model." + TEXT),
    "a checkpoint's": kohya("cond_stage_model.transformer.text_model." + TEXT),
    "an adapter alone": peft("text_model." + TEXT),
}  # fmt: skip
SECOND = {
    "kohya": kohya("lora_te2_text_model_" + TEXT.replace(".", "_")),
    "diffusers": peft("text_encoder_2.text_model." + TEXT),
    "ComfyUI": kohya("text_encoders.clip_g.transformer.text_model." + TEXT),
    "OneTrainer": kohya("clip_g.text_model." + TEXT),
}
OF_ONE = torch.ones(RANK, 4), torch.ones(4, RANK)


def written(path, names, factors=OF_ONE):
    save_file({name: factor.clone() for name, factor in zip(names, factors, strict=True)}, path / "x.safetensors")
    return path / "x.safetensors"


@pytest.mark.parametrize("prefix", ["text_model", ""])
@pytest.mark.parametrize("tool", FIRST)
def test_every_spelling_of_a_text_encoder_is_read(unet, tmp_path, tool, prefix):
    tower = Tower(prefix)
    (layers,) = read_lora(written(tmp_path, FIRST[tool]), "mug", unet, [tower]).towers
    assert list(layers) == [f"{prefix}.{TEXT}".strip(".")]


@pytest.mark.parametrize("tool", SECOND)
def test_every_spelling_of_a_second_text_encoder_is_read(unet, tmp_path, tool):
    first, second = read_lora(written(tmp_path, SECOND[tool]), "mug", unet, [Tower(""), Tower("")]).towers
    assert not first and list(second) == [TEXT]


WRONG_TEXT = {
    "a residual": (FIRST["ComfyUI"], [], "has layers of text_encoder, which a residual does not have; use the file as a LoRA"),
    "two towers": (SECOND["OneTrainer"], [Tower("")], "has layers of text_encoder_2, which this model does not have"),
    "three towers": (kohya("lora_te3_x"), [Tower("")], "has layers of a third text encoder, which this model does not have"),
    "T5": (kohya("text_encoders.t5xxl.transformer.x"), [Tower("")], "has layers of another text encoder"),
    "a transformer": (peft("transformer.transformer_blocks.0.attn.to_q"), [Tower("")], "has layers of a diffusion transformer"),
    "OpenCLIP": (kohya("lora_te_transformer_resblocks_0_mlp_c_fc"), [Tower("")], "has OpenCLIP's name of a text encoder's layer"),
    "a deeper tower": (kohya("lora_te_text_model_encoder_layers_1_mlp_fc1"), [Tower("")], "has no layer 'text_model_encoder_layers_1_mlp_fc1'"),
    "an embedding": (peft("text_encoder.text_model.embeddings.token_embedding"), [Tower("")], "is a Embedding, which takes no LoRA"),
    "a projection": (kohya("lora_te_text_projection"), [Tower("")], "trains the output projection of a text encoder"),
    "another width": (kohya("clip_l.text_model.encoder.layers.0.mlp.fc1"), [Tower("")], r"the model's layer is \[8, 4\]"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG_TEXT)
def test_text_layers_that_do_not_fit_get_the_true_reason(unet, tmp_path, kind):
    names, towers, message = WRONG_TEXT[kind]
    with pytest.raises(PersresError, match=rf"x\.safetensors.*{message}"):
        read_lora(written(tmp_path, names), "mug", unet, towers)


LAYER = LAYERS[0]
CONFIG = {
    "peft_type": "LORA",
    "r": 8,
    "lora_alpha": 2,
    "target_modules": ["proj_out"],
    "use_dora": False,
    "bias": "none",
}


def adapter(folder, factors, config=CONFIG, prefix="base_model.model.", rank=8):
    """PEFT's folder: ``save_pretrained`` writes the scale to the config alone."""
    down, up = (torch.ones(rank, *factors[LAYER][0].shape[1:]), torch.ones(len(factors[LAYER][1]), rank, 1, 1))
    save_file(
        {f"{prefix}{LAYER}.lora_A.weight": down, f"{prefix}{LAYER}.lora_B.weight": up},
        folder / "adapter_model.safetensors",
    )
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


SCALES = {
    "alpha": ({}, 2 / 8),
    "rsLoRA": ({"use_rslora": True}, 2 / 8**0.5),
    "alpha_pattern": ({"alpha_pattern": {LAYER: 16}}, 16 / 8),
    "alpha = rank": ({"lora_alpha": 8}, 1.0),
    "alpha with another start": ({"init_lora_weights": "gaussian"}, 2 / 8),
}


@pytest.mark.parametrize("place", ["folder", "file", "other name"])
@pytest.mark.parametrize("kind", SCALES)
def test_a_peft_folder_has_the_scale_of_its_config(unet, factors, tmp_path, kind, place):
    changes, scale = SCALES[kind]
    path = adapter(tmp_path, factors, CONFIG | changes)
    if place == "other name":
        path = (tmp_path / "adapter_model.safetensors").rename(tmp_path / "renamed.safetensors")
    elif place == "file":
        path = tmp_path / "adapter_model.safetensors"
    (delta,) = read_lora(path, "mug", unet, []).unet.values()
    torch.testing.assert_close(delta.matrix(), torch.full_like(delta.matrix(), 8 * scale))


def test_peft_itself_writes_such_a_folder(unet, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        tiny_unet(), LoraConfig(r=8, lora_alpha=2, target_modules=["proj_out"], init_lora_weights=False)
    )
    model.save_pretrained(tmp_path / "adapter")
    deltas = read_lora(tmp_path / "adapter", "mug", unet, []).unet
    for layer, delta in deltas.items():
        theirs = model.base_model.model.get_submodule(layer).get_delta_weight("default")
        torch.testing.assert_close(delta.matrix(), theirs.flatten(1))


WRONG_FOLDERS = {
    "no config": (None, r"has PEFT's keys, whose scale is in adapter_config\.json, which is not next to it"),
    "another kind": (CONFIG | {"peft_type": "LOHA"}, "peft_type"),
    "DoRA": (CONFIG | {"use_dora": True}, "use_dora"),
    "another base, PiSSA": (CONFIG | {"init_lora_weights": "pissa"}, "init_lora_weights"),
    "another base, OLoRA": (CONFIG | {"init_lora_weights": "olora"}, "init_lora_weights"),
    "no alpha": ({key: value for key, value in CONFIG.items() if key != "lora_alpha"}, "lora_alpha"),
    "alpha text": (CONFIG | {"lora_alpha": "2"}, "lora_alpha"),
    "an expression": (CONFIG | {"alpha_pattern": {"(a+)+": 2}}, "is not a layer's name"),
    "a list": ([], "is not valid"),
}


@pytest.mark.parametrize("kind", WRONG_FOLDERS)
def test_a_peft_folder_without_a_known_scale_is_refused(unet, factors, tmp_path, kind):
    config, message = WRONG_FOLDERS[kind]
    with pytest.raises(PersresError, match=message):
        read_lora(adapter(tmp_path, factors, config), "mug", unet, [])


def test_a_header_of_diffusers_counts_before_a_config_of_something_else(unet, factors, tmp_path):
    path = written(tmp_path, peft(f"unet.{LAYER}"), factors[LAYER])
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    (delta,) = read_lora(path, "mug", unet, []).unet.values()
    torch.testing.assert_close(delta.up, factors[LAYER][1].flatten(1))


def test_the_header_of_a_u_net_alone_names_no_part(unet, factors, tmp_path):
    """As the U-Net's ``save_lora_adapter`` writes it."""
    names, header = peft(LAYER), {"lora_adapter_metadata": json.dumps(CONFIG | {"r": RANK, "lora_alpha": 1.5})}
    save_file(dict(zip(names, factors[LAYER], strict=True)), tmp_path / "pytorch_lora_weights.safetensors", header)
    (delta,) = read_lora(tmp_path, "mug", unet, []).unet.values()
    torch.testing.assert_close(delta.up, factors[LAYER][1].flatten(1) / 2)


@pytest.mark.parametrize(("file", "message"), [("adapter_model.bin", "is a pickle, .*convert it: python"), ("x.txt", "is a folder without")])  # fmt: skip
def test_a_folder_without_safetensors_is_refused(tmp_path, file, message):
    (tmp_path / file).touch()
    with pytest.raises(PersresError, match=message):
        lora_path(tmp_path)
