"""The algebra of residuals (paper 3.2) on small and on SD-1.4-shaped models."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel

from persres.errors import PersresError
from persres.residuals.bank import ResidualBank, Routing, merged_weights, residual_hooks
from persres.residuals.file import load_bank, load_residual, save_residual
from persres.residuals.lora import Delta
from persres.residuals.targets import find_targets, rank_of
from persres.seeding import generator
from tests.support.residual_files import header_info
from tests.support.small_models import tiny_unet


def inputs(n: int = 2, seed: int = 0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, 8, 8, generator=draw), torch.tensor([500] * n), torch.randn(n, 6, 24, generator=draw)


def run(unet, x, t, text):
    with torch.no_grad():
        return unet(x, t, encoder_hidden_states=text).sample


def random_bank(unet, concepts: int = 1, gain: float = 0.5) -> ResidualBank:
    bank = ResidualBank(find_targets(unet), concepts)
    for concept in range(concepts):
        bank.initialise(concept, "scaled_normal", gain, generator("test", concept))
    return bank.requires_grad_(False)


def sd14_unet() -> UNet2DConditionModel:
    """Stable Diffusion v1.4's denoiser as its config.json describes it, on the meta device."""
    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(320, 640, 1280, 1280),
            layers_per_block=2,
            cross_attention_dim=768,
            attention_head_dim=8,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        )


def test_sd14_has_16_residuals_of_the_papers_ranks():
    targets = find_targets(sd14_unet())
    assert len(targets) == 16
    assert all(t.conv for t in targets)
    assert {(t.width, t.rank) for t in targets} == {(320, 16), (640, 32), (1280, 64)}
    assert [t.width for t in targets].count(1280) == 6
    with torch.device("meta"):
        bank = ResidualBank(targets)
    assert bank.count() == 1_239_040
    assert sum(p.numel() for p in bank.parameters()) == 1_239_040


@pytest.mark.parametrize(
    ("width", "ratio", "fixed", "rank"),
    [(320, 0.05, None, 16), (8, 0.05, None, 1), (32, 0.05, None, 2), (16, 0.05, 64, 16)],
)
def test_rank_rule(width, ratio, fixed, rank):
    assert rank_of(width, ratio, fixed) == rank


def test_the_default_ratio_is_the_papers():
    assert [rank_of(width) for width in (320, 640, 1280)] == [16, 32, 64]


LAYOUTS = [torch.channels_last, torch.contiguous_format]  # as the stages load a model on the CPU, and on a GPU


@pytest.mark.parametrize("layout", LAYOUTS)
def test_zero_residual_is_the_base_model_exactly(unet, layout):
    unet = unet.to(memory_format=layout)
    x, t, text = inputs()
    bank = ResidualBank(find_targets(unet)).requires_grad_(False)
    with residual_hooks(unet, bank, Routing.everywhere(2)):
        hooked = run(unet, x, t, text)
    assert torch.equal(hooked, run(unet, x, t, text))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("linear", [False, True])
def test_hooks_equal_merged_weights_and_leave_no_trace(linear, layout):
    unet = tiny_unet(linear).requires_grad_(False).to(memory_format=layout)
    x, t, text = inputs()
    before, weights = run(unet, x, t, text), {k: v.clone() for k, v in unet.state_dict().items()}
    bank = random_bank(unet)
    with residual_hooks(unet, bank, Routing.everywhere(2)):
        hooked = run(unet, x, t, text)
    with merged_weights(unet, bank):
        fused = run(unet, x, t, text)
    assert (hooked - before).abs().max() > 1e-2, "the residual must do something"
    torch.testing.assert_close(hooked, fused, atol=1e-5, rtol=1e-4)
    assert torch.equal(run(unet, x, t, text), before)
    assert all(torch.equal(v, weights[k]) for k, v in unet.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in unet.modules())


def test_merging_twice_in_turn_changes_nothing_after(unet):
    pointers = {t.path: unet.get_submodule(t.path).weight.data_ptr() for t in find_targets(unet)}
    for _ in range(2):
        with merged_weights(unet, random_bank(unet)):
            pass
    assert pointers == {t.path: unet.get_submodule(t.path).weight.data_ptr() for t in find_targets(unet)}


