"""PersonalizedPipeline next to diffusers' own class: whatever a user does with one, the other does too, and neither disturbs the other."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import threading

import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
    ControlNetModel,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from PIL import Image

from persres.errors import PersresError
from persres.pipeline import PERSONALIZED, PersonalizedPipeline
from persres.residuals.bank import ResidualBank
from persres.residuals.file import save_residual
from persres.residuals.targets import find_targets
from persres.sampling.mask_config import MaskConfig
from persres.seeding import generator
from tests.exports.test_exports import saved, spec_of
from tests.sampling.test_masked_lora import ATTENTION, TOWER
from tests.sampling.test_masked_lora import write as write_lora
from tests.support.family_models import save_family
from tests.support.small_models import tiny_unet

TEXT, BASE_TEXT = "a photo of a <v*> mug on the beach", "a photo of a sks mug on the beach"
CALL = {"num_inference_steps": 2, "guidance_scale": 6.0, "height": 32, "width": 32, "output_type": "pt"}
LAGS = (False, True, "auto")


def quiet(pipe):
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def residual(tmp_path_factory):
    path = tmp_path_factory.mktemp("conventions") / "mug.safetensors"
    saved(tiny_unet(), path)
    return path


@pytest.fixture
def pipe(tiny_pipeline, residual):
    made = quiet(PersonalizedPipeline.from_pretrained(tiny_pipeline, safety_checker=None))
    return made.load_residual(residual, allow_other_base=True)


@pytest.fixture
def plain(tiny_pipeline):
    return quiet(StableDiffusionPipeline.from_pretrained(tiny_pipeline, safety_checker=None))


def noise(height: int = 8, width: int = 8, count: int = 1) -> torch.Tensor:
    return torch.randn(count, 4, height, width, generator=torch.Generator().manual_seed(0))


def sample(pipe, text=TEXT, **more) -> torch.Tensor:
    return pipe(text, **(CALL | {"latents": noise()} | more)).images


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-4, rtol=1e-3)


# One class among diffusers' own


def test_it_is_a_pipeline_of_diffusers(pipe, plain):
    assert isinstance(pipe, StableDiffusionPipeline) and isinstance(pipe, PersonalizedPipeline)
    assert set(dir(plain)) <= set(dir(pipe)) and pipe.components.keys() == plain.components.keys()
    theirs, ours = (inspect.signature(type(p).__call__).parameters for p in (plain, pipe))
    assert list(ours)[: len(theirs) - 1] == list(theirs)[:-1], "the same, in the same order"
    assert set(ours) - set(theirs) == {"lag", "strength", "uncond_rule", "return_masks"}
    arguments = {"num_inference_steps": 2, "latents": noise(8, 16), "output_type": "pt"}
    assert torch.equal(pipe(TEXT, 32, 64, **arguments).images, pipe(TEXT, height=32, width=64, **arguments).images)
    with pytest.raises(TypeError, match="from_pipe"):
        PersonalizedPipeline(plain)


def test_wrong_calls_raise_what_diffusers_raises(pipe, plain, tiny_pipeline):
    for call in (
        {"prompt": TEXT, "callback_on_step_end_tensor_inputs": ["nothing"]},
        {"prompt": 7},
        {"prompt": None},
        {"prompt": TEXT, "prompt_embeds": torch.zeros(1)},
    ):
        errors = []
        for each in (plain, pipe):
            try:
                each(**call)
            except Exception as error:
                errors.append(type(error))
        assert len(errors) == 2 and errors[0] is errors[1], (call, errors)
    with pytest.raises(ValueError, match="`str` or `list`"):
        pipe(7, lag=True)
    for arguments in ({"variant": "fp16"}, {"revision": 3, "variant": "x"}):
        for kind in (StableDiffusionPipeline, PersonalizedPipeline):
            with pytest.raises((ValueError, OSError)):
                kind.from_pretrained(tiny_pipeline, **arguments)
    with pytest.raises(TypeError):
        pipe(TEXT, 32, 32, height=32)


def test_it_is_saved_as_diffusers_pipeline_and_says_what_is_not(pipe, plain, tmp_path, caplog):
    pipe.save_pretrained(tmp_path / "saved")
    assert "residuals are not saved with the pipeline (my_mug)" in caplog.text
    again = quiet(DiffusionPipeline.from_pretrained(tmp_path / "saved"))
    assert type(again) is StableDiffusionPipeline and len(again.tokenizer) == len(plain.tokenizer)
    assert torch.equal(sample(again, BASE_TEXT), sample(plain, BASE_TEXT))


@pytest.mark.parametrize("family", ["sd14", "sdxl"])
def test_every_task_has_a_class_that_carries_the_residual(family, tmp_path):
    from tests.pipeline.test_pipeline import write

    folder = save_family(family, tmp_path / "model")
    write(folder, tmp_path / "r.safetensors")
    pipe = quiet(PersonalizedPipeline.from_pretrained(folder)).load_residual(tmp_path / "r.safetensors")
    assert isinstance(pipe, StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline)
    image, mask = Image.new("RGB", (64, 64), "green"), Image.new("L", (64, 64), 255)
    call = {"image": image, "num_inference_steps": 2, "strength": 0.9, "output_type": "pt"}
    for auto, more in ((AutoPipelineForImage2Image, {}), (AutoPipelineForInpainting, {"mask_image": mask})):
        other = auto.from_pipe(pipe)
        other.set_progress_bar_config(disable=True)
        assert isinstance(other, PersonalizedPipeline) and other.active == "mug0" and other.unet is pipe.unet

        def images(lag, scale=1.0, other=other, more=more):
            kwargs = {"cross_attention_kwargs": {"scale": scale}, "generator": torch.Generator().manual_seed(0)}
            return other(TEXT, lag=lag, **call, **more, **kwargs).images

        base = images(False, 0.0)
        assert (images(False) - base).abs().max() > 1e-3 and (images("auto") - base).abs().max() > 1e-3
        assert not torch.equal(images(False), images("auto"))
        back = AutoPipelineForText2Image.from_pipe(other)
        assert type(back) is type(pipe) and back.residuals == pipe.residuals
        kind = type(other)._plain
        with pytest.raises(PersresError, match=rf"{kind.__name__} has no residuals, and mug0 is active"):
            kind.from_pipe(pipe)
        assert type(kind.from_pipe(pipe.set_residual(None))) is kind
        pipe.set_residual("mug0")


def test_from_pipe_keeps_the_parts_and_their_precision(plain, residual):
    ours = PersonalizedPipeline.from_pipe(plain)
    assert ours.unet is plain.unet and ours.model == plain.config["_name_or_path"]
    plain.to(torch.bfloat16)
    assert PersonalizedPipeline.from_pipe(plain).unet.dtype == torch.bfloat16
    plain.vae.float()
    mixed = PersonalizedPipeline.from_pipe(plain)
    assert (mixed.unet.dtype, mixed.vae.dtype) == (torch.bfloat16, torch.float32)
    assert PersonalizedPipeline.from_pipe(StableDiffusionImg2ImgPipeline.from_pipe(plain)).__class__ is PERSONALIZED["StableDiffusionImg2ImgPipeline"]  # fmt: skip
    with pytest.raises(PersresError, match="is not supported"):
        PersonalizedPipeline.from_pipe(DiffusionPipeline())


# The parts that pipelines share


def test_a_plain_pipeline_with_the_same_parts_draws_the_base_model(pipe, plain):
    base = sample(plain, BASE_TEXT)
    shared = quiet(StableDiffusionPipeline(**pipe.components, requires_safety_checker=False))
    other = quiet(StableDiffusionPipeline.from_pipe(pipe))
    during = []

    def draw(*step):
        during.append(sample(shared, BASE_TEXT))
        return step[3]

    shared.scheduler = DDIMScheduler.from_config(shared.scheduler.config)
    for lag in LAGS:
        with_callback = sample(pipe, lag=lag, callback_on_step_end=draw)
        assert not close(with_callback, base) and torch.equal(with_callback, sample(pipe, lag=lag))
    assert all(torch.equal(image, base) for image in (*during, sample(shared, BASE_TEXT), sample(other, BASE_TEXT)))


@pytest.mark.parametrize("subject", [False, True])
def test_threads_draw_what_one_draws(pipe, tmp_path, subject):
    if subject:
        pipe.load_residual(write_lora(pipe, tmp_path / "l.safetensors", tower=TOWER), "lora", subject="mug")
    calls = [{"lag": lag, "latents": noise() * (1 + i / 10)} for i, lag in enumerate((*LAGS, *LAGS))]
    expected = [sample(pipe, **call) for call in calls]
    results = [None] * len(calls)

    def work(i: int) -> None:
        results[i] = sample(pipe, **calls[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in pipe.unet.modules())


def test_a_call_inside_a_callback_of_another(pipe):
    whole, masked, inner = sample(pipe), sample(pipe, lag=True), []

    def draw(*step):
        scheduler, pipe.scheduler = pipe.scheduler, DDIMScheduler.from_config(pipe.scheduler.config)
        inner.append(pipe(TEXT, **CALL | {"latents": noise()}).images)
        pipe.scheduler = scheduler
        return step[3]

    state = {name: getattr(pipe, f"_{name}", None) for name in ("guidance_scale",)}
    assert torch.equal(sample(pipe, lag=True, callback_on_step_end=draw), masked) and state
    assert all(torch.equal(image, whole) for image in inner)


@pytest.mark.parametrize(("how", "lags"), [("the whole", (True, False)), ("a block", ("auto",))])
def test_a_compiled_unet_draws_the_same(pipe, how, lags):
    """Compiled before the residual acts; the graphs of the base model must not serve for it, nor those of one call for another."""
    graphs = []

    def backend(graph, _example):
        graphs.append(graph)
        return graph.forward

    call = {"num_inference_steps": 1}
    expected = {lag: sample(pipe, lag=lag, **call) for lag in lags}
    base = sample(pipe.set_residual(None), **call)
    if how == "the whole":
        pipe.unet = torch.compile(pipe.unet, backend=backend)
    else:
        pipe.unet.up_blocks[-1].compile(backend=backend)
    assert close(sample(pipe, **call), base) and graphs
    pipe.set_residual("my_mug")
    for lag in lags:
        assert close(sample(pipe, lag=lag, **call), expected[lag]), lag
    compiled = len(graphs)
    assert close(sample(pipe, lag=lags[0], **call), expected[lags[0]]) and len(graphs) == compiled, "not again"
    assert close(sample(pipe.set_residual(None), **call), base)


class Counting(AttnProcessor2_0):
    """A user's processor: prompt-to-prompt and style-aligned have such."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __call__(self, *arguments, **named):
        self.calls += 1
        return super().__call__(*arguments, **named) * 1.5


