"""LAG's controls mark the same area as LAG and know nothing of attention; shared masks come from the blocks that are named or trusted."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel

from persres.config.schema import SamplingConfig
from persres.errors import PersresError
from persres.sampling.lag import guidance_rule
from persres.sampling.mask_config import AUTO, PAPER, SHARPNESS, MaskConfig, confidence, mask_config_of
from persres.sampling.masks import CONTROLS, MASKS, central_disk, largest, median, otsu, quantile, soft, upper_half
from tests.residuals.test_residuals import inputs, random_bank
from tests.sampling.test_lag import TOKENS, lag_run
from tests.support.small_models import tiny_unet

SQUARE = (8, 8)


def draws(seed: int = 0):
    return lambda pixels: [torch.Generator().manual_seed(seed + pixels + i) for i in range(3)]


def test_upper_half_marks_exactly_half_even_with_ties():
    for values in (torch.zeros(2, 16), torch.arange(16.0).expand(2, -1), torch.randn(2, 17)):
        marked = upper_half(values)
        assert marked.sum(1).tolist() == [values.shape[1] // 2] * 2
    assert upper_half(torch.tensor([[3.0, 1.0, 2.0, 0.0]])).tolist() == [[1, 0, 1, 0]]
    assert largest(torch.tensor([[3.0, 1.0], [1.0, 2.0]]), torch.tensor([2, 1])).tolist() == [[1, 1], [0, 1]]


@pytest.mark.parametrize("side", [4, 8, 16])
def test_the_disk_has_lags_area_and_lies_in_the_middle(side):
    disk = central_disk(side * side).view(side, side)
    assert disk.sum() == side * side // 2
    assert disk[side // 2, side // 2] == 1 and disk[0, 0] == disk[0, -1] == disk[-1, 0] == disk[-1, -1] == 0


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("control", CONTROLS)
def test_each_control_has_the_masks_area_in_another_place(name, control):
    attention = torch.rand(3, 64, generator=torch.Generator().manual_seed(1))
    mask = MaskConfig(name, 0.3).mask(attention, SQUARE)
    other = MaskConfig(name, 0.3, control=control).mask(attention, SQUARE, draws())
    if control == "inverted":
        assert torch.equal(mask + other, torch.ones_like(mask))
        return
    assert other.sum(1).tolist() == mask.sum(1).round().tolist() and not torch.equal(other, mask)
    moved = MaskConfig(name, 0.3, control=control).mask(attention.flip(1), SQUARE, draws())
    assert torch.equal(other, moved), "the same wherever the attention lies"


def test_a_random_mask_depends_on_sample_and_seed():
    mask = median(torch.rand(3, 64))
    placed = CONTROLS["random"](mask, SQUARE, draws())
    assert not torch.equal(placed[0], placed[1])
    assert not torch.equal(placed, CONTROLS["random"](mask, SQUARE, draws(1))), "other seeds, another half"
    with pytest.raises(PersresError, match="random generators"):
        CONTROLS["random"](mask, SQUARE, None)


def best_cut(row: torch.Tensor) -> float:
    """Otsu by trying every threshold."""

    def within(threshold: float) -> float:
        parts = row[row <= threshold], row[row > threshold]
        return sum(float((part - part.mean()).square().sum()) for part in parts if len(part))

    return min(row[:-1].tolist() if len(row) > 1 else row.tolist(), key=within)


def test_otsu_equals_trying_every_threshold():
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        row = torch.cat([torch.rand(40, generator=draw), 1 + torch.rand(10, generator=draw) * (seed % 4)]).double()
        expected = row > best_cut(row.sort().values)
        assert torch.equal(otsu(row[None])[0].bool(), expected)
    assert not otsu(torch.ones(1, 9)).any(), "a flat map has found nothing"


def test_soft_rises_between_the_parts_means_and_agrees_with_otsu_halfway():
    attention = torch.cat([torch.rand(2, 48) * 0.2, 0.8 + torch.rand(2, 16) * 0.2], 1)
    ramp = soft(attention)
    assert ((ramp > 0.5) == otsu(attention).bool()).all() and ramp.min() + 0.01 > 0 and ramp.max() == 1
    assert ((ramp > 0) & (ramp < 1)).any()


def test_quantile_marks_its_area_to_the_pixel():
    attention = torch.rand(4, 64)
    for area in (0.1, 0.25, 0.5):
        marked = quantile(attention, area)
        assert marked.sum(1).tolist() == [round(area * 64)] * 4
        assert (attention[marked.bool()].min() >= attention[~marked.bool()].min()).all()
    assert torch.equal(quantile(attention, 0.5), median(attention))


def a_square(noise: float) -> torch.Tensor:
    maps = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(0)) * noise
    maps[:, 3:8, 9:14] += 1
    return maps


def test_confidence_knows_an_object_from_noise():
    clear, unsure = confidence(a_square(0.3)), confidence(a_square(30.0))
    assert (clear > 0.6).all() and (unsure < 0.15).all()
    assert not confidence(torch.ones(2, 4, 4)).any()
    scattered = a_square(0.0).flatten(1)[:, torch.randperm(256, generator=torch.Generator().manual_seed(0))]
    assert (confidence(scattered.view(2, 16, 16)) < 0.2).all(), "two values alone are no object: neighbours must agree"


def test_names_are_refused_and_lag_says_which_masks():
    with pytest.raises(PersresError, match="unknown mask 'nonsense'; use one of median"):
        MaskConfig("nonsense")
    with pytest.raises(PersresError, match="unknown mask_control"):
        MaskConfig(control="nonsense")
    assert (
        mask_config_of(True) == PAPER == MaskConfig()
        and mask_config_of("auto") == AUTO
        and mask_config_of(AUTO) is AUTO
    )
    with pytest.raises(PersresError, match="'auto'"):
        mask_config_of("yes")


def test_inverted_and_plain_masks_share_the_image():
    """LAG's output and its inverse add up to base + ours where one block stands alone; here: their masks do."""
    unet = tiny_unet()
    bank, (x, t, text) = random_bank(unet), inputs(4)
    _, masks = lag_run(unet, bank, x, t, text, guidance_rule(TOKENS, "mask"))
    rule = guidance_rule(TOKENS, "mask", MaskConfig(control="inverted"))
    _, inverse = lag_run(unet, bank, x, t, text, rule)
    first = next(iter(masks))
    assert torch.equal(masks[first] + inverse[first], torch.ones_like(masks[first]))


