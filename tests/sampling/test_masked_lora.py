"""Any LoRA: read from PEFT's and kohya's files. A mask of ones equals diffusers, zeros equal the base model, and any other mask is exact."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import save_file

from persres.cli.main import main
from persres.errors import PersresError
from persres.exports.export import export
from persres.models.attention import attended, split_heads
from persres.pipeline import PersonalizedPipeline
from persres.residuals.bank import ResidualBank, Routing, residual_hooks
from persres.residuals.file import save_residual
from persres.residuals.lora import Delta, Lora, read_lora
from persres.residuals.targets import find_targets
from persres.sampling.lag import MaskRule, guidance_rule, lag_hooks
from persres.sampling.mask_config import AUTO, PAPER, MaskConfig
from persres.sampling.masked_lora import LayerMasks, masked_lora_hooks
from persres.seeding import generator
from tests.support.family_models import save_family
from tests.support.residual_files import header_info
from tests.support.small_models import tiny_unet

TEXT = "a photo of a sks mug on the beach"
CALL = {"num_inference_steps": 2, "guidance_scale": 6.0, "height": 32, "width": 32, "output_type": "pt"}
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
EVERYTHING = (*ATTENTION, "net.0.proj", "net.2", "proj_in", "proj_out", "conv1", "conv2", "conv_shortcut", "conv", "time_emb_proj")  # fmt: skip
TOWER = ("q_proj", "out_proj", "fc1")


def layers_of(model, ends: tuple[str, ...]) -> dict[str, torch.nn.Module]:
    """The model's linear and convolutional layers whose names end so."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and path.endswith(tuple(f".{end}" for end in ends))
    }


def factors(layer, seed: str, rank: int = 3, size: float = 0.4) -> tuple[torch.Tensor, torch.Tensor]:
    """(down, up) as LoRA files have them, strong enough to be seen."""
    weight, draw = layer.weight, generator("lora", seed)
    down = torch.randn((rank, *weight.shape[1:]), generator=draw) / weight[0].numel() ** 0.5
    up = torch.randn((len(weight), rank, *[1] * (weight.ndim - 2)), generator=draw) * size / rank**0.5
    return down, up


def write(pipe, path, keys: str = "peft", ends: tuple[str, ...] = EVERYTHING, tower: tuple[str, ...] = (), alpha=3.0):
    """A LoRA of these layers; the same deltas in either spelling."""
    tensors, second = {}, getattr(pipe, "text_encoder_2", None)
    parts = {"unet": ("lora_unet_", pipe.unet, ends)}
    parts["text_encoder"] = ("lora_te_" if second is None else "lora_te1_", pipe.text_encoder, tower)
    if second is not None:
        parts["text_encoder_2"] = ("lora_te2_", second, tower)
    for part, (prefix, model, names) in parts.items():
        for layer, module in layers_of(model, names).items():
            down, up = factors(module, f"{part}.{layer}")
            if keys == "peft":
                tensors[f"{part}.{layer}.lora_A.weight"] = down
                tensors[f"{part}.{layer}.lora_B.weight"] = up * (alpha / len(down))
            else:
                name = prefix + layer.replace(".", "_")
                tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
                tensors[f"{name}.alpha"] = torch.tensor(alpha)
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return path


@pytest.fixture(scope="module")
def plain(tiny_pipeline):
    """Diffusers' own pipeline, which knows nothing of persres."""
    return quiet(StableDiffusionPipeline.from_pretrained(tiny_pipeline, safety_checker=None))


@pytest.fixture(scope="module")
def pipe(tiny_pipeline):
    """Ours, of the same weights."""
    return quiet(PersonalizedPipeline.from_pretrained(tiny_pipeline, safety_checker=None))


def quiet(pipe):
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noise(height: int = 8, width: int = 8, count: int = 1) -> torch.Tensor:
    return torch.randn((count, 4, height, width), generator=generator("loras", height, width))


def sample(pipe, text=TEXT, **more) -> torch.Tensor:
    return pipe(text, **(CALL | {"latents": noise()} | more)).images


def by_diffusers(plain, path, text=TEXT, **more) -> torch.Tensor:
    plain.load_lora_weights(str(path.parent), weight_name=path.name)
    try:
        return sample(plain, text, **more)
    finally:
        plain.unload_lora_weights()


class Nowhere(MaskConfig):
    """A masking whose masks are zeros, whatever the attention."""

    def mask(self, attention, shape, draws=None):
        return torch.zeros_like(attention)


