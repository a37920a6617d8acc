"""Localized attention-guided sampling against a slow, plain reading of the paper's equations 2 and 3."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel

from persres.errors import PersresError
from persres.residuals.bank import Routing, merged_weights, residual_hooks
from persres.sampling.lag import guidance_rule, lag_hooks, mean_masks
from persres.sampling.masks import median
from tests.residuals.test_residuals import inputs, random_bank, run
from tests.support.small_models import tiny_unet

TOKENS = torch.tensor([[[0, 0, 1.0, 1.0, 0, 0], [0, 1.0, 1.0, 0, 0, 0]]])  # one concept, two prompts


def lag_run(unet, bank, x, t, text, guidance, change_masks=None):
    """One forward pass [uncond; cond] under LAG as ``guidance_rule`` says; returns output and the masks in use."""
    (routing, rule), masks = guidance, {}
    with lag_hooks(unet, routing, rule), residual_hooks(unet, bank, routing):
        handles = []
        for path in [target.path for target in bank.targets]:

            def keep(module, args, path=path):
                if change_masks is not None:
                    routing.masks[path] = change_masks(routing.masks[path])
                masks[path] = routing.masks[path][0].clone()

            handles.append(unet.get_submodule(path).register_forward_pre_hook(keep))
        out = run(unet, x, t, text)
        for handle in handles:
            handle.remove()
    return out, masks


def plain_mask(layer, hidden, text, tokens):
    """Equation 2 and the median, one head, pixel and token at a time."""
    heads, pixels, length = layer.heads, hidden.shape[1], text.shape[1]
    query, key = layer.to_q(hidden), layer.to_k(text)
    width = query.shape[2] // heads
    summed = torch.zeros(len(hidden), pixels)
    for sample in range(len(hidden)):
        for head in range(heads):
            columns = slice(head * width, (head + 1) * width)
            for pixel in range(pixels):
                scores = [
                    float(query[sample, pixel, columns] @ key[sample, token, columns]) / math.sqrt(width)
                    for token in range(length)
                ]
                top = max(scores)
                total = sum(math.exp(s - top) for s in scores)
                share = sum(
                    math.exp(s - top) / total for s, wanted in zip(scores, tokens[sample], strict=True) if wanted
                )
                summed[sample, pixel] += share / heads
    middle = summed.sort(1).values[:, (pixels - 1) // 2]
    return summed, (summed > middle[:, None]).float()


def test_masks_equal_a_plain_reading_of_the_paper(unet):
    x, t, text = inputs(4)
    bank = random_bank(unet)
    seen = {}
    handles = []
    for path, module in unet.named_modules():
        if isinstance(module, Transformer2DModel):
            layer = module.transformer_blocks[0].attn2

            def keep(mod, args, kwargs, path=path, layer=layer):
                seen[f"{path}.proj_out"] = plain_mask(
                    layer, args[0], kwargs["encoder_hidden_states"], TOKENS[0].repeat(2, 1)
                )

            handles.append(layer.register_forward_pre_hook(keep, with_kwargs=True))
    _, masks = lag_run(unet, bank, x, t, text, guidance_rule(TOKENS, "mask"))
    assert set(masks) == set(seen) == {target.path for target in bank.targets}
    for path, mask in masks.items():
        summed, plain = seen[path]
        middle = summed.sort(1).values[:, (summed.shape[1] - 1) // 2]
        clear = ((summed - middle[:, None]).abs() > 1e-6)[2:]  # ties within rounding may fall either way
        assert clear.float().mean() > 0.9
        assert torch.equal(mask[2:][clear], plain[2:][clear])
        assert torch.equal(mask[:2], mask[2:]), "the unconditional branch takes the conditional one's mask"
        assert (mask.sum(1) == mask.shape[1] // 2).all(), "the median marks half of the pixels"


def test_lag_output_equals_equation_3_for_the_first_block(unet):
    """(1−M)⊗Wx + M⊗(W+ΔW)x, with W' formed and both convolutions run."""
    bank = random_bank(unet)
    x, t, text = inputs(4)
    target = bank.targets[0]
    layer = unet.get_submodule(target.path)
    caught = {}
    handle = layer.register_forward_hook(lambda module, args, output: caught.setdefault("x", args[0].clone()))
    run(unet, x, t, text)
    handle.remove()
    mask = median(torch.rand(4, 64)).view(4, 1, 8, 8)
    routing = Routing.everywhere(4)
    routing.masks[target.path] = mask.flatten(1)[None]
    with residual_hooks(unet, bank, routing), torch.no_grad():
        ours = layer(caught["x"])
    with torch.no_grad():
        f = layer(caught["x"])
        with merged_weights(unet, bank):
            f_prime = layer(caught["x"])
    torch.testing.assert_close(ours, (1 - mask) * f + mask * f_prime, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("linear", [False, True])
def test_all_ones_is_normal_sampling_and_all_zeros_is_the_base_model(linear):
    unet = tiny_unet(linear).requires_grad_(False)
    x, t, text = inputs(4)
    bank = random_bank(unet)
    rule = guidance_rule(TOKENS, "mask")
    ones, _ = lag_run(unet, bank, x, t, text, rule, torch.ones_like)
    zeros, _ = lag_run(unet, bank, x, t, text, rule, torch.zeros_like)
    real, _ = lag_run(unet, bank, x, t, text, rule)
    base = run(unet, x, t, text)
    with merged_weights(unet, bank):
        normal = run(unet, x, t, text)
    torch.testing.assert_close(ones, normal, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(zeros, base, atol=1e-5, rtol=1e-4)
    assert (real - base).abs().max() > 1e-2
    assert (real - normal).abs().max() > 1e-2


def test_rules_for_the_unconditional_branch(unet):
    x, t, text = inputs(4)
    bank = random_bank(unet)
    base = run(unet, x, t, text)
    with merged_weights(unet, bank):
        normal = run(unet, x, t, text)
    full, masks = lag_run(unet, bank, x, t, text, guidance_rule(TOKENS, "full"))
    torch.testing.assert_close(full[:2], normal[:2], atol=1e-5, rtol=1e-4)
    assert all(m[:2].all() and not m[2:].all() for m in masks.values())
    plain, _ = lag_run(unet, bank, x, t, text, guidance_rule(TOKENS, "base"))
    torch.testing.assert_close(plain[:2], base[:2], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(plain[2:], full[2:], atol=1e-5, rtol=1e-4)
    with pytest.raises(PersresError, match="uncond_rule"):
        guidance_rule(TOKENS, "nonsense")


def test_lag_leaves_no_trace_even_after_an_error(unet):
    processors = {path: module.processor for path, module in unet.named_modules() if hasattr(module, "processor")}
    with pytest.raises(RuntimeError), lag_hooks(unet, *guidance_rule(TOKENS, "mask")):
        raise RuntimeError("stop")
    assert processors == {
        path: module.processor for path, module in unet.named_modules() if hasattr(module, "processor")
    }
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in unet.modules())


def test_several_transformer_layers_share_one_mask():
    """SDXL: one output projection behind several cross-attentions; their maps are summed."""
    unet = tiny_unet(True, layers=2).requires_grad_(False)
    x, t, text = inputs(4)
    _, masks = lag_run(unet, random_bank(unet), x, t, text, guidance_rule(TOKENS, "mask"))
    assert all((m.sum(1) == m.shape[1] // 2).all() for m in masks.values())


def test_recorded_masks_average_over_blocks_and_steps(unet):
    x, t, text = inputs(4)
    guidance = guidance_rule(TOKENS, "mask")
    guidance[1].record = True
    bank = random_bank(unet)
    for _ in range(2):
        _, masks = lag_run(unet, bank, x, t, text, guidance)
    mean = mean_masks(guidance[1], (8, 8))[:, 0]
    fine = [m[2:].view(2, 8, 8) for m in masks.values() if m.shape[1] == 64]
    coarse = [
        m[2:].view(2, 4, 4).repeat_interleave(2, 1).repeat_interleave(2, 2) for m in masks.values() if m.shape[1] == 16
    ]
    torch.testing.assert_close(mean, torch.stack(fine + coarse).mean(0))


def test_median_of_an_even_count_marks_exactly_half():
    values = torch.rand(5, 256)
    assert (median(values).sum(1) == 128).all()
    assert not median(torch.ones(1, 4)).any(), "nothing stands above the median of equal values"
