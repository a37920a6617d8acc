"""Images of several concepts and configs in one batch equal those of a batch each."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from persres.config.schema import SamplingConfig
from persres.errors import PersresError, UnitFailures
from persres.images import unzip_images
from persres.methods.common.batched_sampling import batch_key, sampling_job
from persres.sampling.sample import PromptCache, Request, sample_batch
from persres.stages.sample import sample_units
from persres.units.context import Context
from persres.units.unit import facts as known
from persres.units.unit import is_done
from persres.workflow import load_context, run_stage
from tests.sampling.test_sampling import bank_for, diffusion, items  # noqa: F401  (a fixture)

SIZE = 32


def bank_of(model, seed: int):
    bank = bank_for(model)
    with torch.no_grad():
        for number, factor in enumerate(bank.parameters()):
            factor.copy_(torch.randn(factor.shape, generator=torch.Generator().manual_seed(seed + number)) * 0.2)
    return bank


@pytest.mark.parametrize("rule", ["mask", "base", "full"])
@pytest.mark.parametrize("lag", [True, "auto"])
def test_each_image_is_what_it_is_alone(diffusion, lag, rule):  # noqa: F811
    plain, masked = (
        SamplingConfig(variant="a", steps=3),
        SamplingConfig(variant="a", steps=3, lag=lag, uncond_rule=rule, cfg_scale=4.0),
    )
    requests = [
        Request(items(2), plain, bank_of(diffusion, 1)),
        Request(items(3), SamplingConfig(steps=3, seed=5)),
        Request(items(1), masked, bank_of(diffusion, 2)),
        Request(items(2), masked, bank_of(diffusion, 3)),
    ]
    batched = sample_batch(diffusion, requests, SIZE)
    for request, (images, masks) in zip(requests, batched, strict=True):
        separate, expected_masks = sample_batch(
            diffusion, [Request(request.images, request.sampling, request.bank)], SIZE
        )[0]
        torch.testing.assert_close(images, separate, atol=2e-4, rtol=1e-3)
        assert (masks is None) == (expected_masks is None)
        if expected_masks is not None:
            torch.testing.assert_close(masks, expected_masks, atol=1e-4, rtol=1e-4)
    assert (batched[0][0][0] - batched[2][0][0]).abs().max() > 1e-2, "another concept, another image"


def test_without_a_residual_no_hook_and_no_mask(diffusion):  # noqa: F811
    sampling = SamplingConfig(steps=2)
    (first, none), (second, _) = sample_batch(
        diffusion, [Request(items(1), sampling), Request(items(2), sampling)], SIZE
    )
    torch.testing.assert_close(torch.cat([first, second[1:]]), sample_batch(diffusion, [Request(items(2), sampling)], SIZE)[0][0], atol=2e-4, rtol=1e-3)  # fmt: skip
    assert none is None and not diffusion.unet._forward_hooks


def test_what_a_batch_has_one_of_must_agree(diffusion):  # noqa: F811
    bank = bank_of(diffusion, 1)
    with pytest.raises(PersresError, match="number of steps"):
        sample_batch(
            diffusion, [Request(items(1), SamplingConfig(steps=2)), Request(items(1), SamplingConfig(steps=3))], SIZE
        )
    configs = [SamplingConfig(variant="a", steps=2, lag=True), SamplingConfig(variant="a", steps=2, lag="auto")]
    with pytest.raises(PersresError, match="the same masks"):
        sample_batch(diffusion, [Request(items(1), config, bank) for config in configs], SIZE)


def test_a_prompt_is_read_once(diffusion, monkeypatch):  # noqa: F811
    read: list[str] = []
    encode = type(diffusion).encode
    monkeypatch.setattr(type(diffusion), "encode", lambda self, prompts: read.extend(prompts) or encode(self, prompts))
    texts = PromptCache(diffusion)
    first = texts(["a photo of a cat", "a photo of a dog", "a photo of a cat"])
    again = texts(["a photo of a dog"])
    assert read == ["", "a photo of a cat", "a photo of a dog"]
    assert torch.equal(first.states[1:2], again.states) and torch.equal(first.states[0], first.states[2])
    torch.testing.assert_close(first.states[:2], encode(diffusion, ["a photo of a cat", "a photo of a dog"]).states)


def small(tiny_profile, tmp_path, **runtime) -> Context:
    """Two concepts by three configs with one image per concept."""
    methods = {"base": {}, "ours": {"variant": "ours"}, "lag": {"variant": "ours", "lag": True}}
    changed = {
        "fetch": tiny_profile["fetch"] | {"concepts": ["heart_mug", "star_robot"]},
        "train": tiny_profile["train"] | {"variants": {"ours": {}}, "steps": 2},
        "sample": {"steps": 3, "images_per_prompt": 1, "prompts": 1, "configs": methods},
        "runtime": tiny_profile["runtime"] | runtime,
    }
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump({"profile": "tiny", "tiny": tiny_profile | changed}))
    return load_context(path, data=tmp_path / "data", work=tmp_path / "work")


def images_of(context: Context) -> dict[str, np.ndarray]:
    images = {}
    for archive in sorted((context.data / "samples").rglob("*.zip")):
        for name, image in unzip_images(archive).items():
            images[f"{archive.parent.name}/{archive.stem}/{name}"] = np.asarray(image).astype(int)
    return images


def test_units_with_few_images_share_a_batch(tiny_profile, tmp_path):
    context = small(tiny_profile, tmp_path, sample_batch=8)
    for stage in ("fetch", "macro_class", "train", "sample"):
        run_stage(stage, context)
    facts = {unit.name: known(unit, context.work) for unit in sample_units(context)}
    assert {name: seen.get("units_per_batch") for name, seen in facts.items()} == {
        "base/heart_mug": 4, "base/star_robot": 4, "ours/heart_mug": 4, "ours/star_robot": 4,
        "lag/heart_mug": 2, "lag/star_robot": 2,
    }  # fmt: skip
    batched = images_of(context)
    separate = Context(context.profile, tmp_path / "alone", tmp_path / "alone_work")
    shutil.copytree(context.data, separate.data)
    one_by_one = context.profile.runtime.model_copy(update={"sample_batch": 1})
    separate = replace(separate, profile=context.profile.model_copy(update={"runtime": one_by_one}))
    run_stage("sample", separate)
    assert not any("units_per_batch" in known(unit, separate.work) for unit in sample_units(separate))
    other = images_of(separate)
    assert set(batched) == set(other) and len(batched) == 8, "six images and two masks"
    for name, image in batched.items():
        assert np.abs(image - other[name]).mean() < 0.5, name
    assert np.abs(batched["ours/heart_mug/00_000.png"] - batched["base/heart_mug/00_000.png"]).mean() > 1


def test_a_broken_residual_fails_alone(tiny_profile, tmp_path):
    context = small(tiny_profile, tmp_path, sample_batch=8)
    for stage in ("fetch", "macro_class", "train"):
        run_stage(stage, context)
    (context.data / "learned" / "ours" / "star_robot.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UnitFailures) as failed:
        run_stage("sample", context)
    assert set(failed.value.failures) == {"ours/star_robot", "lag/star_robot"}
    assert all("star_robot.safetensors" in reason for reason in failed.value.failures.values())
    done = {unit.name for unit in sample_units(context) if is_done(unit, context.work)}
    assert done == {"base/heart_mug", "base/star_robot", "ours/heart_mug", "lag/heart_mug"}


def test_units_that_fill_a_batch_go_alone(tiny_profile, tmp_path):
    context = small(tiny_profile, tmp_path, sample_batch=8)
    for stage in ("fetch", "macro_class", "train"):
        run_stage(stage, context)
    units = sample_units(context)
    assert sampling_job(units, batch=8).batch_size == 8
    assert sampling_job(units, batch=1).run_many is None
    keys = {unit.name: batch_key(unit) for unit in units}
    assert keys["base/heart_mug"] == keys["ours/star_robot"] != keys["lag/heart_mug"] == keys["lag/star_robot"]