@pytest.mark.parametrize("subject", [False, True])
def test_a_users_attention_processor_stays_in_place(pipe, plain, tmp_path, subject):
    if subject:
        pipe.load_residual(write_lora(pipe, tmp_path / "l.safetensors"), "lora", subject="mug")
    before = sample(pipe, lag=True)
    processor = Counting()
    pipe.unet.set_attn_processor(processor)
    for lag in LAGS:
        calls = processor.calls
        image = sample(pipe, lag=lag)
        assert processor.calls > calls and pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.processor is processor  # fmt: skip
        assert not close(image, before)
    plain.unet.set_attn_processor(Counting())
    assert close(sample(pipe, strength=0.0, lag=True), sample(plain, BASE_TEXT))
    pipe.unet.set_attn_processor(AttnProcessor())
    assert close(sample(pipe, lag=True), before)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("ends", [("proj_out",), (*ATTENTION, "proj_in", "conv1")])
def test_a_style_lora_of_diffusers_before_and_after(pipe, plain, residual, tmp_path, first, ends):
    """Both act; unloading one leaves the other."""
    style = write_lora(plain, tmp_path / "style.safetensors", ends=ends, tower=TOWER)
    ours = sample(pipe)
    plain.load_lora_weights(str(tmp_path), weight_name=style.name)
    theirs = sample(plain, BASE_TEXT)
    if first:
        pipe.unload_residual("my_mug").load_lora_weights(str(tmp_path), weight_name=style.name)
        pipe.load_residual(residual, allow_other_base=True)
    else:
        pipe.load_lora_weights(str(tmp_path), weight_name=style.name)
    both = {lag: sample(pipe, lag=lag) for lag in LAGS}
    assert close(sample(pipe, strength=0.0), theirs)
    assert all((image - theirs).abs().max() > 1e-3 and (image - ours).abs().max() > 1e-3 for image in both.values())
    assert not close(both[False], both[True])
    everywhere = MaskConfig(threshold="otsu", source_blocks="confidence_weighted", policy="scenes")
    assert close(sample(pipe, "a watercolour painting of a <v*> mug", lag=everywhere), sample(pipe, "a watercolour painting of a <v*> mug"))  # fmt: skip
    pipe.unload_lora_weights()
    assert close(sample(pipe), ours)


