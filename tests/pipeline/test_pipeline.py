"""PersonalizedPipeline samples what the stages sample, takes the arguments of diffusers, and leaves the wrapped pipeline unchanged."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

import persres
from persres.config.schema import Base, SamplingConfig
from persres.errors import PersresError
from persres.models.diffusion import load_diffusion
from persres.models.loading import model_identity
from persres.pipeline import PersonalizedPipeline
from persres.residuals.bank import ResidualBank
from persres.residuals.file import save_residual
from persres.residuals.targets import find_targets
from persres.sampling.sample import Request, sample_batch
from persres.sampling.samplers import starting_noise
from persres.seeding import generator
from persres.units.specs import ImageSpec
from tests.support.family_models import RESOLUTION, save_family

TEXTS = ("a photo of a <v*> mug on the beach", "a photo of a <v*> mug in the snow")
CALL = {"num_inference_steps": 2, "guidance_scale": 6.0, "height": RESOLUTION, "width": RESOLUTION}


@pytest.fixture(scope="module", params=["sd14", "sd21", "sdxl"])
def model(request, tmp_path_factory):
    return save_family(request.param, tmp_path_factory.mktemp("personalized"))


def write(folder, path, seed: int = 0, **spec):
    """A strong residual for this model; the file's header as training writes it."""
    base = Base(model=str(folder), resolution=RESOLUTION)
    diffusion = load_diffusion(base, "cpu")
    targets = find_targets(diffusion.unet)
    bank = (
        ResidualBank(targets).initialise(0, "scaled_normal", 0.5, generator("personalized", seed)).requires_grad_(False)
    )
    settings = {"rank_ratio": 0.05, "rank": None, "target": "proj_out", "name_class": True}
    spec_fields = {
        "base": base.model_dump(),
        "model": model_identity(str(folder)),
        "concept": f"mug{seed}",
        "macro_class": "mug",
    }
    save_residual(path, bank.deltas(), {"spec": spec_fields | {"settings": settings} | spec})
    return bank


def hold_as_stages_do(pipe) -> None:
    """Images channels last, as on the CPU the stages hold them: a mask's threshold can tell sums in another order apart."""
    for part in (pipe.unet, pipe.vae):
        part.to(memory_format=torch.channels_last)


@pytest.fixture
def pipe(model, tmp_path):
    """With one residual loaded."""
    write(model, tmp_path / "r.safetensors")
    made = (
        PersonalizedPipeline.from_pretrained(model, safety_checker=None)
        if "sdxl" not in str(model)
        else PersonalizedPipeline.from_pretrained(model)
    )
    made.scheduler = DDIMScheduler.from_config(made.scheduler.config, clip_sample=False)
    made.set_progress_bar_config(disable=True)
    hold_as_stages_do(made)
    return made.load_residual(tmp_path / "r.safetensors")


def noise(pipe, count: int = 2) -> torch.Tensor:
    side = RESOLUTION // pipe.vae_scale_factor
    return starting_noise([generator("noise", i) for i in range(count)], (4, side, side))


def ours(model, tmp_path, texts, latents, **sampling) -> torch.Tensor:
    """The same images by the stages' path, from the same noise."""
    from persres.methods.common.base import LearnedFile
    from persres.methods.ours import METHOD
    from persres.sampling import sample as module

    base = Base(model=str(model), resolution=RESOLUTION)
    diffusion = load_diffusion(base, "cpu")
    bank = METHOD.load(diffusion, LearnedFile(tmp_path / "r.safetensors", "mug0", base), 1.0).bank
    items = [ImageSpec(name=f"{i}", prompt=t, phrase="<v*> mug", plain=t, image=i) for i, t in enumerate(texts)]
    settings = SamplingConfig(variant="ours", steps=2, images_per_prompt=1, **sampling)
    before = module.starting_noise
    module.starting_noise = lambda draws, shape: latents
    try:
        return sample_batch(diffusion, [Request(items, settings, bank)], RESOLUTION)[0][0]
    finally:
        module.starting_noise = before


@pytest.mark.parametrize("lag", [False, True])
def test_images_equal_ours(model, pipe, tmp_path, lag):
    latents = noise(pipe)
    theirs = pipe(list(TEXTS), lag=lag, latents=latents, output_type="pt", **CALL).images
    expected = ours(model, tmp_path, TEXTS, latents, lag=lag)
    torch.testing.assert_close(theirs, (expected / 2 + 0.5).clamp(0, 1), atol=2e-4, rtol=1e-3)
    base = pipe.set_residual(None)(list(TEXTS), latents=latents, output_type="pt", **CALL).images
    assert (theirs - base).abs().max() > 1e-3


