"""LoRA files from strangers: alphas, patterns, factors and keys of every kind are read, or refused in one sentence, in milliseconds."""

from __future__ import annotations

import json
import time

import pytest
import torch
from safetensors.torch import save_file

from persres.errors import PersresError
from persres.residuals.adapter_metadata import read_adapter_metadata
from persres.residuals.lora import read_lora
from tests.support.small_models import tiny_unet

LAYER = "down_blocks.0.attentions.0.proj_out"
KOHYA = f"lora_unet_{LAYER.replace('.', '_')}"
DOWN, UP = torch.ones(3, 16, 1, 1), torch.ones(16, 3, 1, 1)
A, B = f"unet.{LAYER}.lora_A.weight", f"unet.{LAYER}.lora_B.weight"
GOOD = {A: DOWN, B: UP}
GOOD_KOHYA = {f"{KOHYA}.lora_down.weight": DOWN, f"{KOHYA}.lora_up.weight": UP}
INFINITE, ALPHA = "is not valid .*finite number", f"{KOHYA}.alpha"


@pytest.fixture(scope="module")
def unet():
    return tiny_unet()


def read(unet, path, tensors, header=None):
    save_file({key: value.clone() for key, value in tensors.items()}, path / "x.safetensors", header)
    return read_lora(path / "x.safetensors", "mug", unet, []).unet


def metadata(text: str | None = None, **entries) -> dict[str, str]:
    return {"lora_adapter_metadata": text or json.dumps({f"unet.{key}": value for key, value in entries.items()})}


def patterns(pattern: str, alpha: object = 8) -> dict[str, str]:
    return metadata(lora_alpha=2, alpha_pattern={pattern: alpha})


@pytest.mark.parametrize(
    ("pattern", "scale"),
    [
        (LAYER, 8 / 3),
        ("proj_out", 8 / 3),
        ("attentions.0.proj_out", 8 / 3),
        (f"^{LAYER}", 8 / 3),
        (f"^{LAYER}$", 8 / 3),
        (LAYER.replace(".", r"\."), 8 / 3),
        ("^proj_out", 2 / 3),
        ("j_out", 2 / 3),
        ("mid_block.attentions.0.proj_out", 2 / 3),
    ],
)
def test_patterns_are_layer_names_or_their_last_parts(unet, tmp_path, pattern, scale):
    (delta,) = read(unet, tmp_path, GOOD, patterns(pattern)).values()
    torch.testing.assert_close(delta.matrix(), scale * UP.flatten(1) @ DOWN.flatten(1))


def test_the_first_pattern_of_the_file_counts_and_a_tower_may_have_its_old_prefix(tmp_path):
    entries = {"proj_out": 1, LAYER: 5, "text_model.encoder.layers.0.mlp.fc1": 7}
    config = read_adapter_metadata(tmp_path, metadata(lora_alpha=2, alpha_pattern=entries, r=4, rank_pattern=None))[
        "unet"
    ]
    assert config.scale(LAYER, 1) == 1 and config.scale("x.proj_in", 4) == 0.5
    assert config.scale("encoder.layers.0.mlp.fc1", 1) == config.scale("text_model.encoder.layers.0.mlp.fc1", 1) == 7


@pytest.mark.parametrize(
    "pattern", ["(([a-z0-9_.]+)+)+X", "(d|d)*" * 20 + "Q", "(", "*", "[", "\\", "down_blocks.*proj_out", "a|b", "", "^", "a b"]
)  # fmt: skip
def test_a_pattern_that_is_an_expression_is_refused_and_never_run(unet, tmp_path, pattern):
    start = time.monotonic()
    with pytest.raises(
        PersresError, match=r"x\.safetensors: its lora_adapter_metadata is not valid .*is not a layer's name"
    ):
        read(unet, tmp_path, GOOD, patterns(pattern))
    assert time.monotonic() - start < 5


WRONG_METADATA = {
    "alpha text": metadata(lora_alpha="8"),
    "alpha null": metadata(lora_alpha=None),
    "alpha NaN": metadata('{"unet.lora_alpha": NaN}'),
    "alpha infinite": metadata('{"unet.lora_alpha": 1e999}'),
    "alpha of 400 digits": metadata('{"unet.lora_alpha": 1' + "0" * 400 + "}"),
    "two alphas": metadata(lora_alpha=[1, 2]),
    "alpha true": metadata(lora_alpha=True),
    "pattern a list": metadata(lora_alpha=1, alpha_pattern=[1]),
    "pattern text": metadata(lora_alpha=1, alpha_pattern="proj_out"),
    "pattern's alpha null": patterns(LAYER, None),
    "pattern's alpha text": patterns(LAYER, "8"),
    "rank text": metadata(lora_alpha=1, rank_pattern={LAYER: "x"}),
    "rank 0": metadata(lora_alpha=1, rank_pattern={LAYER: 0}),
    "r 0": metadata(lora_alpha=1, r=0),
    "rslora text": metadata(lora_alpha=1, use_rslora="false"),
    "null": metadata("null"),
    "a list": metadata("[1]"),
    "a number": metadata("3"),
    "no JSON": metadata("{"),
    "too deep": metadata("[" * 100_000),
}


@pytest.mark.parametrize("kind", WRONG_METADATA)
def test_metadata_that_are_no_finite_scalars_are_refused(unet, tmp_path, kind):
    with pytest.raises(PersresError, match=r"x\.safetensors: its lora_adapter_metadata is not valid .*; fetch or save") as caught:  # fmt: skip
        read(unet, tmp_path, GOOD, WRONG_METADATA[kind])
    assert "\n" not in str(caught.value)


