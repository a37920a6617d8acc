"""Photos that are no squares: cut, with a border, or at their aspect; what the loss counts, and what old specs are called."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from persres.images import square
from persres.methods.ours import Ours
from persres.models.conditioning import Conditioning
from persres.residuals.targets import find_targets
from persres.training.frames import Sample, encode_framed, sized
from persres.training.framing import MOST_ASPECT, bucket_size, frame_of, framed
from persres.training.residual_training import EncodedConcept, ResidualLoss, new_bank, train
from persres.units.specs import TrainSpec

SIZES = [(90, 60), (60, 90), (64, 64), (400, 40), (17, 300)]
SCHEDULER = DDIMScheduler(beta_schedule="scaled_linear")


def photo(size: tuple[int, int]) -> Image.Image:
    noise = np.random.default_rng(size[0]).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(noise)


def posterior(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Four latent channels at a quarter of the size."""
    mean = torch.nn.functional.avg_pool2d(images, 4).mean(1, keepdim=True).repeat(1, 4, 1, 1)
    return mean, torch.full_like(mean, 0.01)


def concept(crop: str, sizes: list[tuple[int, int]] = SIZES, name: str = "mug") -> EncodedConcept:
    mean, std, frames = encode_framed([photo(size) for size in sizes], 32, crop, 4, posterior)
    text = torch.randn(6, 24, generator=torch.Generator().manual_seed(1))
    return EncodedConcept(name, mean, std, text, frames=frames)


def loss_of(unet, names: int = 1, **values) -> ResidualLoss:
    settings = Ours(steps=4, batch_size=4, **values)
    concepts = [
        EncodedConcept(f"c{i}", torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 8), torch.zeros(6, 24))
        for i in range(names)
    ]
    return ResidualLoss(unet, SCHEDULER, new_bank(find_targets(unet), concepts, settings), settings)


@pytest.mark.parametrize("size", SIZES)
def test_a_centre_crop_is_what_it_was(size):
    image, frame = framed(photo(size), 32, "center")
    assert image.size == frame.size == (32, 32)
    assert frame.share(size) == pytest.approx(min(size) / max(size), abs=0.02)
    other = photo(size)
    assert framed(other, 32, "center")[0].tobytes() == square(other, 32).tobytes()


@pytest.mark.parametrize("size", SIZES)
def test_a_border_leaves_the_whole_photo(size):
    image, frame = framed(photo(size), 32, "pad")
    left, top, right, bottom = frame.area
    assert image.size == (32, 32) and frame.share(size) == 1
    assert (right - left) / (bottom - top) == pytest.approx(size[0] / size[1], rel=0.15) or min(
        right - left, bottom - top
    ) <= 3
    outside = [(x, y) for x in range(32) for y in range(32) if not (left <= x < right and top <= y < bottom)]
    assert all(image.getpixel(at) == (127, 127, 127) for at in outside)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("factor", [4, 8])
def test_a_bucket_has_the_aspect_and_sides_for_the_model(size, factor):
    width, height = bucket_size(size, 512, factor)
    aspect = min(max(size[0] / size[1], 1 / MOST_ASPECT), MOST_ASPECT)
    assert width % factor == height % factor == 0
    assert width / height == pytest.approx(aspect, rel=0.03) and width * height == pytest.approx(512**2, rel=0.03)
    frame = frame_of(size, 512, "bucket", factor)
    cut = size[0] / size[1] != pytest.approx(aspect)
    assert frame.size == (width, height) and (frame.share(size) > 0.95 or cut)


def test_the_loss_does_not_count_the_border(unet):
    """Another target there changes nothing; another one within does."""
    padded, loss = concept("pad", [(90, 60)]), loss_of(unet, crop="pad")
    assert padded.frames.valid.sum() == 6 * 8 or padded.frames.valid.sum() == 4 * 8
    before = loss.at_step([padded], 0)
    original = loss._errors

    def spoiled(within: bool):
        def errors(draws, text, routing):
            change = padded.frames.valid if within else 1 - padded.frames.valid
            return original(draws, text, routing) + 100 * change

        return errors

    object.__setattr__(loss, "_errors", spoiled(False))
    torch.testing.assert_close(loss.at_step([padded], 0), before)
    object.__setattr__(loss, "_errors", spoiled(True))
    torch.testing.assert_close(loss.at_step([padded], 0), before + 100)