def test_a_style_lora_next_to_a_subject_lora(pipe, plain, tmp_path):
    style = write_lora(plain, tmp_path / "style.safetensors", ends=(*ATTENTION, "conv1"), tower=TOWER, alpha=1.0)
    subject = write_lora(plain, tmp_path / "subject.safetensors", tower=TOWER)
    pipe.load_residual(subject, subject="mug")
    alone = {lag: sample(pipe, BASE_TEXT, lag=lag) for lag in LAGS}
    plain.load_lora_weights(str(tmp_path), weight_name=style.name, adapter_name="style")
    theirs = sample(plain, BASE_TEXT)
    plain.load_lora_weights(str(tmp_path), weight_name=subject.name, adapter_name="subject")
    plain.set_adapters(["style", "subject"])
    pipe.load_lora_weights(str(tmp_path), weight_name=style.name)
    assert close(sample(pipe, BASE_TEXT), sample(plain, BASE_TEXT)), "the sum of both, as diffusers has it"
    assert close(sample(pipe, BASE_TEXT, strength=0.0), theirs)
    assert not close(sample(pipe, BASE_TEXT, lag="auto"), theirs)
    pipe.unload_lora_weights()
    assert all(close(sample(pipe, BASE_TEXT, lag=lag), image) for lag, image in alone.items())