def blocks_of(unet) -> list[str]:
    return [path for path, m in unet.named_modules() if isinstance(m, Transformer2DModel)]


def test_shared_masks_come_from_the_named_block():
    unet = tiny_unet()
    blocks = blocks_of(unet)
    bank, (x, t, text) = random_bank(unet), inputs(4)
    _, block_masks = lag_run(unet, bank, x, t, text, guidance_rule(TOKENS, "mask"))
    rule = guidance_rule(TOKENS, "mask", MaskConfig(source_blocks=(blocks[0],)))
    _, shared = lag_run(unet, bank, x, t, text, rule)
    source = f"{blocks[0]}.proj_out"
    assert torch.equal(shared[source], block_masks[source])
    same = [path for path in block_masks if block_masks[path].shape == block_masks[source].shape]
    assert len(same) > 1 and all(torch.equal(shared[path], block_masks[source]) for path in same)
    coarse = next(path for path in block_masks if block_masks[path].shape != block_masks[source].shape)
    assert not torch.equal(shared[coarse], block_masks[coarse])


def test_blocks_before_the_source_use_the_step_before():
    unet = tiny_unet()
    blocks = blocks_of(unet)
    bank, (x, t, text) = random_bank(unet), inputs(4)
    last = [block for block in blocks if block.startswith("up_blocks")][-1]
    rule = guidance_rule(TOKENS, "mask", MaskConfig(source_blocks=(last,)))
    _, block_masks = lag_run(unet, bank, x, t, text, guidance_rule(TOKENS, "mask"))
    _, first = lag_run(unet, bank, x, t, text, rule)
    early, source = f"{blocks[0]}.proj_out", f"{last}.proj_out"
    assert torch.equal(first[early], block_masks[early]), "nothing is known yet: its own attention"
    _, second = lag_run(unet, bank, x, t, text, rule)
    assert torch.equal(second[early], first[source])


