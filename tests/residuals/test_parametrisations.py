"""Parametrisations: what a new one has to define, and that training, merging and the file then know it."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from persres.methods.ours import Ours
from persres.residuals.bank import ResidualBank, Routing, merged_weights, residual_hooks
from persres.residuals.file import load_bank, save_residual
from persres.residuals.parametrisations import PARAMETRISATIONS, Parametrisation
from persres.residuals.targets import TARGET_MODULES, TargetLayer, find_targets
from persres.seeding import generator
from tests.residuals.test_residuals import inputs, run
from tests.support.residual_files import header_info

BOUNDED = Parametrisation(
    lambda target, gain, draw: (
        torch.randn(target.width, target.rank, generator=draw),
        torch.randn(target.rank, target.width_in, generator=draw),
    ),
    lambda up, down: (up.tanh(), down / down.norm(dim=-1, keepdim=True)),
)


@pytest.fixture
def bank(unet, monkeypatch) -> ResidualBank:
    """With bounded A and normalised rows of B."""
    monkeypatch.setitem(PARAMETRISATIONS, "bounded", BOUNDED)
    return ResidualBank(find_targets(unet)).initialise(0, "bounded", 0.01, generator("bounded"))


def test_another_parametrisation_is_sampled_merged_and_saved_alike(unet, bank, tmp_path):
    x, t, text = inputs()
    base = run(unet, x, t, text)
    with residual_hooks(unet, bank, Routing.everywhere(2)):
        hooked = run(unet, x, t, text)
    with merged_weights(unet, bank):
        torch.testing.assert_close(run(unet, x, t, text), hooked, atol=1e-5, rtol=1e-4)
    assert (hooked - base).abs().max() > 1e-3
    save_residual(tmp_path / "r.safetensors", bank.deltas(), header_info())
    saved = load_bank(unet, tmp_path / "r.safetensors")
    assert all(up.abs().max() <= 1 for up in saved.up), "the file holds A and B"
    with residual_hooks(unet, saved, Routing.everywhere(2)):
        torch.testing.assert_close(run(unet, x, t, text), hooked, atol=1e-6, rtol=1e-5)
    assert saved.relative_norms(unet) == pytest.approx(bank.relative_norms(unet), rel=1e-5)


def test_gradients_reach_what_trains(unet, bank):
    x, t, text = inputs()
    with residual_hooks(unet, bank, Routing.everywhere(2)):
        unet(x, t, encoder_hidden_states=text).sample.square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in bank.parameters())


def test_settings_accept_what_the_tables_hold():
    assert set(get_args(Ours.model_fields["init"].annotation)) == set(PARAMETRISATIONS)
    assert set(get_args(Ours.model_fields["target"].annotation)) == set(TARGET_MODULES)


def test_initial_values_have_the_documented_scale():
    target = TargetLayer("x", 640, True, 32, 640)
    up, down = PARAMETRISATIONS["scaled_normal"].initial(target, 0.01, generator("a"))
    assert float(up.std()) == pytest.approx(0.01 / 32**0.5, rel=0.02)
    assert float(down.std()) == pytest.approx(640**-0.5, rel=0.02)
    up, down = PARAMETRISATIONS["normal"].initial(target, 0.3, generator("a"))
    assert float(up.std()) == pytest.approx(0.3, rel=0.02) == pytest.approx(float(down.std()), rel=0.02)
    up, down = PARAMETRISATIONS["lora"].initial(target, 0.3, generator("a"))
    assert not up.any() and 0.99 * 640**-0.5 < float(down.abs().max()) <= 640**-0.5
    assert float(down.std()) == pytest.approx((640 * 3) ** -0.5, rel=0.02)