def ip_adapter(unet) -> dict:
    """Random weights of an IP-Adapter with four image tokens."""
    draw, parts = torch.Generator().manual_seed(0), {}
    layers = [path for path in unet.attn_processors if "attn2" in path]
    for number, path in enumerate(layers):
        attn = unet.get_submodule(path.removesuffix(".processor"))
        for name in ("to_k_ip", "to_v_ip"):
            parts[f"{2 * number + 1}.{name}.weight"] = torch.randn(attn.to_k.weight.shape, generator=draw) / 5
    image = {"proj.weight": torch.randn(4 * 24, 6, generator=draw), "proj.bias": torch.zeros(4 * 24)}
    return {"image_proj": image | {"norm.weight": torch.ones(24), "norm.bias": torch.zeros(24)}, "ip_adapter": parts}


@pytest.mark.parametrize("subject", [False, True])
def test_an_ip_adapter(pipe, plain, tmp_path, subject):
    embeds = [torch.randn(2, 1, 6, generator=torch.Generator().manual_seed(1))]
    if subject:
        pipe.load_residual(write_lora(pipe, tmp_path / "l.safetensors"), "lora", subject="mug")
    without = sample(pipe, lag=True)
    for each in (pipe, plain):
        each.load_ip_adapter(ip_adapter(each.unet), subfolder="", weight_name="", image_encoder_folder=None)
    base = sample(plain, BASE_TEXT, ip_adapter_image_embeds=embeds)
    images = {lag: sample(pipe, lag=lag, ip_adapter_image_embeds=embeds) for lag in LAGS}
    assert close(sample(pipe, strength=0.0, lag=True, ip_adapter_image_embeds=embeds), base)
    for lag, image in images.items():
        assert not close(image, base) and not close(image, without), lag
    assert not close(images[True], images[False])


# Prompts


def test_textual_inversions_come_and_go(pipe, plain):
    before, masked = sample(pipe), sample(pipe, lag=True)
    for each in (pipe, plain):
        each.load_textual_inversion({"<cat>": torch.full((24,), 0.3)})
    pipe.unload_textual_inversion()
    plain.unload_textual_inversion()
    assert close(sample(pipe), before) and close(sample(pipe, lag=True), masked)
    theirs_too = {"<v*>": torch.full((24,), 0.5)}
    for each in (pipe, plain):
        each.load_textual_inversion(theirs_too)
    assert close(sample(pipe), before), "the residual that acts has its V*"
    theirs = sample(plain, TEXT)
    assert close(sample(pipe.set_residual(None)), theirs), "the base model has the user's"
    assert close(sample(pipe.unload_residual("my_mug")), theirs)
    assert not close(theirs, sample(plain, BASE_TEXT))