def test_the_confident_blend_is_the_weighted_mean_by_hand():
    unet = tiny_unet()
    bank, (x, t, text) = random_bank(unet), inputs(4)
    routing, rule = guidance_rule(TOKENS, "mask", MaskConfig("otsu", source_blocks="confidence_weighted"))
    for _ in range(2):
        _, masks = lag_run(unet, bank, x, t, text, (routing, rule))
    assert set(rule.newest) == set(blocks_of(unet)) == set(rule.confidences)
    shape, sample, concept_attention = (8, 8), 3, 1  # of the four samples the last two are listened to
    total, weights = torch.zeros(64), 0.0
    for maps in rule.newest.values():
        weight = float(confidence(maps)[concept_attention]) ** SHARPNESS
        size = torch.nn.functional.interpolate(maps[concept_attention][None, None], size=shape, mode="bilinear")[0, 0]
        total, weights = total + weight * (size / maps[concept_attention].mean()).flatten(), weights + weight
    last = [path for path, mask in masks.items() if mask.shape[1] == 64][-1]
    assert torch.equal(masks[last][sample], otsu((total / weights)[None])[0])
    assert torch.equal(rule.mask_at(shape)[0], masks[last]), "any other layer can ask for the mask at its size"


def test_smoothing_keeps_its_share_of_the_step_before():
    unet = tiny_unet()
    bank, (x, t, text) = random_bank(unet), inputs(4)
    _, plain = guidance_rule(TOKENS, "mask", MaskConfig(source_blocks="confidence_weighted"))
    routing, rule = guidance_rule(TOKENS, "mask", MaskConfig(source_blocks="confidence_weighted", smooth=0.75))
    lag_run(unet, bank, x, t, text, (routing, rule))
    previous = {block: maps.clone() for block, maps in rule.newest.items()}
    lag_run(unet, bank, x * 2, t, text, (routing, rule))
    lag_run(unet, bank, x * 2, t, text, (routing, plain))
    block = blocks_of(unet)[0]  # before any residual: its attention is the same in both
    torch.testing.assert_close(rule.newest[block], 0.75 * previous[block] + 0.25 * plain.newest[block])


def test_images_that_take_no_mask_take_the_whole_residual():
    unet = tiny_unet()
    bank, (x, t, text) = random_bank(unet), inputs(4)
    rule = guidance_rule(TOKENS, "mask", AUTO, unmasked=torch.tensor([True, False]))
    _, masks = lag_run(unet, bank, x, t, text, rule)
    for mask in masks.values():
        assert mask[[0, 2]].all() and not mask[[1, 3]].all()


def test_an_unknown_block_is_named_with_the_known_ones():
    unet = tiny_unet()
    bank, (x, t, text) = random_bank(unet), inputs(4)
    with pytest.raises(PersresError, match=r"no block up_blocks\.9.*it has .*mid_block"):
        lag_run(unet, bank, x, t, text, guidance_rule(TOKENS, "mask", MaskConfig(source_blocks=("up_blocks.9",))))


@pytest.mark.parametrize(
    "settings",
    [
        {"mask_control": "disk"},
        {"mask_blocks": ["mid_block.attentions.0"]},
        {"strength": 0.5},
        {"wrong_concept": True},
        {"variant": "ours", "lag": "auto", "mask": "otsu"},
        {"variant": "ours", "lag": True, "mask_area": 0.3},
        {"variant": "ours", "lag": True, "mask_when": "high_confidence"},
    ],
)
def test_controls_without_what_they_control_are_refused(settings):
    with pytest.raises(ValueError, match=r"need|no effect|confidence"):
        SamplingConfig(**settings)


def test_strength_scales_the_residual():
    unet = tiny_unet()
    bank = random_bank(unet)
    index = 0
    hidden = torch.randn(2, bank.targets[index].width, 3, 3)
    whole = bank.added(index, hidden, hidden * 0, torch.zeros(2, dtype=torch.long))
    half = bank.scaled(0.5).added(index, hidden, hidden * 0, torch.zeros(2, dtype=torch.long))
    assert torch.allclose(half, whole / 2)
    assert not bank.scaled(0).added(index, hidden, hidden * 0, torch.zeros(2, dtype=torch.long)).any()
