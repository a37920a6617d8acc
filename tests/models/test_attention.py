"""The attention of LAG and the samplers, against diffusers' own and against softmax written out."""

from __future__ import annotations

import pytest
import torch

from persres.models.attention import CachedTextAttnProcessor, cached_text_kv, is_plain, token_shares
from persres.residuals.bank import ResidualBank, Routing, residual_hooks
from persres.residuals.targets import find_targets
from persres.seeding import generator
from tests.residuals.test_residuals import inputs, run
from tests.support.small_models import tiny_unet


def crossings(unet) -> list:
    return [module for name, module in unet.named_modules() if name.endswith("attn2")]


@pytest.mark.parametrize("biased", [False, True])
def test_shares_are_columns_of_the_softmax(biased):
    draw = torch.Generator().manual_seed(0)
    query, key = torch.randn(3, 4, 50, 8, generator=draw), torch.randn(3, 4, 12, 8, generator=draw)
    marks = (torch.rand(3, 2, 12, generator=draw) > 0.6).float()
    bias = torch.randn(3, 1, 12, generator=draw) if biased else None
    scores = query @ key.mT * 0.3 + (0 if bias is None else bias[:, None])
    expected = torch.einsum("nhpl,nml->nhmp", scores.softmax(-1), marks).mean(1)
    shares = token_shares(query, key, marks, 0.3, bias)
    torch.testing.assert_close(shares, expected, atol=1e-6, rtol=1e-5)
    assert (
        shares.dtype == torch.float32
        and token_shares(query.bfloat16(), key.bfloat16(), marks, 0.3).dtype == torch.float32
    )


def test_more_marks_than_a_head_is_wide():
    query, key, marks = torch.randn(1, 1, 5, 2), torch.randn(1, 1, 7, 2), torch.eye(7)[None, :3]
    expected = (query @ key.mT).softmax(-1)[0, 0, :, :3].T
    torch.testing.assert_close(token_shares(query, key, marks, 1.0)[0], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("linear", [False, True])
def test_a_cached_text_changes_nothing(linear):
    unet = tiny_unet(linear)
    x, t, text = inputs()
    expected, before = run(unet, x, t, text), [layer.processor for layer in crossings(unet)]
    queries = []
    handles = [layer.to_q.register_forward_pre_hook(lambda *_: queries.append(1)) for layer in crossings(unet)]
    with cached_text_kv(unet):
        first = run(unet, x, t, text)
        made = [layer.processor.cache.made for layer in crossings(unet)]
        second = run(unet, x, t, text)
        assert all(layer.processor.cache.made is one for layer, one in zip(crossings(unet), made, strict=True)), (
            "made once"
        )
        other = run(unet, x, t, text * 2)
    torch.testing.assert_close(first, expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(first, second)
    torch.testing.assert_close(other, run(unet, x, t, text * 2), atol=1e-5, rtol=1e-4)
    assert [layer.processor for layer in crossings(unet)] == before and queries
    for handle in handles:
        handle.remove()


def test_trained_keys_are_not_cached():
    """The ablation attn_kv puts residuals on the very layers whose output would be kept."""
    unet = tiny_unet().requires_grad_(False)
    x, t, text = inputs()
    bank = ResidualBank(find_targets(unet, target="attn_kv")).initialise(0, "scaled_normal", 0.5, generator("kv"))
    bank.requires_grad_(False)
    with cached_text_kv(unet), torch.no_grad():
        run(unet, x, t, text)  # kept, and not for whoever listens later
        with residual_hooks(unet, bank, Routing.everywhere(2)):
            first = run(unet, x, t, text)
    with cached_text_kv(unet), residual_hooks(unet, bank, Routing.everywhere(2)), torch.no_grad():
        before = run(unet, x, t, text)
        bank.scaled(3.0)
        assert torch.equal(first, before) and not torch.equal(before, run(unet, x, t, text))
    with residual_hooks(unet, bank, Routing.everywhere(2)), cached_text_kv(unet), torch.no_grad():
        changed = run(unet, x, t, text)
    with residual_hooks(unet, bank, Routing.everywhere(2)), torch.no_grad():
        torch.testing.assert_close(changed, run(unet, x, t, text), atol=1e-5, rtol=1e-4)


def test_another_processor_and_another_attention_are_left_alone():
    unet = tiny_unet()
    plain, strange = crossings(unet)[:2]
    processor = CachedTextAttnProcessor()
    plain.set_processor(processor)
    strange.norm_q = torch.nn.LayerNorm(4)
    was = strange.processor
    assert is_plain(plain) and not is_plain(strange)
    with cached_text_kv(unet):
        assert plain.processor is processor and strange.processor is was