def test_lag_reads_the_positions_that_the_text_encoder_reads(pipe, plain):
    """A multi-vector embedding before the concept moves its words."""
    vectors = {"<long>": torch.randn(3, 24, generator=torch.Generator().manual_seed(0))}
    for each in (pipe, plain):
        each.load_textual_inversion(vectors)
    positions = pipe._positions([pipe.residuals["my_mug"]], ["a <long> and a <v*> mug"])[0, 0].nonzero().flatten()
    ids = plain.tokenizer(plain.maybe_convert_prompt("a <long> and a sks mug", plain.tokenizer)).input_ids
    words = plain.tokenizer.convert_ids_to_tokens([ids[i] for i in positions])
    assert words == ["sks</w>", "mug</w>"] and int(positions[0]) == 1 + 6


def with_vector(pipe, tmp_path):
    saved(tiny_unet(), tmp_path / "vector.safetensors", token=torch.linspace(-1, 1, 24))
    return pipe.load_residual(tmp_path / "vector.safetensors", "vector", allow_other_base=True)


@pytest.mark.parametrize("trained", [False, True])
def test_embeddings_of_encode_prompt(pipe, tmp_path, trained):
    if trained:
        without = sample(pipe)
        with_vector(pipe, tmp_path)
        assert not close(sample(pipe), without), "V* has its own vector"
    positive, negative = pipe.encode_prompt(TEXT, "cpu", 1, True)
    embeds = {"prompt_embeds": positive, "negative_prompt_embeds": negative}
    for lag in LAGS:
        assert torch.equal(sample(pipe, None, lag=lag, **embeds), sample(pipe, lag=lag)), lag
    both, none = pipe.encode_prompt([TEXT, "a <v*> mug"], "cpu", 2, True)
    call = {"prompt_embeds": both, "negative_prompt_embeds": none, "latents": noise(count=4)}
    expected = sample(pipe, [TEXT, TEXT, "a <v*> mug", "a <v*> mug"], lag=True, latents=noise(count=4))
    assert close(sample(pipe, None, lag=True, **call), expected)
    with pytest.raises(PersresError, match="the very tensor"):
        sample(pipe, None, lag=True, **embeds | {"prompt_embeds": positive * 1})
    assert torch.equal(sample(pipe, None, **embeds | {"prompt_embeds": positive * 1}), sample(pipe)), "no words needed"