def test_a_photo_thinner_than_a_latent_pixel_still_counts():
    frames = concept("pad", [(600, 20)]).frames
    assert frames.valid.sum() > 0


@pytest.mark.parametrize("crop", ["pad", "bucket"])
def test_square_photos_train_alike_at_any_crop(unet, crop):
    plain, loss = concept("pad", [(64, 64)] * 3), loss_of(unet)
    without = EncodedConcept("mug", plain.mean, plain.std, plain.text)
    other = concept(crop, [(64, 64)] * 3)
    torch.testing.assert_close(loss.at_step([other], 1), loss.at_step([without], 1))


def test_every_bucket_is_one_pass_of_its_size(unet, monkeypatch):
    seen, forward = [], unet.forward
    monkeypatch.setattr(unet, "forward", lambda x, *a, **k: seen.append(tuple(x.shape[-2:])) or forward(x, *a, **k))
    two = [concept("bucket"), concept("bucket", [(50, 100), (64, 64)], "robot")]
    joint = loss_of(unet, 2, crop="bucket").at_step(two, 0)
    assert len(set(seen)) == len(seen) > 1, "each size once, of both concepts"
    alone = [loss_of(unet, 2, crop="bucket").at_step([one], 0, [row])[0] for row, one in enumerate(two)]
    torch.testing.assert_close(joint, torch.stack(alone))


@pytest.mark.parametrize(("crop", "stop"), [("pad", "steps"), ("bucket", "steps"), ("bucket", "early")])
def test_a_training_goes_on_to_the_same_bits_after_a_kill(unet, tmp_path, crop, stop):
    def run(checkpoint, steps):
        loss = loss_of(unet, crop=crop, checkpoint_every=2, stop=stop, early_stop_every=1, early_stop_draws=2)
        loss = ResidualLoss(unet, SCHEDULER, loss.bank, loss.settings.model_copy(update={"steps": steps}))
        return train(loss, [concept(crop)], checkpoint), [p.detach().clone() for p in loss.bank.parameters()]

    _, whole = run(None, 4)
    run(tmp_path / "c.safetensors", 2)
    rows, resumed = run(tmp_path / "c.safetensors", 4)
    assert len(rows) == 4 and all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


def test_sdxl_is_given_the_size_of_a_bucket():
    added = {"text_embeds": torch.zeros(2, 3), "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)}
    group = [Sample(1, (6, 10), None, (48, 80))]
    text = sized(Conditioning(torch.zeros(2, 5, 4), added), group)
    assert text.added["time_ids"].tolist() == [[48, 80, 0, 0, 48, 80]] and len(text.states) == 1


def spec(**values) -> TrainSpec:
    return TrainSpec(
        base={}, model="m", concept="dog", variant="ours", settings=Ours(**values), macro_class="dog", photos=(),
        class_images=None, code="",
    )  # fmt: skip


@pytest.mark.parametrize("values", [{}, {"rank": 4}, {"stop": "early", "seed": 3}])
def test_the_default_crop_leaves_specs_and_hashes_as_they_were(values):
    plain, explicit = spec(**values), spec(**values, crop="center")
    assert plain.identity() == explicit.identity() and "crop" not in plain.identity()
    assert "crop" not in plain.model_dump_json() and plain.settings.crop == "center"
    read = Ours(**json.loads(plain.model_dump_json())["settings"])
    assert read == plain.settings
    others = {spec(**values, crop=crop).identity() for crop in ("pad", "bucket")}
    assert len(others | {plain.identity()}) == 3
    assert Ours(**json.loads(spec(crop="pad").model_dump_json())["settings"]).crop == "pad"


def test_the_identity_of_an_old_spec_is_pinned():
    digest = hashlib.sha256(spec().identity().encode()).hexdigest()[:16]
    assert digest == "79ff38b8043ac580", "computed by the code before there was a crop"
