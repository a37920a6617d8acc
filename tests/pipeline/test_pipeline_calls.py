"""What a diffusers user expects of PersonalizedPipeline: schedulers, generators, precisions, off-loading; on one tiny model."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
)

from persres.exports.export import export
from persres.pipeline import PersonalizedPipeline
from tests.exports.test_exports import saved
from tests.support.small_models import tiny_unet

TEXT = "a photo of a <v*> mug on the beach"
CALL = {"num_inference_steps": 3, "guidance_scale": 6.0, "height": 32, "width": 32, "output_type": "pt"}
SCHEDULERS = (DPMSolverMultistepScheduler, EulerDiscreteScheduler, EulerAncestralDiscreteScheduler)


@pytest.fixture(scope="module")
def residual(tmp_path_factory):
    path = tmp_path_factory.mktemp("calls") / "mug.safetensors"
    saved(tiny_unet(), path)
    return path


def loaded(folder, residual, **arguments) -> PersonalizedPipeline:
    pipe = PersonalizedPipeline.from_pretrained(folder, safety_checker=None, **arguments)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe.load_residual(residual, allow_other_base=True)


@pytest.fixture
def pipe(tiny_pipeline, residual):
    return loaded(tiny_pipeline, residual)


def sample(pipe, text=TEXT, seed: int = 0, **more) -> torch.Tensor:
    return pipe(text, **(CALL | {"generator": torch.Generator().manual_seed(seed)} | more)).images.float()


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_with_any_scheduler_it_draws_as_the_plain_pipeline_does(pipe, tiny_pipeline, residual, tmp_path, kind):
    """The whole residual equals diffusers' own LoRA of it, from the same generator; DPMSolver++ is this class's default."""
    pipe.scheduler = kind.from_config(pipe.scheduler.config)
    plain = StableDiffusionPipeline.from_pretrained(tiny_pipeline, safety_checker=None)
    plain.scheduler = kind.from_config(pipe.scheduler.config)
    plain.set_progress_bar_config(disable=True)
    exported = export(residual, "kohya", tmp_path / "x.safetensors")
    plain.load_lora_weights(str(tmp_path), weight_name=exported.name)
    ours = sample(pipe)
    torch.testing.assert_close(ours, sample(plain, TEXT.replace("<v*>", "sks")), atol=1e-4, rtol=1e-3)
    assert torch.equal(ours, sample(pipe)) and not torch.equal(ours, sample(pipe, seed=1))


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_with_any_scheduler_lag_confines_the_residual(pipe, kind):
    pipe.scheduler = kind.from_config(pipe.scheduler.config)
    output = pipe(TEXT, lag="auto", return_masks=True, **CALL, generator=torch.Generator().manual_seed(0))
    assert torch.equal(output.images, sample(pipe, lag="auto")), "its generator decides"
    assert output.masks.shape == (1, 8, 8) and 0 < float(output.masks.mean()) < 1
    whole, base = sample(pipe), sample(pipe.set_residual(None))
    assert (output.images - whole).abs().max() > 1e-3 and (output.images - base).abs().max() > 1e-3


@pytest.mark.parametrize("lag", [False, "auto"])
def test_in_bfloat16_the_image_is_nearly_the_same(pipe, tiny_pipeline, residual, lag):
    half = loaded(tiny_pipeline, residual, dtype=torch.bfloat16)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    exact, near = sample(pipe, lag=lag, latents=latents), sample(half, lag=lag, latents=latents.bfloat16())
    assert half.unet.dtype == torch.bfloat16 and near.isfinite().all()
    assert (near - exact).abs().mean() < 0.2 * exact.std()
    assert (near - exact).abs().mean() < 0.5 * (sample(pipe.set_residual(None), latents=latents) - exact).abs().mean()


def test_every_image_of_many_prompts_has_its_generator(pipe):
    """Four generators for two prompts of two images: a prompt's images are adjacent, each as it is alone."""
    texts = [TEXT, "a photo of a <v*> mug in the snow"]
    seeds = [torch.Generator().manual_seed(i) for i in range(4)]
    batched = sample(pipe, texts, lag="auto", num_images_per_prompt=2, generator=seeds)
    alone = torch.cat([sample(pipe, texts[i // 2], seed=i, lag="auto") for i in range(4)])
    torch.testing.assert_close(batched, alone, atol=1e-5, rtol=1e-4)


def order_of(pipe) -> list[str]:
    """The parts as they are called, from now on."""
    called: list[str] = []
    for name in ("text_encoder", "unet"):
        getattr(pipe, name).register_forward_pre_hook(lambda *_, name=name: called.append(name))
    decode = pipe.vae.decode
    pipe.vae.decode = lambda *a, **k: called.append("vae") or decode(*a, **k)
    return called


def test_offloading_hooks_are_set_and_the_image_stays(pipe):
    """Without an accelerator diffusers refuses by itself; told to take the CPU for one, it sets the same hooks, whose moves then do
    nothing. That parts really leave a GPU is the next test's, which needs one."""
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="requires accelerator"):
            pipe.enable_model_cpu_offload()
    whole = sample(pipe, lag="auto")
    pipe.enable_model_cpu_offload(device="cpu")
    assert all(hasattr(part, "_hf_hook") for part in (pipe.text_encoder, pipe.unet, pipe.vae))
    called = order_of(pipe)
    assert torch.equal(sample(pipe, lag="auto"), whole)
    assert called == ["text_encoder"] * 2 + ["unet"] * 3 + ["vae"], "as the hooks expect it: each part once, in turn"
    base = sample(pipe.set_residual(None))
    assert not torch.equal(base, whole) and torch.equal(sample(pipe.set_residual("my_mug"), lag="auto"), whole)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU to take parts off")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_offloaded_parts_leave_a_gpu(tiny_pipeline, residual, dtype):
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    pipe = loaded(tiny_pipeline, residual, dtype=dtype)
    pipe.to("cuda")
    whole = {lag: sample(pipe, lag=lag, latents=latents.cuda()).cpu() for lag in (False, "auto")}
    pipe = loaded(tiny_pipeline, residual, dtype=dtype)
    pipe.enable_model_cpu_offload()
    for lag, expected in whole.items():
        torch.testing.assert_close(sample(pipe, lag=lag, latents=latents).cpu(), expected, atol=1e-3, rtol=1e-2)
        assert pipe.unet.device.type == pipe.text_encoder.device.type == "cpu", "until the next call"