def kohya(**alphas: torch.Tensor) -> dict[str, torch.Tensor]:
    return GOOD_KOHYA | {f"{KOHYA}.{name}": value for name, value in alphas.items()}


NOTHING = {A: torch.ones(0, 16, 1, 1), B: torch.ones(16, 0, 1, 1)}
TE = "lora_te_text_projection"
WRONG_TENSORS = {
    "alpha NaN": (kohya(alpha=torch.tensor(float("nan"))), "alpha holds NaN"),
    "alpha of two numbers": (kohya(alpha=torch.ones(2)), "an alpha is one number"),
    "alpha of none": (kohya(alpha=torch.ones(0)), "an alpha is one number"),
    "alpha a truth": (kohya(alpha=torch.tensor(True)), "an alpha is one number"),
    "alpha complex": (kohya(alpha=torch.tensor(1j)), "alpha is complex64"),
    "alpha absurd": (kohya(alpha=torch.tensor(3e38)), r"has weights of up to 3e\+38"),
    "rank 0": (NOTHING, r"float32 \[0, 16, 1, 1\]"),
    "kohya's rank 0": ({key: value[:0] for key, value in GOOD_KOHYA.items()}, "a LoRA's factors are matrices"),
    "a number": (GOOD | {A: torch.tensor(1.0)}, r"float32 \[\], and a LoRA's"),
    "a vector": (GOOD | {B: torch.ones(16)}, "a LoRA's factors are matrices"),
    "five dimensions": (GOOD | {A: torch.ones(3, 16, 1, 1, 1)}, "a LoRA's factors are matrices"),
    "whole numbers": ({key: value.int() for key, value in GOOD.items()}, "is int32"),
    "eight bits": (GOOD | {A: DOWN.to(torch.int8)}, "is int8"),
    "truths": (GOOD | {A: DOWN.bool()}, "is bool"),
    "complex": (GOOD | {A: DOWN.to(torch.complex64)}, "is complex64"),
    "a norm": (
        {"unet.conv_norm_out.lora_A.weight": torch.ones(1, 1), "unet.conv_norm_out.lora_B.weight": torch.ones(16, 1)},
        "conv_norm_out is a GroupNorm, which takes no LoRA",
    ),
    "a block": (
        {"unet.mid_block.lora_A.weight": torch.ones(1, 1), "unet.mid_block.lora_B.weight": torch.ones(1, 1)},
        "this model has no layer 'mid_block'",
    ),
    "two tools' names": (
        GOOD_KOHYA | {f"lora_unet_input_blocks_1_1_proj_out.lora_{f}.weight": torch.ones(1, 1) for f in ("down", "up")},
        "layer down_blocks.0.attentions.0.proj_out twice, by two tools' names",
    ),
    "two prefixes": (GOOD | {f"base_model.model.{A}": DOWN * 2}, "has layers twice"),
    "block names of no block": (
        {f"lora_unet_input_blocks_x_y.lora_{f}.weight": torch.ones(1, 1) for f in ("down", "up")},
        "this model has no layer 'input_blocks_x_y'",
    ),
    "an escape": (
        {"unet.a\x1b[31m.lora_A.weight": torch.ones(1, 1), "unet.a\x1b[31m.lora_B.weight": torch.ones(1, 1)},
        r"no layer 'a\\x1b\[31m'",
    ),
    "a bundled embedding": (GOOD_KOHYA | {"bundle_emb.me.string_to_param.*": torch.ones(2, 32)}, "embedding that is bundled"),
    "a bundled embedding of SDXL": (GOOD_KOHYA | {"bundle_emb.me.clip_g": torch.ones(2, 32)}, "without its bundle_emb keys"),
    "a text tower": (
        GOOD_KOHYA | {f"{TE}.lora_down.weight": torch.ones(2, 32), f"{TE}.lora_up.weight": torch.ones(32, 2)},
        "has layers of text_encoder, which a residual does not have; use the file as a LoRA",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG_TENSORS)
def test_tensors_that_no_lora_has_are_refused(unet, tmp_path, kind):
    tensors, message = WRONG_TENSORS[kind]
    with pytest.raises(PersresError, match=rf"x\.safetensors.*{message}") as caught:
        read(unet, tmp_path, tensors)
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_every_floating_type_is_read(unet, tmp_path, dtype):
    (delta,) = read(unet, tmp_path, {key: value.to(dtype) for key, value in GOOD.items()}).values()
    assert delta.matrix().tolist() == [[3.0] * 16] * 16


def test_an_output_projection_that_the_model_lacks_is_named(unet, tmp_path):
    """SDXL's second text tower has one, Stable Diffusion's text tower has none."""
    names = {f"lora_te_text_projection.lora_{f}.weight": torch.ones(2, 2) for f in ("down", "up")}
    save_file(GOOD_KOHYA | names, tmp_path / "x.safetensors")
    with pytest.raises(
        PersresError, match=r"trains the output projection of a text encoder \(text_projection\).*without its"
    ):
        read_lora(tmp_path / "x.safetensors", "mug", unet, [torch.nn.Module()])
    tower = torch.nn.ModuleDict({"text_projection": torch.nn.Linear(2, 2, bias=False)})
    assert set(read_lora(tmp_path / "x.safetensors", "mug", unet, [tower]).towers[0]) == {"text_projection"}
