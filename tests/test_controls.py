"""LAG's controls mark the same area as LAG, know nothing of attention, and shared masks come from the named block."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny_unet
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from test_lag import TOKENS, lag_run
from test_residuals import inputs, random_bank

from persres.config import Drawing
from persres.errors import PersresError
from persres.sampling.lag import guidance_rule
from persres.sampling.masks import MASKS, central_disk, mask_named, median, upper_half


def draws(seed: int = 0):
    return lambda pixels: [torch.Generator().manual_seed(seed + pixels + i) for i in range(3)]


def test_upper_half_marks_exactly_half_even_with_ties():
    for values in (torch.zeros(2, 16), torch.arange(16.0).expand(2, -1), torch.randn(2, 17)):
        marked = upper_half(values)
        assert marked.sum(1).tolist() == [values.shape[1] // 2] * 2
    assert upper_half(torch.tensor([[3.0, 1.0, 2.0, 0.0]])).tolist() == [[1, 0, 1, 0]]


@pytest.mark.parametrize("side", [4, 8, 16])
def test_the_disk_has_lags_area_and_lies_in_the_middle(side):
    disk = central_disk(side * side).view(side, side)
    assert disk.sum() == side * side // 2
    assert disk[side // 2, side // 2] == 1 and disk[0, 0] == disk[0, -1] == disk[-1, 0] == disk[-1, -1] == 0
    with pytest.raises(PersresError, match="square"):
        central_disk(12)


def test_each_control_has_lags_area_and_its_own_place():
    attention = torch.rand(3, 64)
    lag = median(attention)
    masks = {name: mask_named(name)(attention, draws()) for name in MASKS}
    assert torch.equal(masks["median"], lag) and torch.equal(masks["inverted"], 1 - lag)
    for name in ("disk", "random"):
        again = mask_named(name)(torch.rand(3, 64), draws())
        assert torch.equal(masks[name], again), "the same at every step, whatever the attention"
        assert masks[name].sum(1).tolist() == lag.sum(1).tolist()
        assert not torch.equal(masks[name], lag)
    assert not torch.equal(masks["random"][0], masks["random"][1])
    assert not torch.equal(masks["random"], mask_named("random")(attention, draws(1))), "other seeds, another half"
    with pytest.raises(PersresError, match="unknown mask"):
        mask_named("nonsense")


def test_inverted_and_plain_masks_share_the_picture():
    """LAG's output and its inverse add up to base + ours where one block stands alone; here: their masks do."""
    unet = tiny_unet()
    bank, (x, t, text) = random_bank(unet), inputs(4)
    _, masks = lag_run(unet, bank, x, t, text, guidance_rule(TOKENS, "mask"))
    rule = guidance_rule(TOKENS, "mask", mask_named("inverted"))
    _, inverse = lag_run(unet, bank, x, t, text, rule)
    first = next(iter(masks))
    assert torch.equal(masks[first] + inverse[first], torch.ones_like(masks[first]))


def test_shared_masks_come_from_the_named_block():
    unet = tiny_unet()
    blocks = [path for path, m in unet.named_modules() if isinstance(m, Transformer2DModel)]
    bank, (x, t, text) = random_bank(unet), inputs(4)
    _, own = lag_run(unet, bank, x, t, text, guidance_rule(TOKENS, "mask"))
    rule = guidance_rule(TOKENS, "mask", sources=(blocks[0],))
    _, shared = lag_run(unet, bank, x, t, text, rule)
    source = f"{blocks[0]}.proj_out"
    assert torch.equal(shared[source], own[source])
    same = [path for path in own if own[path].shape == own[source].shape]
    assert len(same) > 1 and all(torch.equal(shared[path], own[source]) for path in same)
    coarse = next(path for path in own if own[path].shape != own[source].shape)
    assert not torch.equal(shared[coarse], own[coarse])


def test_blocks_before_the_source_use_the_step_before():
    unet = tiny_unet()
    blocks = [path for path, m in unet.named_modules() if isinstance(m, Transformer2DModel)]
    bank, (x, t, text) = random_bank(unet), inputs(4)
    last = [block for block in blocks if block.startswith("up_blocks")][-1]
    rule = guidance_rule(TOKENS, "mask", sources=(last,))
    _, own = lag_run(unet, bank, x, t, text, guidance_rule(TOKENS, "mask"))
    _, first = lag_run(unet, bank, x, t, text, rule)
    early, source = f"{blocks[0]}.proj_out", f"{last}.proj_out"
    assert torch.equal(first[early], own[early]), "nothing is known yet: its own attention"
    _, second = lag_run(unet, bank, x, t, text, rule)
    assert torch.equal(second[early], first[source])


def test_an_unknown_block_is_named_with_the_known_ones():
    unet = tiny_unet()
    bank, (x, t, text) = random_bank(unet), inputs(4)
    with pytest.raises(PersresError, match=r"no block up_blocks\.9.*it has .*mid_block"):
        lag_run(unet, bank, x, t, text, guidance_rule(TOKENS, "mask", sources=("up_blocks.9",)))


@pytest.mark.parametrize(
    "settings",
    [{"mask": "disk"}, {"mask_blocks": ["mid_block.attentions.0"]}, {"strength": 0.5}, {"other_concept": True}],
)
def test_controls_without_what_they_control_are_refused(settings):
    with pytest.raises(ValueError, match=r"need|no effect"):
        Drawing(**settings)


def test_strength_scales_the_residual():
    unet = tiny_unet()
    bank = random_bank(unet)
    index = 0
    hidden = torch.randn(2, bank.targets[index].width, 3, 3)
    whole = bank.product(index, hidden, torch.zeros(2, dtype=torch.long))
    half = bank.scaled(0.5).product(index, hidden, torch.zeros(2, dtype=torch.long))
    assert torch.allclose(half, whole / 2)
    assert not bank.scaled(0).product(index, hidden, torch.zeros(2, dtype=torch.long)).any()
