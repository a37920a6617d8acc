"""Pictures of several concepts and ways in one batch are those of a batch each."""

from __future__ import annotations

import pytest
import torch
from test_sampling import bank_for, diffusion, items  # noqa: F401  (a fixture)

from persres.config import Drawing
from persres.errors import PersresError
from persres.sampling.draw import Texts, draw
from persres.sampling.mixed import Request, draw_mixed

SIZE = 32


def bank_of(model, seed: int):
    bank = bank_for(model)
    with torch.no_grad():
        for number, factor in enumerate(bank.parameters()):
            factor.copy_(torch.randn(factor.shape, generator=torch.Generator().manual_seed(seed + number)) * 0.2)
    return bank


@pytest.mark.parametrize("rule", ["mask", "base", "full"])
@pytest.mark.parametrize("lag", [True, "auto"])
def test_each_picture_is_what_it_is_alone(diffusion, lag, rule):  # noqa: F811
    plain, masked = (
        Drawing(variant="a", steps=3),
        Drawing(variant="a", steps=3, lag=lag, uncond_rule=rule, cfg_scale=4.0),
    )
    requests = [
        Request(items(2), plain, bank_of(diffusion, 1)),
        Request(items(3), Drawing(steps=3, seed=5)),
        Request(items(1), masked, bank_of(diffusion, 2)),
        Request(items(2), masked, bank_of(diffusion, 3)),
    ]
    together = draw_mixed(diffusion, requests, SIZE)
    for request, (pictures, masks) in zip(requests, together, strict=True):
        alone, own = draw(diffusion, request.items, request.drawing, request.bank, SIZE)
        torch.testing.assert_close(pictures, alone, atol=2e-4, rtol=1e-3)
        assert (masks is None) == (own is None)
        if own is not None:
            torch.testing.assert_close(masks, own, atol=1e-4, rtol=1e-4)
    assert (together[0][0][0] - together[2][0][0]).abs().max() > 1e-2, "another concept, another picture"


def test_without_a_residual_no_hook_and_no_mask(diffusion):  # noqa: F811
    drawing = Drawing(steps=2)
    (first, none), (second, _) = draw_mixed(diffusion, [Request(items(1), drawing), Request(items(2), drawing)], SIZE)
    torch.testing.assert_close(torch.cat([first, second[1:]]), draw(diffusion, items(2), drawing, None, SIZE)[0], atol=2e-4, rtol=1e-3)  # fmt: skip
    assert none is None and not diffusion.unet._forward_hooks


def test_what_a_batch_has_one_of_must_agree(diffusion):  # noqa: F811
    bank = bank_of(diffusion, 1)
    with pytest.raises(PersresError, match="numbers of steps"):
        draw_mixed(diffusion, [Request(items(1), Drawing(steps=2)), Request(items(1), Drawing(steps=3))], SIZE)
    ways = [Drawing(variant="a", steps=2, lag=True), Drawing(variant="a", steps=2, lag="auto")]
    with pytest.raises(PersresError, match="under different masks"):
        draw_mixed(diffusion, [Request(items(1), way, bank) for way in ways], SIZE)


def test_a_prompt_is_read_once(diffusion, monkeypatch):  # noqa: F811
    read: list[str] = []
    encode = type(diffusion).encode
    monkeypatch.setattr(type(diffusion), "encode", lambda self, prompts: read.extend(prompts) or encode(self, prompts))
    texts = Texts(diffusion)
    first = texts(["a photo of a cat", "a photo of a dog", "a photo of a cat"])
    again = texts(["a photo of a dog"])
    assert read == ["", "a photo of a cat", "a photo of a dog"]
    assert torch.equal(first.states[1:2], again.states) and torch.equal(first.states[0], first.states[2])
    torch.testing.assert_close(first.states[:2], encode(diffusion, ["a photo of a cat", "a photo of a dog"]).states)
