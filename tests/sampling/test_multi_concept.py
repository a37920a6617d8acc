"""Several concepts in one image: masks do not overlap, residuals stay inside them, prompts name every concept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from persres.errors import PersresError
from persres.prompts import fill_each, numbered
from persres.residuals.bank import ResidualBank, Routing, residual_hooks, stack_banks
from persres.residuals.targets import find_targets
from persres.sampling.lag import guidance_rule, lag_hooks
from persres.sampling.mask_config import AUTO, PAPER, MaskConfig
from persres.sampling.multi_concept import SPLITS, exclusive
from persres.seeding import generator
from tests.residuals.test_residuals import inputs, random_bank, run
from tests.support.small_models import tiny_unet

TOKENS = torch.zeros(3, 2, 6)  # three concepts, two prompts: their V* and class
for concept, places in enumerate(((1, 2), (3, 4), (4, 5))):
    TOKENS[concept][:, list(places)] = 1.0


def banks(unet, count: int) -> list[ResidualBank]:
    targets = find_targets(unet, 0.4)
    return [
        ResidualBank(targets).initialise(0, "scaled_normal", 2.0, generator("several", k)).requires_grad_(False)
        for k in range(count)
    ]


def lag_pass(unet, bank, tokens, rule="mask", mask_config=AUTO, split=exclusive, change=None, rows=None):
    """One guided pass of two samples; returns its output and the masks [K, 4, pixels] by layer."""
    x, t, text = inputs(4)
    routing, mask_rule = guidance_rule(tokens, rule, mask_config, split=split)
    if rows is not None:
        routing.rows = rows.repeat(1, 2)
    seen = {}
    with lag_hooks(unet, routing, mask_rule), residual_hooks(unet, bank, routing):
        for path in [target.path for target in bank.targets]:

            def keep(module, args, path=path):
                if change is not None:
                    routing.masks[path] = change(routing.masks[path])
                seen[path] = routing.masks[path].clone()

            unet.get_submodule(path).register_forward_pre_hook(keep)
        return run(unet, x, t, text), seen


@pytest.fixture
def fresh():
    """U-Nets of the same weights, without the hooks of a run before."""
    return lambda: tiny_unet().requires_grad_(False)


@pytest.mark.parametrize(
    "mask_config",
    [AUTO, PAPER, MaskConfig(threshold="otsu"), MaskConfig(threshold="soft", source_blocks="confidence_weighted")],
)
def test_no_pixel_is_two_concepts_and_branches_share_their_masks(fresh, mask_config):
    _, seen = lag_pass(fresh(), stack_banks(banks(fresh(), 3)), TOKENS, mask_config=mask_config)
    assert len(seen) > 2
    for path, masks in seen.items():
        assert masks.sum(0).max() <= 1, path
        assert ((masks > 0).sum(0) <= 1).all(), path
        assert torch.equal(masks[:, :2], masks[:, 2:]), path
    assert any((masks.sum(2) > 0).all(1).sum() > 1 for masks in seen.values()), "more than one concept has a place"


def test_another_order_of_the_concepts_permutes_their_masks_and_draws_the_same(fresh):
    order, whole = [2, 0, 1], banks(fresh(), 3)
    first, masks = lag_pass(fresh(), stack_banks(whole), TOKENS)
    second, theirs = lag_pass(fresh(), stack_banks([whole[k] for k in order]), TOKENS[order])
    for path in masks:
        assert torch.equal(masks[path][order], theirs[path])
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)


def test_no_mask_is_the_base_model_and_full_masks_are_the_sum_of_the_residuals(fresh):
    x, t, text = inputs(4)
    parts = banks(fresh(), 2)
    base = run(fresh(), x, t, text)
    none, _ = lag_pass(fresh(), stack_banks(parts), TOKENS[:2], change=torch.zeros_like)
    full, _ = lag_pass(fresh(), stack_banks(parts), TOKENS[:2], change=torch.ones_like)
    added = fresh()
    for i, target in enumerate(parts[0].targets):
        weight = added.get_submodule(target.path).weight
        weight += sum(part.up[i][0] @ part.down[i][0] for part in parts).view_as(weight)
    torch.testing.assert_close(none, base, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(full, run(added, x, t, text), atol=1e-4, rtol=1e-3)
    assert (full - base).abs().max() > 1e-2


def test_a_residual_acts_inside_its_mask_only(fresh):
    """The first block, whose input no residual has touched: other factors for concept 1 change nothing outside its mask."""
    unet, parts = fresh(), banks(fresh(), 3)
    path, caught = parts[0].targets[0].path, []
    unet.get_submodule(path).register_forward_hook(lambda m, a, out: caught.append(out.clone()))
    _, seen = lag_pass(unet, stack_banks(parts[:2]), TOKENS[:2])
    other = fresh()
    other.get_submodule(path).register_forward_hook(lambda m, a, out: caught.append(out.clone()))
    lag_pass(other, stack_banks([parts[0], parts[2]]), TOKENS[:2])
    # forward hooks run in the order of their registration: these saw the layer before the residuals did
    assert torch.equal(caught[0], caught[1])
    masks = seen[path]
    routing = replace(Routing.everywhere(4, concepts=2), masks={path: masks})
    result = []
    for pair in (parts[:2], [parts[0], parts[2]]):
        layer = fresh()
        with residual_hooks(layer, stack_banks(list(pair)), routing):
            module = layer.get_submodule(path)
            result.append(module(torch.ones(4, module.weight.shape[1], 8, 8)))
    changed = (result[0] - result[1]).abs().amax(1).flatten(1) > 1e-6
    assert changed.any() and not changed[masks[1] == 0].any()


def test_each_sample_takes_the_residuals_of_its_concepts(fresh):
    """A batch of two pairs out of four concepts equals each pair alone."""
    parts = banks(fresh(), 4)
    rows = torch.tensor([[0, 3], [2, 1]])
    both, _ = lag_pass(fresh(), stack_banks(parts), TOKENS[:2], rows=rows)
    for i in range(2):
        alone, _ = lag_pass(fresh(), stack_banks([parts[rows[0, i]], parts[rows[1, i]]]), TOKENS[:2])
        torch.testing.assert_close(both[[i, 2 + i]], alone[[i, 2 + i]], atol=1e-5, rtol=1e-4)


def test_the_highest_map_takes_an_overlap_however_loud_it_is():
    """Concept 1's map is ten times louder all over; where both masks lie, the one that stands higher over its own parts wins."""
    maps = torch.tensor([[[0.0, 1.0, 3.0, 0.0, 0.0, 0.0]], [[0.0, 0.0, 10.0, 30.0, 0.0, 0.0]]])
    masks = torch.tensor([[[0.0, 1, 1, 0, 0, 0]], [[0.0, 0, 1, 1, 0, 0]]])
    result = exclusive(maps, masks, (1, 6))
    assert result[:, 0].tolist() == [[0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0]]
    assert torch.equal(exclusive(maps * torch.tensor([7.0, 0.1]).view(2, 1, 1), masks, (1, 6)), result)


