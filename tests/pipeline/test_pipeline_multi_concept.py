"""Several residuals for users: PersonalizedPipeline, and ``persres generate --with``."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from persres.cli.main import main
from persres.config.schema import Base, SamplingConfig
from persres.errors import PersresError
from persres.models.diffusion import load_diffusion
from persres.pipeline import PersonalizedPipeline
from persres.residuals.bank import stack_banks
from persres.sampling.multi_concept import add_numbered_tokens
from persres.sampling.sample import MultiConceptImage, Request, sample_batch
from tests.pipeline.test_pipeline import CALL, hold_as_stages_do, noise, write

PROMPT = "a photo of a {mug0} next to a {mug1}"
PHRASES = ("<v1*> mug", "<v2*> mug")
FULL = "a photo of a <v1*> mug next to a <v2*> mug"


@pytest.fixture(scope="module", params=["sd14", "sdxl"])
def model(request, tmp_path_factory):
    from tests.support.family_models import save_family

    return save_family(request.param, tmp_path_factory.mktemp("several"))


@pytest.fixture
def pipe(model, tmp_path):
    from diffusers import DDIMScheduler

    made = PersonalizedPipeline.from_pretrained(model)
    made.scheduler = DDIMScheduler.from_config(made.scheduler.config, clip_sample=False)
    made.set_progress_bar_config(disable=True)
    hold_as_stages_do(made)
    for seed in range(2):
        write(model, tmp_path / f"r{seed}.safetensors", seed)
        made.load_residual(tmp_path / f"r{seed}.safetensors")
    return made.set_residuals(["mug0", "mug1"])


@pytest.mark.parametrize("lag", [False, "auto"])
def test_images_equal_the_librarys(model, pipe, lag, monkeypatch):
    latents = noise(pipe)
    output = pipe([PROMPT, PROMPT], lag=lag, latents=latents, output_type="pt", return_masks=bool(lag), **CALL)
    base = Base(model=str(model), resolution=CALL["height"])
    diffusion = load_diffusion(base, "cpu")
    add_numbered_tokens(diffusion, ("<v1*>", "<v2*>"), base.rare_token)
    bank = stack_banks([one.bank for one in pipe.multi_concept.values()])
    images = [MultiConceptImage(FULL, PHRASES, (0, 1), FULL, i) for i in range(2)]
    sampling = SamplingConfig(variant="ours", steps=2, lag=lag)
    monkeypatch.setattr("persres.sampling.sample.starting_noise", lambda draws, shape: latents)
    [(ours, masks)] = sample_batch(diffusion, [Request(images, sampling, bank)], CALL["height"])
    torch.testing.assert_close(output.images, (ours / 2 + 0.5).clamp(0, 1), atol=2e-4, rtol=1e-3)
    if lag:
        torch.testing.assert_close(output.masks, masks, atol=1e-5, rtol=1e-4)
        assert output.masks.sum(1).max() <= 1 + 1e-6


def test_braces_and_phrases_say_the_same_and_strength_0_is_the_base_model(pipe):
    latents = noise(pipe, 1)

    def sample(text: str, **arguments) -> torch.Tensor:
        return pipe(text, latents=latents, output_type="pt", **(CALL | arguments)).images

    assert [one.phrase for one in pipe.multi_concept.values()] == list(PHRASES)
    ours = sample(PROMPT, lag="auto")
    assert torch.equal(ours, sample(FULL, lag="auto"))
    assert (ours - sample(FULL, lag=False)).abs().max() > 1e-3, "masks keep part of the image"
    weak = sample(FULL, lag="auto", strength=0.0)
    torch.testing.assert_close(weak, pipe.set_residual(None)(FULL, latents=latents, output_type="pt", **CALL).images)
    assert pipe.multi_concept == {}


def test_without_guidance_and_with_several_images_a_prompt(pipe):
    arguments = CALL | {"guidance_scale": 1.0, "num_images_per_prompt": 2}
    output = pipe([PROMPT, FULL], lag="auto", latents=noise(pipe, 4), return_masks=True, **arguments)
    assert len(output.images) == 4 and output.masks.shape[:2] == (4, 2)


def test_invalid_calls_are_one_clear_error(model, pipe, tmp_path):
    with pytest.raises(PersresError, match="does not name mug1"):
        pipe("a photo of a {mug0}", lag="auto", **CALL)
    with pytest.raises(PersresError, match="<v2"):
        pipe("a photo of a <v1*> mug", lag="auto", **CALL)
    with pytest.raises(PersresError, match="no residual 'mug7'"):
        pipe.set_residuals(["mug0", "mug7"])
    with pytest.raises(PersresError, match="named twice"):
        pipe.set_residuals(["mug0", "mug0"])
    for seed in range(2, 5):
        write(model, tmp_path / "r.safetensors", seed)
        pipe.load_residual(tmp_path / "r.safetensors")
    with pytest.raises(PersresError, match="5 concepts in one image"):
        pipe.set_residuals([f"mug{i}" for i in range(5)])
    with pytest.raises(PersresError, match="prompt_embeds"):
        pipe.set_residuals(["mug0", "mug1"])(prompt_embeds=torch.zeros(1, 3, 3), **CALL)
    assert pipe.unload_residual("mug1").multi_concept == {}


def test_generate_with_another_residual(model, tmp_path, capsys):
    if "sdxl" in str(model):
        pytest.skip("one family is enough for the command line")
    for seed in range(2):
        write(model, tmp_path / f"thing_{seed}.safetensors", seed)
    files = [str(tmp_path / f"thing_{seed}.safetensors") for seed in range(2)]
    call = ["generate", files[0], "--with", files[1], "--out", str(tmp_path / "out"), "--steps", "2", "--device", "cpu"]
    assert main([*call, "--prompt", "a photo of a {1} next to a {thing_1}"]) == 0
    (path,) = (tmp_path / "out").glob("*.png")
    metadata = json.loads(Image.open(path).text["persres"])
    assert metadata["prompt"] == FULL and metadata["residuals"] == ["thing_0.safetensors", "thing_1.safetensors"]
    assert len(metadata["residuals_sha256"]) == 2 and metadata["lag"] == "auto"
    capsys.readouterr()
    assert main([*call, "--prompt", "a photo of a {1}"]) == 1
    assert "does not name thing_1" in capsys.readouterr().err
    assert main([*call, "--with", files[1], "--prompt", "a {1} and a {2}"]) == 1
    assert "given twice" in capsys.readouterr().err
