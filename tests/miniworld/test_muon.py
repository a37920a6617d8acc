"""The optimizer of the mini U-Net."""

from __future__ import annotations

import pytest
import torch

from persres.experiments.miniworld_training.loop import Budget, fit
from persres.experiments.miniworld_training.muon import ADAM_LR, Muon, orthogonalised


@pytest.mark.parametrize("shape", [(5, 12, 12), (5, 8, 40), (5, 40, 8)])
def test_singular_values_become_about_one(shape):
    values = torch.linalg.svdvals(orthogonalised(torch.randn(shape, generator=torch.Generator().manual_seed(0))))
    assert values.median() == pytest.approx(0.9, abs=0.25)
    assert values.max() < 1.3


def test_a_matrix_moves_as_with_torchs_muon():
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.full((12, 30), 0.1)) for _ in range(2))
    one = Muon([("w", ours)], 1e-2, weight_decay=0.1)
    two = torch.optim.Muon([theirs], 1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        ours.grad = torch.randn(12, 30)
        theirs.grad = ours.grad.clone()
        one.step()
        two.step()
    torch.testing.assert_close(ours, theirs, atol=5e-4, rtol=0)  # theirs computes in bfloat16
    assert (ours - 0.1).abs().mean() > 2e-3


def test_a_kernel_moves_as_its_matrix():
    torch.manual_seed(0)
    kernel, matrix = torch.nn.Parameter(torch.zeros(6, 4, 3, 3)), torch.nn.Parameter(torch.zeros(6, 36))
    kernel.grad = torch.randn(6, 4, 3, 3)
    matrix.grad = kernel.grad.reshape(6, 36).clone()
    Muon([("a", kernel), ("b", matrix)], 1e-2).step()
    torch.testing.assert_close(kernel.detach().reshape(6, 36), matrix.detach())


@pytest.mark.parametrize("name", ["bias", "conv_in.weight"])
def test_the_rest_moves_as_with_adamw(name):
    torch.manual_seed(0)
    shape = (7,) if name == "bias" else (7, 5)
    ours, theirs = (torch.nn.Parameter(torch.ones(shape)) for _ in range(2))
    one = Muon([(name, ours)], 1e-2, excluded=("conv_in",), weight_decay=0.1)
    two = torch.optim.AdamW([theirs], 1e-2 * ADAM_LR, (0.9, 0.99), weight_decay=0.1)
    for _ in range(6):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        one.step()
        two.step()
    torch.testing.assert_close(ours, theirs)


def test_parameters_without_gradient_stay():
    still, moving = torch.nn.Parameter(torch.ones(3, 3)), torch.nn.Parameter(torch.ones(3, 3))
    moving.grad = torch.eye(3)
    Muon([("still", still), ("moving", moving)], 1e-2).step()
    assert torch.equal(still, torch.ones(3, 3)) and not torch.equal(moving, torch.ones(3, 3))


def test_an_interrupted_training_goes_on_to_the_same_weights(tmp_path):
    def learn(folder, stop=None):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Linear(6, 1))

        def loss(step: int, seed: int) -> torch.Tensor:
            if step == stop:
                raise KeyboardInterrupt
            return (model(torch.randn(8, 4)) - 1).pow(2).mean()

        return fit("toy", model, loss, Budget(12, 1e-2, 2, save_every=4), folder, 0, muon=())[0].weight.detach().clone()

    whole = learn(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "broken", stop=6)
    assert torch.equal(learn(tmp_path / "broken"), whole)
