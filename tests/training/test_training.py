"""Training: what it touches, that it learns, that a resumed run equals an unbroken one."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler

from persres.errors import PersresError
from persres.methods.common.train_units import checkpointed_activations
from persres.methods.ours import Ours
from persres.residuals.bank import ResidualBank
from persres.residuals.targets import find_targets
from persres.training.residual_training import EncodedConcept, ResidualLoss, diffusion_target, new_bank, train

SCHEDULER = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def concept(name: str = "mug", seed: int = 0) -> EncodedConcept:
    draw = torch.Generator().manual_seed(seed)
    mean = torch.randn(3, 4, 8, 8, generator=draw)
    return EncodedConcept(name, mean, torch.full_like(mean, 0.01), torch.randn(6, 24, generator=draw))


def settings(**changes) -> Ours:
    return Ours(**({"steps": 12, "batch_size": 2, "lr": 1e-2, "checkpoint_every": 4} | changes))


def loss_of(unet, bank, variant) -> ResidualLoss:
    return ResidualLoss(unet, SCHEDULER, bank, variant)


def train_bank(unet, concepts, variant, checkpoint=None, stop_after=None):
    """The trained bank and the log; None in place of the log if the run was stopped."""
    bank = new_bank(find_targets(unet), concepts, variant)

    def on_step(step, loss):
        if stop_after is not None and step + 1 == stop_after:
            raise KeyboardInterrupt

    try:
        log = train(loss_of(unet, bank, variant), concepts, checkpoint, on_step)
    except KeyboardInterrupt:
        log = None
    return bank, log


@torch.no_grad()
def probe(unet, bank, variant) -> float:
    """Mean loss over twenty steps that training never saw."""
    losses = [loss_of(unet, bank, variant).at_step([concept()], step) for step in range(1000, 1020)]
    return float(torch.stack(losses).mean())


@pytest.mark.parametrize(("target", "refused"), [("attn_kv", True), ("proj_out", False)])
def test_checkpointed_layers_cannot_have_a_residual(unet, target, refused):
    variant = settings(steps=1, target=target)
    loss = loss_of(unet, new_bank(find_targets(unet, target=target), [concept()], variant), variant)
    with checkpointed_activations(unet, True):
        if refused:
            with pytest.raises(PersresError, match="cannot train with gradient checkpointing"):
                train(loss, [concept()])
        else:
            assert len(train(loss, [concept()])) == 1
    assert not refused or len(train(loss, [concept()])) == 1


def test_training_lowers_the_loss_and_touches_only_the_residuals(unet):
    before = {k: v.clone() for k, v in unet.state_dict().items()}
    variant = settings(steps=60)
    start = ResidualBank(find_targets(unet))
    bank, log = train_bank(unet, [concept()], variant)
    assert probe(unet, bank, variant) < 0.97 * probe(unet, start, variant), "training must help on steps it never saw"
    assert all(torch.equal(v, before[k]) for k, v in unet.state_dict().items())
    assert all(p.grad is None for p in unet.parameters())
    assert len(log) == 60
    assert set(log[9]["norms"][0]) == {t.path for t in bank.targets}


def test_gradient_reaches_every_factor(unet):
    bank = new_bank(find_targets(unet), [concept()], settings())
    loss_of(unet, bank, settings()).at_step([concept()], 0).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in bank.parameters())


def test_no_gradient_is_made_below_the_first_residual(unet):
    """What runs before the first residual needs no backward pass: nothing there asks for a gradient, all that follows it does."""
    ran: list[tuple[str, bool]] = []
    hooks = [
        module.register_forward_hook(lambda _, given, out, name=name: ran.append((name, out.requires_grad)))
        for name, module in unet.named_modules()
        if not list(module.children())
    ]
    bank, _ = train_bank(unet, [concept()], settings(steps=1))
    for hook in hooks:
        hook.remove()
    targets = {target.path for target in bank.targets}
    first = next(index for index, (name, _) in enumerate(ran) if name in targets)
    assert first > 5 and not any(needs for _, needs in ran[: first + 1]), (
        "the residual is added to the target's own output"
    )
    # what reads the timestep or the text has no residual before it, wherever it runs
    assert ran[-1] == ("conv_out", True) and sum(needs for _, needs in ran[first + 1 :]) > 0.5 * len(ran[first + 1 :])


@pytest.mark.parametrize("stop_after", [5, 8, 11])
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(unet, tmp_path, stop_after):
    whole, log = train_bank(unet, [concept()], settings())
    train_bank(unet, [concept()], settings(), tmp_path / "c.safetensors", stop_after)
    assert (tmp_path / "c.safetensors").exists()
    resumed, log_resumed = train_bank(unet, [concept()], settings(), tmp_path / "c.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert log == log_resumed


def test_concepts_trained_in_one_batch_equal_concepts_trained_alone(unet):
    concepts = [concept("mug", 0), concept("robot", 1)]
    batched, _ = train_bank(unet, concepts, settings())
    for index, one in enumerate(concepts):
        alone, _ = train_bank(unet, [one], settings())
        for a, b in zip(batched.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(a[index], b[0], atol=1e-4, rtol=1e-3)


def test_seed_and_name_decide_the_draws(unet):
    first, _ = train_bank(unet, [concept()], settings())
    again, _ = train_bank(unet, [concept()], settings())
    other, _ = train_bank(unet, [concept()], settings(seed=1))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_targets_of_both_prediction_types():
    z, noise, t = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.tensor([10, 900])
    assert torch.equal(diffusion_target(SCHEDULER, z, noise, t), noise)
    v = DDIMScheduler.from_config(SCHEDULER.config, prediction_type="v_prediction")
    alpha = SCHEDULER.alphas_cumprod[t].view(-1, 1, 1, 1)
    torch.testing.assert_close(diffusion_target(v, z, noise, t), alpha.sqrt() * noise - (1 - alpha).sqrt() * z)
    bad = DDIMScheduler.from_config(SCHEDULER.config, prediction_type="sample")
    with pytest.raises(ValueError, match="prediction_type"):
        diffusion_target(bad, z, noise, t)


def test_a_corrupt_checkpoint_means_a_fresh_start(unet, tmp_path):
    whole, _ = train_bank(unet, [concept()], settings())
    (tmp_path / "c.safetensors").write_bytes(b"torn")
    again, _ = train_bank(unet, [concept()], settings(), tmp_path / "c.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_recomputed_activations_change_no_number(unet):
    """Gradient checkpointing: less is kept, and the residual comes out the same."""
    banks, sizes = [], []
    for enabled in (False, True):
        saved: list[int] = []
        save = torch.autograd.graph.saved_tensors_hooks(
            lambda x, saved=saved: saved.append(x.numel()) or x, lambda x: x
        )
        with checkpointed_activations(unet, enabled), save:
            banks.append(train_bank(unet, [concept()], settings(steps=4))[0])
        sizes.append(sum(saved))
        assert not unet.is_gradient_checkpointing
    for one, other in zip(*(bank.parameters() for bank in banks), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert sizes[1] < 0.6 * sizes[0], sizes