def test_a_batch_may_mix_concepts_and_the_base_model(unet):
    x, t, text = inputs(3)
    bank = random_bank(unet, concepts=2)
    routing = Routing(torch.tensor([[1, 0, 0]]), torch.tensor([1.0, 1.0, 0.0]))
    with residual_hooks(unet, bank, routing):
        mixed = run(unet, x, t, text)
    for sample, concept in ((0, 1), (1, 0)):
        with merged_weights(unet, bank, concept):
            alone = run(unet, x[sample : sample + 1], t[:1], text[sample : sample + 1])
        torch.testing.assert_close(mixed[sample : sample + 1], alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mixed[2:], run(unet, x[2:], t[:1], text[2:]), atol=1e-5, rtol=1e-4)


def test_relative_norms_equal_the_formed_product(unet):
    bank = random_bank(unet)
    norms = bank.relative_norms(unet)
    for target, up, down in zip(bank.targets, bank.up, bank.down, strict=True):
        weight = unet.get_submodule(target.path).weight
        assert norms[target.path] == pytest.approx(float((up[0] @ down[0]).norm() / weight.norm()), rel=1e-4)


@pytest.mark.parametrize(("kind", "low", "high"), [("scaled_normal", 0.005, 0.02), ("lora", 0.0, 0.0)])
def test_init_scale(kind, low, high):
    unet = sd14_unet()
    target = next(t for t in find_targets(unet) if t.width == 640)
    bank = ResidualBank([target]).initialise(0, kind, 0.01, generator("init"))
    x = torch.randn(1, 640, 4, 4, generator=generator("x"))
    with torch.no_grad():
        size = float(bank.added(0, x, x * 0, torch.zeros(1, dtype=torch.long)).std() / x.std())
    assert low <= size <= high


def test_file_round_trip_and_wrong_architecture(unet, tmp_path):
    bank = random_bank(unet)
    path = tmp_path / "residual.safetensors"
    save_residual(path, bank.deltas(), header_info(concept="mug"))
    residual = load_residual(path)
    assert residual.header.concept == "mug"
    back = residual.bank(unet)
    assert all(torch.equal(a, b) for a, b in zip(bank.parameters(), back.parameters(), strict=True))
    other = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 32),
        layers_per_block=1,
        cross_attention_dim=24,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=8,
    )
    with pytest.raises(PersresError, match="another architecture"):
        residual.bank(other)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", None])
def test_a_broken_or_missing_residual_is_one_clear_error(tmp_path, content):
    path = tmp_path / "x.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PersresError, match=r"x\.safetensors"):
        load_residual(path)