@pytest.mark.parametrize("lag", LAGS)
def test_embeddings_that_a_callback_changes_in_place(pipe, plain, lag):
    def halved(_pipe, step, _t, values):
        values["prompt_embeds"].mul_(0.5)
        return values

    call = {"callback_on_step_end": halved, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    assert not close(sample(pipe, lag=lag, **call), sample(pipe, lag=lag))
    assert close(sample(pipe, lag=lag, strength=0.0, **call), sample(plain, BASE_TEXT, **call))


@pytest.mark.parametrize("lag", LAGS)
def test_the_scale_of_diffusers_scales_the_residual(pipe, tmp_path, lag):
    for name in ("my_mug", "lora"):
        if name == "lora":
            pipe.load_residual(write_lora(pipe, tmp_path / "l.safetensors", tower=TOWER), "lora", subject="mug")
        weaker = sample(pipe, lag=lag, cross_attention_kwargs={"scale": 0.4})
        assert close(weaker, sample(pipe, lag=lag, strength=0.4)) and not close(weaker, sample(pipe, lag=lag))
        half = sample(pipe, lag=lag, strength=0.8, cross_attention_kwargs={"scale": 0.5})
        assert close(half, weaker)


# Masks


@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 40), (40, 72), (56, 24), (36, 52), (4, 4), (8, 4)])
@pytest.mark.parametrize("subject", [False, True])
def test_masks_at_any_size(pipe, tmp_path, height, width, subject):
    if subject:
        pipe.load_residual(write_lora(pipe, tmp_path / "l.safetensors"), "lora", subject="mug")
    latents = noise(height // 4, width // 4)
    for guidance in (6.0, 1.0):
        for lag in (True, "auto"):
            call = {"height": height, "width": width, "latents": latents, "guidance_scale": guidance}
            try:
                sample(pipe, **call)
            except ValueError:  # a size that diffusers refuses
                continue
            output = pipe(TEXT, lag=lag, return_masks=True, **CALL | call)
            assert output.images.shape[-2:] == (height, width) and output.masks.shape == (1, height // 4, width // 4)
            assert float(output.masks.min()) >= 0 and float(output.masks.max()) <= 1


@pytest.mark.parametrize("count", [1, 2])
def test_masks_where_guidance_ends_early(pipe, plain, count):
    def end(pipe, step, _t, values):
        if step == 0:
            pipe._guidance_scale = 0.0
            values["prompt_embeds"] = values["prompt_embeds"].chunk(2)[-1]
        return values

    call = {"callback_on_step_end": end, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    call |= {"num_inference_steps": 3, "latents": noise(count=count)}
    for lag in (True, "auto"):
        output = pipe([TEXT] * count, lag=lag, return_masks=True, **CALL | call)
        assert output.masks.shape == (count, 8, 8)
    assert close(sample(pipe, [TEXT] * count, strength=0.0, lag=True, **call), sample(plain, [BASE_TEXT] * count, **call))  # fmt: skip


def test_fused_attention(pipe, tmp_path):
    """Fusing leaves a residual of output projections as it is; a delta on fused layers would be left out, and is refused."""
    expected = {lag: sample(pipe, lag=lag) for lag in LAGS}
    lora = write_lora(pipe, tmp_path / "l.safetensors", ends=ATTENTION)
    pipe.load_residual(lora, "lora", subject="mug").set_residual("my_mug").fuse_qkv_projections(vae=False)
    assert all(close(sample(pipe, lag=lag), image) for lag, image in expected.items())
    pipe.set_residual("lora")
    for lag in (False, "auto"):
        with pytest.raises(PersresError, match=r"to_[qkv] is fused with others.*unfuse_qkv_projections"):
            sample(pipe, lag=lag)
    pipe.unfuse_qkv_projections(vae=False)
    assert not close(sample(pipe), sample(pipe, strength=0.0))


# Residuals and the parts that a pipeline is made from


def test_a_pipeline_takes_the_residuals_of_the_one_it_is_made_from(pipe):
    """Not those of the newest one with the same U-Net, which may be gone or have another residual active."""
    first = AutoPipelineForImage2Image.from_pipe(pipe)
    assert first.active == "my_mug"
    first.set_residual(None)
    assert AutoPipelineForInpainting.from_pipe(pipe).active == PersonalizedPipeline.from_pipe(pipe).active == "my_mug"
    assert AutoPipelineForText2Image.from_pipe(first).active is None
    del first
    gc.collect()
    assert AutoPipelineForImage2Image.from_pipe(pipe).active == "my_mug"
    pipe.unet = tiny_unet(seed=1)
    other = AutoPipelineForText2Image.from_pipe(pipe)
    assert other.active == "my_mug" and not close(sample(other), sample(other, strength=0.0))
    assert AutoPipelineForImage2Image.from_pipe(copy.deepcopy(pipe)).active == "my_mug"


def test_copies_and_pickles_draw_the_same(pipe, plain, tmp_path):
    with_vector(pipe, tmp_path)
    expected = {lag: sample(pipe, lag=lag) for lag in LAGS}
    for made in (copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))):  # noqa: S301
        assert torch.equal(sample(made(plain)), sample(plain))
        other = made(pipe)
        assert all(torch.equal(sample(other, lag=lag), image) for lag, image in expected.items())
        other.set_residual(None)
        assert torch.equal(sample(pipe), expected[False]), "each has its own active residual"


def test_a_pipeline_without_some_parts(pipe, plain, tiny_pipeline, residual, tmp_path):
    """Text encoders in one pipeline, the U-Net in another: what people with little memory do."""
    without = {"safety_checker": None, "text_encoder": None, "tokenizer": None}
    text = {"safety_checker": None, "unet": None, "vae": None}
    for kind in (StableDiffusionPipeline, PersonalizedPipeline):
        assert torch.equal(kind.from_pretrained(tiny_pipeline, **text).encode_prompt(BASE_TEXT, "cpu", 1, False)[0], plain.encode_prompt(BASE_TEXT, "cpu", 1, False)[0])  # fmt: skip
    lora = write_lora(pipe, tmp_path / "tower.safetensors", tower=TOWER)
    positive, negative = plain.encode_prompt(BASE_TEXT, "cpu", 1, True)
    embeds = {"prompt_embeds": positive, "negative_prompt_embeds": negative}
    assert torch.equal(sample(quiet(StableDiffusionPipeline.from_pretrained(tiny_pipeline, **without)), None, **embeds), sample(plain, BASE_TEXT))  # fmt: skip
    ours = with_vector(quiet(PersonalizedPipeline.from_pretrained(tiny_pipeline, **without)), tmp_path)
    ours.load_residual(residual, allow_other_base=True)
    assert torch.equal(sample(ours, None, **embeds), sample(pipe))
    with pytest.raises(PersresError, match="layers of text_encoder, which this pipeline was loaded without"):
        ours.load_residual(lora, subject="mug")


@pytest.mark.parametrize("subject", [False, True])
def test_parts_that_accelerate_takes_off_before_and_after_loading(
    pipe, plain, tiny_pipeline, residual, tmp_path, subject
):
    """As enable_sequential_cpu_offload does with an accelerator: weights are on the meta device between passes."""
    from accelerate import cpu_offload

    lora = write_lora(pipe, tmp_path / "lora.safetensors", tower=TOWER)

    def load(target):
        target.load_residual(lora, subject="mug") if subject else target.load_residual(residual, allow_other_base=True)
        return target

    text = BASE_TEXT if subject else TEXT
    base, expected = sample(plain, BASE_TEXT), {lag: sample(load(pipe), text, lag=lag) for lag in LAGS}
    late = quiet(PersonalizedPipeline.from_pretrained(tiny_pipeline, safety_checker=None))
    for each in (plain, pipe, late):
        for part in (each.unet, each.text_encoder, each.vae):
            cpu_offload(part, torch.device("cpu"))
    assert next(late.unet.parameters()).is_meta and torch.equal(sample(plain, BASE_TEXT), base)
    for each in (pipe, load(late)):
        assert all(torch.equal(sample(each, text, lag=lag), image) for lag, image in expected.items())


def test_a_controlnet(pipe, plain):
    """One and several, with the guess mode; a plain pipeline with a ControlNet would leave the residual out, and is refused."""
    control = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 16, 32))
    draw = torch.Generator().manual_seed(0)
    for path, weight in control.named_parameters():
        if "controlnet" in path:
            torch.nn.init.normal_(weight, std=0.1, generator=draw)
    image = torch.rand(1, 3, 32, 32, generator=draw)
    for nets, call in ((control, {"image": image}), ([control] * 2, {"image": [image] * 2, "guess_mode": True})):
        ours, theirs = (AutoPipelineForText2Image.from_pipe(p, controlnet=nets) for p in (pipe, plain))
        for each in (ours, theirs):
            each.set_progress_bar_config(disable=True)
        base, whole = sample(theirs, BASE_TEXT, **call), sample(ours, **call)
        masked = ours(TEXT, lag=True, return_masks=True, **CALL | {"latents": noise()} | call)
        assert ours.active == "my_mug" and masked.masks.shape == (1, 8, 8)
        assert close(sample(ours, strength=0.0, lag=True, **call), base)
        assert not close(whole, base) and not close(masked.images, whole) and not close(masked.images, base)
        back = AutoPipelineForText2Image.from_pipe(ours, controlnet=None)
        assert type(back) is type(pipe) and torch.equal(sample(back), sample(pipe))
        with pytest.raises(PersresError, match="StableDiffusionControlNetPipeline has no residuals"):
            type(theirs).from_pipe(pipe, controlnet=nets)


