"""Temporarily replaced weights: what is in place inside the context, and that the original tensors return."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from persres.errors import PersresError
from persres.models.weight_patching import TOKEN, patched_weights, trainable_copies


class TextEncoder(nn.Module):
    """An embedding table alone."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3)

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.table(ids)


@pytest.fixture
def model() -> SimpleNamespace:
    return SimpleNamespace(unet=nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)), text_encoder=TextEncoder())


def test_values_take_the_originals_place_dtype_and_leave(model):
    original = model.unet[0].weight
    with patched_weights(model, {"unet.0.weight": torch.ones(2, 3, dtype=torch.float64)}):
        assert model.unet[0].weight.dtype == torch.float32 and not model.unet[0].weight.requires_grad
        assert model.unet[0].weight.eq(1).all()
    assert model.unet[0].weight is original


def test_a_module_is_patched_by_its_paths(model):
    original = model.unet[1].bias
    with pytest.raises(RuntimeError, match="stop"), patched_weights(model.unet, {"1.bias": torch.tensor([7.0])}):
        assert model.unet[1].bias.item() == 7
        raise RuntimeError("stop")
    assert model.unet[1].bias is original, "also after an error"


def test_gradients_reach_trainable_copies_and_no_original(model):
    copies = trainable_copies(model, ["unet.0.weight", TOKEN], 4)
    assert torch.equal(copies[TOKEN], model.text_encoder.table.weight[4]) and copies[TOKEN].dtype == torch.float32
    with patched_weights(model, copies, 4):
        assert model.unet[0].weight is copies["unet.0.weight"]
        model.unet(model.text_encoder(torch.tensor([[4, 1]]))).sum().backward()
    assert all(copy.grad.abs().max() > 0 for copy in copies.values())
    assert model.unet[0].weight.grad is None and not model.text_encoder.table.weight.grad[4].any()


def test_only_the_token_gets_the_vector(model):
    ids, before = torch.tensor([[0, 4, 1]]), model.text_encoder(torch.tensor([[0, 4, 1]]))
    with patched_weights(model, {TOKEN: torch.full((3,), 9.0)}, 4):
        inside = model.text_encoder(ids)
    assert inside[0, 1].eq(9).all() and torch.equal(inside[0, [0, 2]], before[0, [0, 2]])
    assert torch.equal(model.text_encoder(ids), before)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"unet.0.weight": torch.ones(2, 3), "unet.2.weight": torch.ones(1)}, r"has no weight 'unet\.2\.weight'"),
        (
            {"unet.0.weight": torch.ones(2, 3), "unet.1.weight": torch.ones(2)},
            r"unet\.1\.weight is \[2\], the model has \[1, 2\]",
        ),
        ({"unet.0.weight": torch.ones(2, 3), TOKEN: torch.ones(4)}, r"its V\* is \[4\], the model has \[3\]"),
        ({"unet.0.weight": torch.ones(2, 3), TOKEN: torch.ones(2, 3)}, r"its V\* is \[2, 3\]"),
        ({TOKEN: torch.ones(0)}, r"its V\* is \[0\]"),
    ],
)
def test_nothing_is_patched_where_one_value_does_not_fit(model, values, message):
    original = model.unet[0].weight
    with pytest.raises(PersresError, match=message), patched_weights(model, values):
        pass
    assert model.unet[0].weight is original