@pytest.mark.parametrize("keys", ["peft", "kohya"])
def test_a_mask_of_ones_equals_diffusers_lora_and_of_zeros_the_base_model(plain, pipe, tmp_path, keys):
    appearance, everywhere = (
        "a watercolour painting of a sks mug",
        MaskConfig(threshold="otsu", source_blocks="confidence_weighted", policy="scenes"),
    )
    path = write(pipe, tmp_path / "l.safetensors", keys, tower=TOWER, alpha=1.5)
    base, theirs = sample(plain, appearance), by_diffusers(plain, path, appearance)
    assert (theirs - base).abs().max() > 0.01, "the LoRA must be seen"
    pipe.load_residual(path, subject="sks mug")
    torch.testing.assert_close(sample(pipe, appearance), theirs, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(sample(pipe, appearance, lag=everywhere), theirs, atol=1e-4, rtol=1e-3)
    pipe.load_residual(write(pipe, tmp_path / "u.safetensors", keys), "u", subject="sks mug")
    nowhere = sample(pipe, lag=Nowhere(source_blocks="confidence_weighted", threshold="otsu"))
    torch.testing.assert_close(nowhere, sample(plain), atol=1e-5, rtol=1e-4)


def test_sdxl_with_both_its_text_towers(tmp_path):
    from diffusers import StableDiffusionXLPipeline

    theirs = quiet(StableDiffusionXLPipeline.from_pretrained(save_family("sdxl", tmp_path)))
    path = write(theirs, tmp_path / "l.safetensors", "kohya", (*ATTENTION, "conv1"), TOWER, alpha=1.5)
    appearance, call = "a watercolour painting of a sks mug", {"height": 64, "width": 64, "output_type": "latent"}
    call |= {"num_inference_steps": 1, "latents": noise(), "guidance_scale": 1.0}
    base = theirs(appearance, **call).images
    theirs.load_lora_weights(str(path.parent), weight_name=path.name)
    whole = theirs(appearance, **call).images
    theirs.unload_lora_weights()
    ours = PersonalizedPipeline.from_pipe(theirs).load_residual(path, subject="sks mug")
    assert (whole - base).abs().max() > 1e-3
    torch.testing.assert_close(ours(appearance, **call).images, whole, atol=1e-4, rtol=1e-3)
    everywhere = MaskConfig(threshold="otsu", source_blocks="confidence_weighted", policy="scenes")
    torch.testing.assert_close(ours(appearance, lag=everywhere, **call).images, whole, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("linear", [False, True])
def test_every_layer_matches_its_name_in_kohyas_keys(tmp_path, linear):
    """Layer by layer, each alone in its file: diffusers guesses spellings from what else is there."""
    unet, scale = tiny_unet(linear), 1.5 / 3
    for layer, module in layers_of(unet, EVERYTHING).items():
        down, up = factors(module, layer)
        name = f"lora_unet_{layer.replace('.', '_')}"
        tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(1.5)}
        save_file(tensors, tmp_path / "l.safetensors")
        result = read_lora(tmp_path / "l.safetensors", "mug", unet, []).unet
        assert list(result) == [layer]
        torch.testing.assert_close(result[layer].matrix(), scale * up.flatten(1) @ down.flatten(1))


def test_a_text_tower_without_its_output_is_not_dropped(pipe, tmp_path):
    path = write(pipe, tmp_path / "l.safetensors", "kohya", ends=("proj_out",), tower=("q_proj", "fc1"))
    result = read_lora(path, "mug", pipe.unet, [pipe.text_encoder]).towers[0]
    assert set(result) == set(layers_of(pipe.text_encoder, ("q_proj", "fc1")))


def test_everywhere_is_the_whole_lora_layer_by_layer(unet):
    """Through all the masked paths: blended attentions, masked shifts, convolutions with strides."""
    deltas = {path: Delta(up.flatten(1), down) for path, (down, up) in ((p, factors(m, p)) for p, m in layers_of(unet, EVERYTHING).items())}  # fmt: skip
    x, t, text = noise(count=2), torch.tensor(500), torch.randn((2, 24, 24), generator=generator("text"))
    tokens = torch.zeros(2, 24).index_fill_(1, torch.tensor([3, 4]), 1.0)
    everywhere = MaskRule(tokens[None], mask_config=AUTO, unmasked=torch.ones(2, dtype=torch.bool))
    with torch.no_grad(), masked_lora_hooks(unet, deltas, Routing.everywhere(2), everywhere):
        masked = unet(x, t, encoder_hidden_states=text).sample
    with torch.no_grad(), masked_lora_hooks(unet, deltas, Routing.everywhere(2), None):
        whole = unet(x, t, encoder_hidden_states=text).sample
    for path, delta in deltas.items():
        layer = unet.get_submodule(path)
        layer.weight.data += delta.matrix().view_as(layer.weight)
    with torch.no_grad():
        expected = unet(x, t, encoder_hidden_states=text).sample
    torch.testing.assert_close(whole, expected, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(masked, expected, atol=1e-4, rtol=1e-3)


def test_keys_and_values_are_blended_by_query(unet):
    """By hand: two attentions, each query taking the LoRA's where the mask is one."""
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
    attn, seen = unet.get_submodule(path), {}
    deltas = {f"{path}.{name}": Delta(up, down) for name in ("to_k", "to_v") for down, up in [factors(getattr(attn, name), name)]}  # fmt: skip
    attn.to_q.register_forward_pre_hook(lambda _m, args: seen.update(x=args[0]))
    rule = MaskRule(torch.zeros(1, 1, 24).index_fill_(2, torch.tensor([2]), 1.0), mask_config=AUTO)  # fmt: skip
    text = torch.randn((1, 24, 24), generator=generator("text"))
    with torch.no_grad(), masked_lora_hooks(unet, deltas, Routing.everywhere(1), rule):
        attn.register_forward_hook(
            lambda _m, _args, output: seen.update(out=output)
        )  # the last hook: after the blending
        unet(noise(), torch.tensor(500), encoder_hidden_states=text)
        query, key, value = attn.to_q(seen["x"]), attn.to_k(text), attn.to_v(text)
    weights = attn.get_attention_scores(attn.head_to_batch_dim(query), attn.head_to_batch_dim(key))
    attention = weights.unflatten(0, (-1, attn.heads)).mean(1)[..., 2]  # the map of the pass's first attention: its own
    mask = AUTO.mask(attention, (8, 8))[..., None]
    more_key, more_value = (base + text @ deltas[f"{path}.{n}"].matrix().T for n, base in (("to_k", key), ("to_v", value)))  # fmt: skip
    q, k, v, more_k, more_v = (split_heads(attn, part) for part in (query, key, value, more_key, more_value))
    base, theirs = attended(attn, q, k, v), attended(attn, q, more_k, more_v)
    assert 0 < float(mask.mean()) < 1 and (base - theirs).abs().max() > 1e-3
    expected = attn.to_out[0](torch.where(mask.bool(), theirs, base))
    torch.testing.assert_close(seen["out"], expected, atol=1e-5, rtol=1e-4)


def test_an_attention_that_normalises_its_inputs_is_refused_and_the_others_are_left_as_they_were(unet):
    path = "up_blocks.1.attentions.0"
    attn = unet.get_submodule(f"{path}.transformer_blocks.0.attn2")
    attn.norm_q = torch.nn.LayerNorm(4)
    before = dict(unet.attn_processors)
    rule = MaskRule(torch.zeros(1, 1, 24).index_fill_(2, torch.tensor([2]), 1.0), mask_config=AUTO)
    with pytest.raises(PersresError, match=f"{path}.*normalises"), masked_lora_hooks(unet, {}, Routing.everywhere(1), rule):  # fmt: skip
        pass
    assert unet.attn_processors == before


@pytest.mark.parametrize("mask_config", [PAPER, AUTO])
def test_our_residual_as_a_lora_equals_lag(tmp_path, mask_config):
    """The output projections' deltas, masked by both paths, in either export."""
    unet = tiny_unet().requires_grad_(False)
    targets = find_targets(unet, 0.15)
    bank = ResidualBank(targets).initialise(0, "scaled_normal", 0.5, generator("export")).requires_grad_(False)
    save_residual(tmp_path / "r.safetensors", bank.deltas(), header_info())
    x, text = noise(count=4), torch.randn((4, 24, 24), generator=generator("text"))
    tokens = torch.zeros(2, 24).index_fill_(1, torch.tensor([3, 4]), 1.0)

    def passes(enter) -> torch.Tensor:
        routing, rule = guidance_rule(tokens[None], "mask", mask_config)
        with torch.no_grad(), enter(routing, rule):
            return torch.stack([unet(x, torch.tensor(t), encoder_hidden_states=text).sample for t in (700, 400)])

    class Both:
        def __init__(self, routing, rule):
            self.parts = (lag_hooks(unet, routing, rule), residual_hooks(unet, bank, routing))

        def __enter__(self):
            [part.__enter__() for part in self.parts]

        def __exit__(self, *error):
            [part.__exit__(*error) for part in reversed(self.parts)]

    ours = passes(Both)
    for to in ("diffusers", "kohya"):
        lora = read_lora(export(tmp_path / "r.safetensors", to, tmp_path / f"{to}.safetensors"), "mug", unet, [])
        torch.testing.assert_close(passes(lambda r, m, lora=lora: masked_lora_hooks(unet, lora.unet, r, m)), ours, atol=1e-5, rtol=1e-4)  # fmt: skip


def test_peft_and_kohya_draw_the_same_confined(pipe, tmp_path):
    for keys in ("peft", "kohya"):
        pipe.load_residual(write(pipe, tmp_path / f"{keys}.safetensors", keys, tower=TOWER, alpha=1.5), subject="sks mug")  # fmt: skip
    ours = {k: sample(pipe.set_residual(k), lag="auto") for k in ("peft", "kohya")}
    torch.testing.assert_close(ours["peft"], ours["kohya"], atol=1e-5, rtol=1e-4)
    assert (ours["peft"] - sample(pipe)).abs().max() > 1e-3, "confined is not the whole LoRA"


def test_switched_by_name_scaled_and_left_untouched(pipe, plain, tmp_path):
    pipe.load_residual(write(pipe, tmp_path / "a.safetensors", ends=ATTENTION, tower=TOWER), subject="mug")
    pipe.load_residual(write(pipe, tmp_path / "b.safetensors", ends=("conv1",)), "second", subject="sks mug")
    assert pipe.active == "second"
    whole = {name: sample(pipe.set_residual(name)) for name in ("a", "second")}
    assert (whole["a"] - whole["second"]).abs().max() > 1e-3
    base = sample(plain)
    torch.testing.assert_close(sample(pipe.set_residual("a"), strength=0.0), base, atol=1e-5, rtol=1e-4)
    near, far = ((sample(pipe, strength=s) - base).abs().mean() for s in (0.2, 1.0))
    assert near < far
    processors = {path: type(p) for path, p in pipe.unet.attn_processors.items()}

    def stop(*_):
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        sample(pipe, lag="auto", callback_on_step_end=stop)
    assert {path: type(p) for path, p in pipe.unet.attn_processors.items()} == processors
    assert torch.equal(sample(pipe.set_residual(None)), base), "also after an error"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in pipe.unet.modules())


def test_other_shapes_many_images_and_half_precision(pipe, tiny_pipeline, tmp_path):
    path = write(pipe, tmp_path / "l.safetensors", tower=TOWER)
    pipe.load_residual(path, subject="sks mug")
    wide = sample(pipe, lag=True, width=64, latents=noise(8, 16), return_masks=True)
    assert wide.shape == (1, 3, 32, 64)
    result = pipe([TEXT, TEXT], **CALL, lag="auto", num_images_per_prompt=2, latents=noise(count=4), return_masks=True)
    assert result.masks.shape == (4, 8, 8) and 0 < float(result.masks.mean()) < 1
    half = quiet(PersonalizedPipeline.from_pretrained(tiny_pipeline, safety_checker=None, dtype=torch.bfloat16))
    half.load_residual(path, subject="sks mug")
    assert sample(half, lag="auto", latents=noise().bfloat16()).isfinite().all()


def test_a_place_that_is_not_known_yet_does_not_act():
    rule = MaskRule(torch.ones(1, 2, 4), unmasked=torch.tensor([False, True]))
    assert LayerMasks(Routing.everywhere(2), rule).gate(None, (2, 3)).tolist() == [[0.0] * 6, [1.0] * 6]


def test_the_files_header_scales_as_peft_does(pipe, tmp_path):
    """alpha / r, by layer where the header has patterns, alpha / √r for rsLoRA."""
    path = "down_blocks.0.attentions.0.proj_out"
    down, up = factors(pipe.unet.get_submodule(path), "h", rank=4)
    for metadata, scale in (
        ({"lora_alpha": 2}, 0.5),
        ({"lora_alpha": 2, "alpha_pattern": {"attentions.0.proj_out": 8}}, 2.0),
        ({"lora_alpha": 2, "use_rslora": True}, 1.0),
        ({}, 1.0),
    ):
        header = {"lora_adapter_metadata": json.dumps({f"unet.{k}": v for k, v in metadata.items()})}
        save_file({f"unet.{path}.lora_A.weight": down, f"unet.{path}.lora_B.weight": up}, tmp_path / "h.safetensors", header)  # fmt: skip
        result: Lora = read_lora(tmp_path / "h.safetensors", "mug", pipe.unet, [pipe.text_encoder])
        torch.testing.assert_close(result.unet[path].matrix(), scale * up.flatten(1) @ down.flatten(1))


LAYER = "down_blocks.0.attentions.0.proj_out"
GOOD = {f"unet.{LAYER}.lora_A.weight": (3, 16, 1, 1), f"unet.{LAYER}.lora_B.weight": (16, 3, 1, 1)}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"lora_unet_x.hada_w1_a": (3, 3)}, r"'lora_unet_x\.hada_w1_a' is LoHa's.*extract a LoRA"),
        ({**GOOD, f"unet.{LAYER}.lora_magnitude_vector": (16,)}, r"is DoRA's, not a plain LoRA's"),
        ({"lora_unet_a.lora_mid.weight": (3, 3, 3, 3)}, r"third factor"),
        ({"unet.nowhere.lora_A.weight": (3, 16), "unet.nowhere.lora_B.weight": (16, 3)}, r"no layer 'nowhere'; load the base"),
        ({f"unet.{LAYER}.lora_A.weight": (3, 16, 1, 1)}, r"has only its down factor"),
        ({**GOOD, f"unet.{LAYER}.lora_B.weight": (17, 3, 1, 1)}, r"\[17, 3, 1, 1\].*the model's layer is \[16, 16, 1, 1\]"),
        ({f"unet.{LAYER}.weight": (16, 16)}, r"not a key of a known kind of LoRA"),
        ({"text_encoder_2.x.lora_A.weight": (3, 3), "text_encoder_2.x.lora_B.weight": (3, 3)}, r"text_encoder_2, which this model does not have"),
        ({"lora_unet_x.alpha": (1,)}, r"has no up factor"),
        ({}, r"holds no LoRA layer"),
    ],
)  # fmt: skip
def test_files_that_are_no_lora_of_this_model_are_refused(pipe, tmp_path, tensors, message):
    save_file({key: torch.ones(shape) for key, shape in tensors.items()}, tmp_path / "x.safetensors")
    with pytest.raises(PersresError, match=message):
        pipe.load_residual(tmp_path / "x.safetensors", subject="mug")