def test_a_custom_pipeline_is_refused_while_a_residual_is_active(pipe, tmp_path):
    lines = ("from diffusers import StableDiffusionPipeline", "class Custom(StableDiffusionPipeline):", "    pass")
    (tmp_path / "pipeline.py").write_text("\n".join(lines))
    arguments = {"custom_pipeline": str(tmp_path), "trust_remote_code": True}
    with pytest.raises(PersresError, match="Custom has no residuals, and my_mug is active"):
        DiffusionPipeline.from_pipe(pipe, **arguments)
    assert type(DiffusionPipeline.from_pipe(pipe.set_residual(None), **arguments)).__name__ == "Custom"


def test_the_call_of_a_users_subclass_runs(tiny_pipeline, residual):
    class OneStep(PERSONALIZED["StableDiffusionPipeline"]):
        def __call__(self, *arguments, **named):
            return super().__call__(*arguments, **named | {"num_inference_steps": 1})

    made = quiet(OneStep.from_pretrained(tiny_pipeline, safety_checker=None)).load_residual(
        residual, allow_other_base=True
    )
    steps = []
    sample(made, lag=True, callback_on_step_end=lambda *step: steps.append(step[1]) or step[3])
    assert steps == [0]


# Calls


def test_the_older_callback_runs_outside_the_calls_hooks(pipe, plain):
    shared = quiet(StableDiffusionPipeline(**pipe.components, requires_safety_checker=False))
    base, during = sample(plain, BASE_TEXT), []
    for lag in LAGS:
        sample(pipe, lag=lag, callback=lambda *_: during.append(sample(shared, BASE_TEXT)), callback_steps=1)
    assert len(during) == 6 and all(torch.equal(image, base) for image in during)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_call_that_is_broken_off_leaves_nothing_behind(pipe, tmp_path, error):
    pipe.load_residual(write_lora(pipe, tmp_path / "l.safetensors", tower=TOWER), "lora", subject="mug")

    def fails(*_):
        raise error

    for name in ("my_mug", "lora"):
        pipe.set_residual(name)
        for lag in LAGS:
            before = sample(pipe, lag=lag)
            with pytest.raises(error):
                sample(pipe, lag=lag, callback_on_step_end=fails)
            parts = [*pipe.unet.modules(), *pipe.text_encoder.modules()]
            assert not any(m._forward_hooks or m._forward_pre_hooks for m in parts)
            assert torch.equal(sample(pipe, lag=lag), before)


