"""Training of the study's LoRAs: one that leaves the finite numbers is no result."""

from __future__ import annotations

import pytest
from PIL import Image

from persres.config.schema import Base
from persres.errors import PersresError
from persres.experiments.extensions.masked_lora import train
from persres.models.diffusion import load_diffusion
from persres.training.batches import EncodedImages


@pytest.mark.parametrize(
    ("variant", "at", "value"), [("attention", 1, "nan"), ("convolutions", 2, "inf"), ("text", 3, "nan")]
)
def test_a_lora_that_diverges_stops_at_the_step(tiny_profile, monkeypatch, variant, at, value):
    base = Base(**tiny_profile["base"])
    recipe = train.VARIANTS[variant].model_copy(update={"steps": 5, "batch": 1})
    spec = train.LoraTrainSpec(
        base=base, model="x", concept="dog7", macro_class="dog", recipe=recipe, photos=(), code="x"
    )
    diffusion = load_diffusion(base, "cpu")
    target, calls = train.diffusion_target, []

    def overflowing(*given):
        calls.append(1)
        return target(*given) * (float(value) if len(calls) == at else 1.0)

    monkeypatch.setattr(train, "diffusion_target", overflowing)
    images = EncodedImages.of(diffusion, [Image.new("RGB", (base.resolution,) * 2, "red")])
    unet, encoder = train.add_adapters(diffusion, spec)
    with pytest.raises(PersresError, match=rf"training of dog7 diverged: its loss is .* at step {at} of 5.*smaller lr"):
        train.train_lora(diffusion, unet, encoder, images, spec)
    assert len(calls) == at