def test_invalid_prompts_and_calls_are_refused(pipe, tmp_path):
    path = write(pipe, tmp_path / "l.safetensors", ends=("proj_out",))
    with pytest.raises(PersresError, match=r"not a persres residual.*subject="):
        pipe.load_residual(write(pipe, tmp_path / "m.safetensors", ends=("proj_out",)))
    with pytest.raises(PersresError, match="subject is empty"):
        pipe.load_residual(path, subject=" ")
    pipe.load_residual(path, subject="mug")
    with pytest.raises(PersresError, match="subject 'mug' is not in the prompt 'a photo of a cat'; add it"):
        sample(pipe, "a photo of a cat", lag="auto")
    (tmp_path / "p.safetensors").write_bytes(b"PK\x03\x04" + bytes(40))
    with pytest.raises(PersresError, match="ZIP archive"):
        pipe.load_residual(tmp_path / "p.safetensors", subject="mug")


def test_the_command_line_draws_with_any_lora(pipe, tiny_pipeline, tmp_path, capsys):
    path = write(pipe, tmp_path / "l.safetensors", "kohya", ends=ATTENTION)
    call = ["generate", str(path), "--subject", "sks mug", "--prompt", "a photo of a {} on the beach", "--steps", "2"]
    assert main([*call, "--out", str(tmp_path / "out")]) == 1 and "give --model" in capsys.readouterr().err
    assert main([*call, "--model", str(tiny_pipeline), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    from PIL import Image

    (written,) = (tmp_path / "out").glob("*.png")
    metadata = json.loads(Image.open(written).text["persres"])
    assert metadata["prompt"] == TEXT and metadata["lag"] == "auto"