@pytest.mark.parametrize("linear", [False, True])
def test_diffusers_loads_the_file_as_a_lora(tiny_pipeline, tmp_path, linear):
    """What an artist does: load_lora_weights on the plain pipeline gives what ours gives, mixed ranks included."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline, safety_checker=None)
    if linear:
        pipe.unet = tiny_unet(True)
    targets = find_targets(pipe.unet, rank_ratio=0.15)
    assert len({t.rank for t in targets}) > 1, "ranks must be mixed for this test to mean anything"
    bank = ResidualBank(targets).initialise(0, "scaled_normal", 0.5, generator("lora")).requires_grad_(False)
    x, t, text = inputs()
    with merged_weights(pipe.unet, bank):
        ours = run(pipe.unet, x, t, text)
    save_residual(tmp_path / "r.safetensors", bank.deltas(), {})
    base = run(pipe.unet, x, t, text)
    pipe.load_lora_weights(tmp_path, weight_name="r.safetensors")
    theirs = run(pipe.unet, x, t, text)
    assert (ours - base).abs().max() > 1e-2
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-4)


def test_the_same_residual_is_the_same_bytes(unet, tmp_path):
    """The library alone orders metadata differently from one run to the next."""
    bank = random_bank(unet)
    info = header_info(prompt='a ‹V*› "mug"')
    for number in range(12):
        save_residual(tmp_path / f"{number}.safetensors", bank.deltas(), info)
    assert len({(tmp_path / f"{number}.safetensors").read_bytes() for number in range(12)}) == 1
    residual = load_residual(tmp_path / "0.safetensors")
    assert residual.header.info["spec"] == info["spec"]
    assert torch.equal(residual.layers[bank.targets[0].path].up, bank.up[0][0])


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("target", ["proj_in", "attn_kv"])
def test_ablation_targets_merge_and_come_back_from_a_file(target, linear, tmp_path):
    """On other layers than proj_out: hooks equal merged weights, zero changes nothing, the file gives the same output."""
    unet = tiny_unet(linear).requires_grad_(False)
    targets, (x, t, text) = find_targets(unet, target=target), inputs()
    base = run(unet, x, t, text)
    with residual_hooks(unet, ResidualBank(targets), Routing.everywhere(2)):
        assert torch.equal(run(unet, x, t, text), base)
    bank = ResidualBank(targets).initialise(0, "scaled_normal", 0.5, generator("place")).requires_grad_(False)
    with residual_hooks(unet, bank, Routing.everywhere(2)):
        hooked = run(unet, x, t, text)
    with merged_weights(unet, bank):
        assert torch.allclose(run(unet, x, t, text), hooked, atol=1e-5)
    assert (hooked - base).abs().max() > 1e-3
    save_residual(tmp_path / "r.safetensors", bank.deltas(), header_info(settings={"target": target}))
    with residual_hooks(unet, load_bank(unet, tmp_path / "r.safetensors"), Routing.everywhere(2)):
        assert torch.allclose(run(unet, x, t, text), hooked, atol=1e-6)


def test_ablation_targets_on_stable_diffusions_shapes():
    counts = {}
    for target in ("proj_out", "proj_in", "attn_kv"):
        with torch.device("meta"):
            counts[target] = ResidualBank(find_targets(sd14_unet(), target=target)).count()
    assert counts == {
        "proj_out": 1_239_040,
        "proj_in": 1_239_040,
        "attn_kv": 2 * sum(n * r * (m + 768) for n, m, r in ((5, 320, 16), (5, 640, 32), (6, 1280, 64))),
    }


def test_an_unknown_target_is_refused():
    with pytest.raises(PersresError, match="unknown target 'bias'; one of proj_out, proj_in, attn_kv"):
        find_targets(tiny_unet(), target="bias")


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("concepts", [1, 3])
def test_both_memory_layouts_give_the_same_sums(unet, concepts, gated):
    """Pixels are rows of channels-last images and columns of channels-first ones; gradients agree too."""
    bank = ResidualBank(find_targets(unet), concepts)
    for concept in range(concepts):
        bank.initialise(concept, "normal", 0.3, torch.Generator().manual_seed(concept))
    width = bank.targets[0].width
    x, output = torch.randn(4, width, 6, 5), torch.randn(4, width, 6, 5)
    rows, gate = torch.tensor([0, concepts - 1, 0, concepts // 2]), torch.rand(4, 30) if gated else None
    results, gradients = [], []
    for layout in LAYOUTS:
        tensors = [v.to(memory_format=layout) for v in (x, output)]
        results.append(bank.added(0, *tensors, rows, gate))
        assert results[-1].is_contiguous(memory_format=layout), "the layout of the output is the input's"
        gradients.append(torch.autograd.grad(results[-1].square().sum(), [bank.up[0], bank.down[0]]))
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("strength", [0.0, 0.5, -2.0])
def test_strength_scales_every_delta(unet, strength):
    bank = random_bank(unet, concepts=2)
    before = [bank.deltas(concept) for concept in range(2)]
    assert bank.scaled(strength) is bank
    for concept in range(2):
        for path, delta in bank.deltas(concept).items():
            torch.testing.assert_close(delta.matrix(), strength * before[concept][path].matrix())


def test_ranks_come_from_the_file(unet, tmp_path):
    """Whatever ranks the header's settings would give."""
    bank = ResidualBank(find_targets(unet, rank=5)).initialise(0, "normal", 0.3, generator("five"))
    save_residual(tmp_path / "r.safetensors", bank.deltas(), header_info())
    assert {target.rank for target in load_bank(unet, tmp_path / "r.safetensors").targets} == {5}


def test_a_layer_of_another_width_or_left_out_is_refused(unet):
    deltas = random_bank(unet).deltas()
    path = next(iter(deltas))
    with pytest.raises(PersresError, match=rf"another architecture: the file has no layer '{path}'"):
        ResidualBank.from_deltas(unet, {p: d for p, d in deltas.items() if p != path})
    with pytest.raises(PersresError, match="another architecture: the model has no layer 'x'"):
        ResidualBank.from_deltas(unet, deltas | {"x": deltas[path]})
    wide = Delta(torch.ones(99, 1), torch.ones(1, 99, 1, 1))
    with pytest.raises(PersresError, match=rf"{path} is \[99, 99\], the model has"):
        ResidualBank.from_deltas(unet, deltas | {path: wide})