def test_the_pipeline_is_left_as_it_was(model, pipe):
    latents = noise(pipe)
    plain = DiffusionPipeline.from_pretrained(model, **({} if "sdxl" in str(model) else {"safety_checker": None}))
    plain.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    plain.set_progress_bar_config(disable=True)
    hold_as_stages_do(plain)
    pipe(list(TEXTS), lag=True, latents=latents, **CALL)
    text = ["a photo of a mug", "a cat"]
    ours = pipe.set_residual(None)(text, latents=latents, output_type="pt", **CALL).images
    theirs = plain(text, latents=latents, output_type="pt", **CALL).images
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_it_takes_the_arguments_of_diffusers(pipe):
    steps = []

    def note(_pipe, step, t, values):
        steps.append(step)
        return values

    output = pipe(
        TEXTS[0],
        lag=True,
        negative_prompt="blue",
        num_images_per_prompt=3,
        generator=torch.Generator().manual_seed(0),
        callback_on_step_end=note,
        return_masks=True,
        **CALL,
    )
    assert len(output.images) == 3 and output.images[0].size == (RESOLUTION, RESOLUTION) and steps == [0, 1]
    side = RESOLUTION // pipe.vae_scale_factor
    assert output.masks.shape == (3, side, side) and 0.3 < float(output.masks.mean()) < 0.6
    assert isinstance(pipe, (StableDiffusionPipeline, StableDiffusionXLPipeline)) and pipe.to("cpu") is pipe


def test_many_images_of_a_prompt_equal_the_prompt_many_times(pipe):
    latents = noise(pipe, 4)
    each = pipe(list(TEXTS), lag=True, num_images_per_prompt=2, latents=latents, output_type="pt", **CALL).images
    apart = pipe([TEXTS[0], TEXTS[0], TEXTS[1], TEXTS[1]], lag=True, latents=latents, output_type="pt", **CALL).images
    torch.testing.assert_close(each, apart, atol=1e-5, rtol=1e-4)


def test_without_guidance_and_in_another_shape(pipe):
    call = CALL | {"guidance_scale": 1.0, "width": RESOLUTION * 2}
    output = pipe(TEXTS[0], lag=True, return_masks=True, **call)
    assert output.images[0].size == (2 * RESOLUTION, RESOLUTION)
    side = RESOLUTION // pipe.vae_scale_factor
    assert output.masks.shape == (1, side, 2 * side)


def test_several_are_switched_by_name_and_scaled(model, pipe, tmp_path):
    write(model, tmp_path / "other.safetensors", seed=1)
    latents = noise(pipe, 1)

    def sample(**more) -> torch.Tensor:
        return pipe(TEXTS[0], latents=latents, output_type="pt", **CALL, **more).images

    first = sample()
    pipe.load_residual(tmp_path / "other.safetensors", "second")
    assert list(pipe.residuals) == ["mug0", "second"] and pipe.active == "second"
    assert (sample() - first).abs().max() > 1e-3
    assert torch.equal(pipe.set_residual("mug0")(TEXTS[0], latents=latents, output_type="pt", **CALL).images, first)
    none = pipe.set_residual(None)(TEXTS[0], latents=latents, output_type="pt", **CALL).images
    torch.testing.assert_close(
        pipe.set_residual("mug0")(TEXTS[0], strength=0.0, latents=latents, output_type="pt", **CALL).images, none
    )
    pipe.unload_residual("mug0")
    assert pipe.active is None
    with pytest.raises(PersresError, match="no residual 'mug0' is loaded; loaded are second"):
        pipe.set_residual("mug0")


def test_half_precision_samples(model, tmp_path):
    write(model, tmp_path / "r.safetensors")
    pipe = PersonalizedPipeline.from_pretrained(model, dtype=torch.bfloat16).load_residual(tmp_path / "r.safetensors")
    pipe.set_progress_bar_config(disable=True)
    latents = noise(pipe, 1).bfloat16()
    sampled = pipe(
        TEXTS[0], lag=True, latents=latents, output_type="latent", **CALL
    ).images  # decoding takes ten seconds on a CPU
    assert sampled.isfinite().all() and not torch.equal(sampled, latents)


def test_invalid_calls_are_refused(model, pipe, tmp_path):
    with pytest.raises(PersresError, match=r"does not name the concept; write '<v\*> mug' in it"):
        pipe("a photo of a cat", lag=True, **CALL)
    with pytest.raises(PersresError, match="pass prompt, not prompt_embeds"):
        pipe(None, lag=True, **CALL)
    write(model, tmp_path / "else.safetensors", model="somewhere@0123456789abcdef")
    with pytest.raises(PersresError, match=r"else\.safetensors was trained on somewhere@0123.*allow_other_base=True"):
        pipe.load_residual(tmp_path / "else.safetensors")
    assert pipe.load_residual(tmp_path / "else.safetensors", allow_other_base=True).active == "mug0"
    with pytest.raises(PersresError, match="cannot load the base model 'nobody/nothing'"):
        PersonalizedPipeline.from_pretrained("nobody/nothing", local_files_only=True)


def test_it_is_public():
    assert persres.PersonalizedPipeline is PersonalizedPipeline
