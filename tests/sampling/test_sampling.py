"""Samplers, prompts, and images that do not depend on batch or shard."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from persres.config.schema import Base, SamplingConfig
from persres.errors import PersresError
from persres.models.diffusion import decode, load_diffusion
from persres.models.text_encoding import add_concept_token, concept_positions, encode_prompts
from persres.prompts import fill
from persres.residuals.bank import ResidualBank
from persres.residuals.targets import find_targets
from persres.sampling.sample import Request, sample_batch
from persres.sampling.samplers import guided, sample_ddim, starting_noise
from persres.seeding import generator
from persres.units.specs import ImageSpec

DRAWING = SamplingConfig(steps=4, lag=False, variant="ours", images_per_prompt=1)


@pytest.fixture
def diffusion(tiny_pipeline):
    load_diffusion.cache_clear()
    return load_diffusion(Base(model=str(tiny_pipeline), resolution=32, rare_token="sks"), "cpu")


def items(count: int) -> list[ImageSpec]:
    backgrounds = ["on the beach", "in the snow", "in the city", "in the forest", "on the grass"]
    return [
        ImageSpec(
            name=f"{i}",
            prompt=f"a photo of a <v*> mug {backgrounds[i]}",
            phrase="<v*> mug",
            image=i,
            plain=f"a photo of a mug {backgrounds[i]}",
        )
        for i in range(count)
    ]


def bank_for(diffusion) -> ResidualBank:
    bank = ResidualBank(find_targets(diffusion.unet)).initialise(0, "scaled_normal", 0.5, generator("s"))
    return bank.requires_grad_(False)


def test_ddim_with_a_perfect_model_recovers_the_image():
    """If ε is known exactly, every DDIM path ends at x0 whatever the number of steps."""
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=True
    )
    x0, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)

    def perfect(x, t):
        alpha = scheduler.alphas_cumprod[t]
        return (x - alpha.sqrt() * x0) / (1 - alpha).sqrt()

    for steps in (5, 50):
        first = DDIMScheduler.from_config(scheduler.config)
        first.set_timesteps(steps)
        alpha = scheduler.alphas_cumprod[first.timesteps[0]]
        start = alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise
        torch.testing.assert_close(sample_ddim(perfect, start, scheduler, steps), x0, atol=1e-3, rtol=1e-3)


def test_equals_the_diffusers_pipeline(diffusion, tiny_pipeline):
    """Base sampling is what a stranger gets from StableDiffusionPipeline with the same noise."""
    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    noise = starting_noise([generator("n")], (4, 8, 8))
    theirs = pipe(
        "a red mug", latents=noise, num_inference_steps=4, guidance_scale=6.0, eta=0.0, output_type="pt"
    ).images
    cond = encode_prompts(diffusion.tokenizer, diffusion.text_encoder, ["a red mug"])
    uncond = encode_prompts(diffusion.tokenizer, diffusion.text_encoder, [""])
    ours = decode(diffusion.vae, sample_ddim(guided(diffusion.unet, cond, uncond, 6.0), noise, diffusion.scheduler, 4))
    torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("lag", [False, True])
def test_batch_and_shard_do_not_change_a_image(diffusion, lag):
    bank, sampling = bank_for(diffusion), DRAWING.model_copy(update={"lag": lag})
    batched, masks = sample_batch(diffusion, [Request(items(5), sampling, bank)], 32)[0]
    parts = [
        sample_batch(diffusion, [Request(chunk, sampling, bank)], 32)[0]
        for chunk in (items(5)[:2], items(5)[2:3], items(5)[3:])
    ]
    torch.testing.assert_close(torch.cat([p for p, _ in parts]), batched, atol=1e-4, rtol=1e-4)
    assert (masks is not None) == lag
    if lag:
        assert (torch.cat([m for _, m in parts]) - masks).abs().mean() < 1e-3
        assert float(masks.mean()) == pytest.approx(0.5, abs=1e-3)


def test_methods_share_noise_and_differ(diffusion):
    bank = bank_for(diffusion)
    plain = [i.model_copy(update={"prompt": i.plain, "phrase": "mug"}) for i in items(2)]
    base, _ = sample_batch(diffusion, [Request(plain, DRAWING)], 32)[0]
    again, _ = sample_batch(diffusion, [Request(plain, DRAWING)], 32)[0]
    ours, _ = sample_batch(diffusion, [Request(items(2), DRAWING, bank)], 32)[0]
    lag, _ = sample_batch(diffusion, [Request(items(2), DRAWING.model_copy(update={"lag": True}), bank)], 32)[0]
    assert torch.equal(base, again)
    assert (ours - base).abs().max() > 1e-3
    assert (lag - ours).abs().max() > 1e-3


def test_v_star_holds_the_rare_tokens_embedding(diffusion):
    tokenizer, encoder = diffusion.tokenizer, diffusion.text_encoder
    table = encoder.get_input_embeddings().weight
    rare = tokenizer("sks", add_special_tokens=False).input_ids[0]
    star = tokenizer.convert_tokens_to_ids("<v*>")
    assert star == len(tokenizer) - 1
    assert torch.equal(table[star], table[rare])
    size = len(tokenizer)
    assert add_concept_token(tokenizer, encoder, "<v*>", "sks") == star
    assert len(tokenizer) == size, "adding twice changes nothing"
    both = encode_prompts(tokenizer, encoder, ["a photo of a <v*> mug", "a photo of a sks mug"])
    assert torch.equal(both[0], both[1])
    with pytest.raises(PersresError, match="one token"):
        add_concept_token(tokenizer, encoder, "<w*>", "unknownword")


def test_concept_positions(diffusion):
    tokenizer = diffusion.tokenizer
    positions = concept_positions(tokenizer, "a photo of a red <v*> mug on the beach", "<v*> mug")
    ids = tokenizer("a photo of a red <v*> mug on the beach").input_ids
    marked = [tokenizer.convert_ids_to_tokens(ids[i]) for i in positions.nonzero()[:, 0].tolist()]
    assert marked == ["<v*>", "mug</w>"]
    assert positions.shape == (24,)
    with pytest.raises(PersresError, match="shorten"):
        concept_positions(tokenizer, "a photo of a " + "red " * 30 + "<v*> mug", "<v*> mug")


def test_a_class_that_the_prompt_goes_on_with_counts_to_the_words_end(diffusion):
    """CustomConcept101 has "A pair of {}es on a coffee table.": the plural's tokens are not the class's."""
    tokenizer, prompt = diffusion.tokenizer, "a pair of <v*> mugs on the beach"
    length = {
        text: len(tokenizer(text, add_special_tokens=False).input_ids) for text in ("a pair of", prompt, "on the beach")
    }
    marked = concept_positions(tokenizer, prompt, "<v*> mug").nonzero()[:, 0].tolist()
    first, end = 1 + length["a pair of"], 1 + length[prompt] - length["on the beach"]
    assert marked == list(range(first, end)), "V* and all of 'mugs', behind the start token"


@pytest.mark.parametrize("template", ["a photo", "a {} and a {}"])
def test_a_prompt_has_one_place(template):
    with pytest.raises(PersresError, match="exactly once"):
        fill(template, "mug")


def test_a_missing_model_is_one_clear_error(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else it asks for 20 s
    load_diffusion.cache_clear()
    with pytest.raises(PersresError, match=r"cannot load the base model 'nobody/nothing'.*folder"):
        load_diffusion(Base(model="nobody/nothing"), "cpu")