@pytest.mark.parametrize("target", ["proj_in", "attn_kv"])
def test_lag_is_refused_for_layers_without_masks(pipe, tmp_path, target):
    bank = ResidualBank(find_targets(pipe.unet, target=target)).initialise(0, "scaled_normal", 0.5, generator("x"))
    spec = spec_of("none")
    spec["settings"]["target"] = target
    save_residual(tmp_path / "r.safetensors", bank.deltas(), {"spec": spec})
    pipe.load_residual(tmp_path / "r.safetensors", "ablation", allow_other_base=True)
    assert not close(sample(pipe), sample(pipe, strength=0.0))
    for lag in (True, "auto"):
        with pytest.raises(PersresError, match=r"masks apply to residuals of proj_out, but my_mug's has .*lag=False"):
            sample(pipe, lag=lag)


def test_a_vector_that_the_text_encoder_does_not_read(pipe, plain, tmp_path):
    """Beyond the last token of the prompt or of the negative prompt: diffusers cuts both, and says so."""
    far = "photo " * 30
    with_vector(pipe, tmp_path)
    assert close(sample(pipe, far + TEXT, strength=0.0), sample(plain, far + BASE_TEXT))
    assert close(sample(pipe, TEXT, negative_prompt=far + TEXT), sample(pipe, TEXT, negative_prompt=far))


def test_a_compiled_text_encoder(pipe, tmp_path):
    """The LoRA's text layers act, also where the compiled graph is older than they are."""
    path = write_lora(pipe, tmp_path / "l.safetensors", ends=(), tower=TOWER)
    encoded = {None: pipe.encode_prompt(TEXT, "cpu", 1, False)[0]}
    encoded["lora"] = pipe.load_residual(path, "lora", subject="mug").encode_prompt(TEXT, "cpu", 1, False)[0]
    pipe.text_encoder = torch.compile(pipe.text_encoder, backend="eager")
    for name in (None, "lora"):
        assert close(pipe.set_residual(name).encode_prompt(TEXT, "cpu", 1, False)[0], encoded[name])
    assert not close(*encoded.values())
    assert pipe.load_residual(path, "again", subject="mug").residuals["again"].towers[0]


TURNED = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}


def test_a_unet_that_replaces_the_first(pipe):
    """One with the same layers takes the residual; for one with others, the error names the layer."""
    expected = {lag: sample(pipe, lag=lag) for lag in LAGS}
    pipe.unet = copy.deepcopy(pipe.unet)
    assert all(torch.equal(sample(pipe, lag=lag), image) for lag, image in expected.items())
    for other in (tiny_unet(linear=True), type(pipe.unet).from_config(dict(pipe.unet.config) | TURNED)):
        pipe.unet = other
        for lag in (False, True):
            with pytest.raises(PersresError, match=r"does not fit the U-Net's layer .*proj_out, which was replaced"):
                sample(pipe, lag=lag)