def test_controls_split_as_they_say():
    maps, masks = torch.rand(2, 3, 32), (torch.rand(2, 3, 32) > 0.5).float()
    left, right = SPLITS["halves"](maps, masks, (4, 8)).unflatten(2, (4, 8))
    assert left[..., :4].min() == 1 and left[..., 4:].max() == 0 and torch.equal(left + right, torch.ones(3, 4, 8))
    back = SPLITS["halves_back"](maps, masks, (4, 8))
    assert torch.equal(back[0].unflatten(1, (4, 8)), right)
    ours = exclusive(maps, masks, (4, 8))
    assert torch.equal(SPLITS["swapped"](maps, masks, (4, 8)), ours.flip(0)) and not torch.equal(ours, ours.flip(0))
    assert torch.equal(SPLITS["shared"](maps, masks, (4, 8))[1], masks.amax(0))


def test_banks_of_other_ranks_stack_and_of_other_layers_do_not(unet):
    low, high = (
        ResidualBank(find_targets(unet, rank=r)).initialise(0, "normal", 0.3, generator("rank", r)) for r in (2, 5)
    )
    whole = stack_banks([low, high])
    x = torch.randn(2, whole.targets[0].width_in, 4, 4)
    for k, bank in enumerate((low, high)):
        result = whole.added(0, x, x * 0, torch.full((2,), k))
        torch.testing.assert_close(
            result, bank.added(0, x, x * 0, torch.zeros(2, dtype=torch.long)), atol=1e-5, rtol=1e-4
        )
    with pytest.raises(PersresError, match="different layers"):
        stack_banks([low, ResidualBank(find_targets(unet, target="proj_in"))])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tokens": torch.zeros(5, 1, 6)}, "5 concepts"),
        ({"uncond_rule": "none"}, "uncond_rule"),
        ({"mask_config": MaskConfig(policy="scenes")}, "mask_when"),
    ],
)
def test_what_is_no_rule_is_refused(change, says):
    with pytest.raises(PersresError, match=says):
        guidance_rule(**({"tokens": TOKENS} | change))


def test_prompts_name_every_concept():
    phrases = {"my_mug": "<v1*> mug", "bot": "<v2*> robot"}
    assert fill_each("a {2} on a {my_mug}", phrases) == "a <v2*> robot on a <v1*> mug"
    assert [numbered(t, 2) for t in ("<v*>", "<my-dog>", "sks")] == ["<v2*>", "<my-dog2>", "sks2"]
    with pytest.raises(PersresError, match="does not name bot"):
        fill_each("a {1} on a {my_mug}", phrases)
    with pytest.raises(PersresError, match=r"\{3\} is no concept"):
        fill_each("a {1} and a {2} and a {3}", phrases)


def test_the_routing_without_masks_is_the_sum_too(fresh):
    x, t, text = inputs(4)
    bank = random_bank(fresh())
    routing = Routing(torch.zeros(2, 4, dtype=torch.long), torch.full((4,), 0.5))
    unet = fresh()
    with residual_hooks(unet, bank, routing):
        halves = run(unet, x, t, text)
    plain = fresh()
    with residual_hooks(plain, bank, Routing.everywhere(4)):
        torch.testing.assert_close(halves, run(plain, x, t, text), atol=1e-5, rtol=1e-4)
