"""Every model family through the whole chain on photos, without weights: SD 1.4, SD 2.1 and SDXL, narrow and random."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DConditionModel

from persres.config.schema import Base, SamplingConfig
from persres.errors import PersresError
from persres.experiments.benchmarks.families import FAMILIES, sizes
from persres.images import unzip_images
from persres.methods.ours import Ours
from persres.models.diffusion import Diffusion, load_diffusion
from persres.residuals.bank import ResidualBank, merged_weights
from persres.residuals.file import load_bank, load_residual, save_residual
from persres.residuals.targets import find_targets
from persres.sampling.sample import Request, sample_batch
from persres.sampling.samplers import guided, sample_ddim, starting_noise
from persres.seeding import generator
from persres.training.residual_training import EncodedConcept, ResidualLoss, new_bank, train
from persres.units.specs import ImageSpec
from persres.workflow import STAGES, load_context, run_stage
from tests.support.family_models import RESOLUTION, narrow, save_family, write_photographs
from tests.support.residual_files import header_info

REAL = Path(__file__).parents[3] / "shared" / "data" / "dreambooth" / "dog"  # next to the project, where it exists
NAMES = ("sd14", "sd21", "sdxl")
ITEMS = [
    ImageSpec(
        name="0",
        prompt="a photo of a <v*> mug on the beach",
        phrase="<v*> mug",
        image=0,
        plain="a photo of a mug on the beach",
    )
]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("families")
    return {name: save_family(name, folder) for name in NAMES}


def base(models, name: str, **changes) -> Base:
    return Base(model=str(models[name]), resolution=RESOLUTION, **changes)


@pytest.fixture(scope="module", params=NAMES)
def family(request) -> str:
    return request.param


@pytest.fixture
def diffusion(models, family) -> Diffusion:
    return load_diffusion(base(models, family), "cpu")


def strong_bank(diffusion: Diffusion, gain: float = 0.5) -> ResidualBank:
    bank = ResidualBank(find_targets(diffusion.unet)).initialise(0, "scaled_normal", gain, generator("family"))
    return bank.requires_grad_(False)


def params(models, name: str, encoders: dict, tmp_path: Path, train_settings: dict | None = None, **base_more) -> Path:
    (tmp_path / "nouns.txt").write_text("mug\ncat\ndog\n")
    given_settings = {
        "base": {"model": str(models[name]), "resolution": RESOLUTION} | base_more,
        "encoders": encoders,
        "fetch": {"dataset": "folder", "folder": str(tmp_path / "photos")},
        "macro_class": {"nearest": True, "candidates": str(tmp_path / "nouns.txt")},
        "train": {"steps": 2, "batch_size": 1} | (train_settings or {}),
        "sample": {"steps": 2, "images_per_prompt": 1, "prompts": 2},
        "score": {},
        "tables": {"bootstrap": 200},
        "runtime": {"workers": 1, "device": "cpu", "sample_batch": 2},
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"profile": "family", "family": given_settings}))
    return tmp_path / "params.yaml"


def photos(tmp_path: Path) -> None:
    folder = write_photographs(tmp_path / "photos" / "generated")
    (folder / "concept.json").write_text(json.dumps({"macro_class": "mug"}))
    if REAL.is_dir():
        real = tmp_path / "photos" / "real_dog"
        real.mkdir()
        for photo in sorted(REAL.glob("*.jpg"))[:3]:
            shutil.copyfile(photo, real / photo.name)
        (real / "concept.json").write_text(json.dumps({"macro_class": "dog"}))


def test_the_whole_chain_on_photos(models, family, tiny_encoders, tmp_path):
    photos(tmp_path)
    where = load_context(params(models, family, tiny_encoders, tmp_path), None, tmp_path / "data", tmp_path / "work")
    for stage in STAGES:
        run_stage(stage, where)
    rows = pd.read_parquet(where.data / "scores" / "scores.parquet")
    concepts = sorted(p.name for p in (tmp_path / "photos").iterdir())
    assert len(rows) == len(concepts) * 3 * 2 and set(rows["concept"]) == set(concepts)
    assert rows[["clip_text", "clip_image", "dino"]].notna().all().all()
    table = pd.read_csv(where.data / "tables" / "table1.csv").set_index("config")
    count = ResidualBank(find_targets(load_diffusion(where.profile.base, "cpu").unet)).count()
    assert table.loc["ours", "params"] == count
    for concept in concepts:
        header = load_residual(where.data / "learned" / "ours" / f"{concept}.safetensors").header
        assert header.base.model == str(models[family])
        images = unzip_images(where.data / "samples" / "ours_lag" / f"{concept}.zip")
        assert {p.size for n, p in images.items() if not n.startswith("masks/")} == {(RESOLUTION, RESOLUTION)}
        assert sum(n.startswith("masks/") for n in images) == 2


def test_full_size_counts():
    """The paper's 983 M is SD 1.4's denoiser and text tower; residuals as the paper's rank rule gives them."""
    counted = {name: sizes(family) for name, family in FAMILIES.items()}
    assert counted == {
        "sd14": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
        "sd21": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
        "sdxl": {"unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840},
    }
    assert round((counted["sd14"]["unet"] + counted["sd14"]["text_encoder"]) / 1e6) == 983
    waiting = {name: sum(n for part, n in parts.items() if part != "unet") for name, parts in counted.items()}
    mib = {
        (name, kind): round(n * width / 2**20)
        for name, n in waiting.items()
        for kind, width in (("float32", 4), ("half", 2))
    }
    assert mib == {
        ("sd14", "float32"): 789,
        ("sd14", "half"): 394,
        ("sd21", "float32"): 1618,
        ("sd21", "half"): 809,
        ("sdxl", "float32"): 3438,
        ("sdxl", "half"): 1719,
    }  # what runtime.offload takes off the GPU


@pytest.mark.parametrize(
    ("name", "layers", "count"), [("sd14", 16, 1_239_040), ("sd21", 16, 1_239_040), ("sdxl", 11, 1_187_840)]
)
def test_full_size_residuals(name, layers, count):
    with torch.device("meta"):
        targets = find_targets(UNet2DConditionModel(**FAMILIES[name].unet))
        assert ResidualBank(targets).count() == count and len(targets) == layers
    assert {t.conv for t in targets} == {name == "sd14"}
    assert {(t.width, t.rank) for t in targets} <= {(320, 16), (640, 32), (1280, 64)}


def test_sampling_equals_diffusers_pipeline(models, family, diffusion):
    """Two towers, pooled prompt, sizes, the empty prompt, v-prediction: all as in diffusers."""
    pipe = DiffusionPipeline.from_pretrained(models[family], **({} if family == "sdxl" else {"safety_checker": None}))
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    size = {"height": RESOLUTION, "width": RESOLUTION}
    noise = starting_noise([generator("n")], (4, 16, 16))
    theirs = pipe(
        "a photo of a red mug",
        latents=noise,
        num_inference_steps=3,
        guidance_scale=6.0,
        eta=0.0,
        output_type="pt",
        **size,
    ).images
    denoise = guided(diffusion.unet, diffusion.encode(["a photo of a red mug"]), diffusion.unconditional(), 6.0)
    ours = diffusion.decode(sample_ddim(denoise, noise, diffusion.scheduler, 3))
    torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), theirs, atol=1e-4, rtol=1e-4)
    assert theirs.std() > 0.01, "a flat image would equal anything"


def test_v_star_in_every_tower_changes_nothing_but_the_word(diffusion):
    """V* reads as the rare word in all towers, and the pooled prompt is read at the end, not at V*'s high number."""
    for tokenizer, encoder in diffusion.towers:
        star, rare = tokenizer.convert_tokens_to_ids(["<v*>", "sks</w>"])
        table = encoder.get_input_embeddings().weight
        assert torch.equal(table[star], table[rare]) and star == len(tokenizer) - 1
    both = diffusion.encode(["a photo of a <v*> mug", "a photo of a sks mug"])
    assert torch.equal(both.states[0], both.states[1])
    assert all(torch.equal(value[0], value[1]) for value in both.added.values())
    assert set(both.added) == ({"text_embeds", "time_ids"} if diffusion.second else set())
    other = diffusion.encode(["a photo of a <v*> cat on the beach"])
    assert all((other.added["text_embeds"][0] - both.added["text_embeds"][0]).abs().max() > 1e-4 for _ in other.added)


def test_diffusers_loads_a_file_of_every_family(models, family, diffusion, tmp_path):
    """``load_lora_weights`` on the family's own pipeline gives the denoiser that ours is."""
    bank = strong_bank(diffusion)
    save_residual(tmp_path / "r.safetensors", bank.deltas(), {})
    pipe = DiffusionPipeline.from_pretrained(models[family], **({} if family == "sdxl" else {"safety_checker": None}))
    given_settings = diffusion.encode(["a photo of a mug"])
    x, t = torch.randn(1, 4, 16, 16, generator=generator("x")), torch.tensor([500])

    def out(unet):
        with torch.no_grad():
            return unet(x, t, **given_settings.arguments()).sample

    plain = out(pipe.unet)
    with merged_weights(diffusion.unet, bank):
        ours = out(diffusion.unet)
    pipe.load_lora_weights(tmp_path, weight_name="r.safetensors")
    assert len({target.rank for target in bank.targets}) > 1, "ranks must be mixed for this test to mean anything"
    assert (ours - plain).abs().max() > 1e-3
    torch.testing.assert_close(out(pipe.unet), ours, atol=1e-5, rtol=1e-4)


def test_a_residual_of_another_family_is_refused(tmp_path):
    unets = {name: UNet2DConditionModel(**narrow(name, 10).unet) for name in NAMES}
    for name, unet in unets.items():
        bank = ResidualBank(find_targets(unet)).initialise(0, "lora", 0.01, generator(name))
        save_residual(tmp_path / f"{name}.safetensors", bank.deltas(), header_info())
        assert load_bank(unet, tmp_path / f"{name}.safetensors").concepts == 1
    for name, other in (("sdxl", "sd14"), ("sdxl", "sd21"), ("sd14", "sdxl"), ("sd21", "sdxl")):
        with pytest.raises(PersresError, match="another architecture"):
            load_bank(unets[name], tmp_path / f"{other}.safetensors")


@pytest.mark.parametrize(("name", "dtype"), [("sd14", "bfloat16"), ("sd21", "float16"), ("sdxl", "float16")])
def test_half_precision_trains_in_float32_and_samples(models, name, dtype):
    """The frozen model in half precision, residual and outputs in float32; images stay near the float32 ones."""
    whole = load_diffusion(base(models, name), "cpu")
    bank = strong_bank(whole)
    sampling = SamplingConfig(variant="ours", steps=1, images_per_prompt=1)
    exact, _ = sample_batch(whole, [Request(ITEMS, sampling, bank)], RESOLUTION)[0]
    half = load_diffusion(base(models, name, dtype=dtype), "cpu")
    assert half.unet.dtype == half.text_encoder.dtype == getattr(torch, dtype)
    assert half.vae.dtype == (torch.float32 if dtype == "float16" else torch.bfloat16), "force_upcast is for float16"
    near, _ = sample_batch(half, [Request(ITEMS, sampling, bank)], RESOLUTION)[0]
    assert near.dtype == torch.float32
    assert (near - exact).abs().mean() < 0.1 * exact.std(), "nearer to it than any other image"
    with_lag, masks = sample_batch(half, [Request(ITEMS, sampling.model_copy(update={"lag": True}), bank)], RESOLUTION)[
        0
    ]
    assert with_lag.isfinite().all() and not torch.equal(with_lag, near)
    assert float(masks.mean()) == pytest.approx(0.5, abs=0.01), "the median still selects half of the pixels"
    _check_training_in_float32(half)


def _check_training_in_float32(half: Diffusion) -> None:
    settings = Ours(steps=1, batch_size=1)
    mean, std = half.posterior(torch.rand(1, 3, RESOLUTION, RESOLUTION, generator=generator("p")) * 2 - 1)
    assert mean.dtype == torch.float32
    concept = EncodedConcept("mug", mean, std, half.encode(["a photo of a <v*> mug"]))
    bank = new_bank(find_targets(half.unet), [concept], settings)
    before = [p.detach().clone() for p in bank.parameters()]
    rows = train(ResidualLoss(half.unet, half.scheduler, bank, settings), [concept])
    assert rows[0]["loss"][0] > 0
    pairs = list(zip(bank.parameters(), before, strict=True))
    assert all(p.dtype == torch.float32 and p.isfinite().all() and not torch.equal(p, b) for p, b in pairs)


def test_cpu_offload_moves_components_and_changes_nothing(models, family, monkeypatch):
    """With one device the moves do nothing, so the test counts them."""
    sampling = SamplingConfig(variant="ours", lag=True, steps=1, images_per_prompt=1)
    whole = load_diffusion(base(models, family), "cpu")
    exact, _ = sample_batch(whole, [Request(ITEMS, sampling, strong_bank(whole))], RESOLUTION)[0]
    moves: list[tuple[str, str]] = []
    offloaded = load_diffusion(base(models, family), "cpu", True)
    names = {id(offloaded.vae): "vae", id(offloaded.text_encoder): "text", id(offloaded.unet): "unet"}
    names |= {id(encoder): "text" for _, encoder in offloaded.towers}
    plain = torch.nn.Module.to

    def counted(module, *args, **kwargs):
        if id(module) in names:
            moves.append((names[id(module)], str(args[0])))
        return plain(module, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "to", counted)
    for kind in {type(offloaded.vae), type(offloaded.text_encoder), *(type(e) for _, e in offloaded.towers)}:
        monkeypatch.setattr(kind, "to", counted)
    images, _ = sample_batch(offloaded, [Request(ITEMS, sampling, strong_bank(offloaded))], RESOLUTION)[0]
    assert torch.equal(images, exact)
    towers = len(offloaded.towers)
    assert moves == [("text", "cpu")] * 2 * towers * 2 + [("vae", "cpu")] * 2, "prompts, the empty prompt, the decoding"
    moves.clear()
    with pytest.raises(RuntimeError), offloaded._on_device(offloaded.vae):
        raise RuntimeError("stop")
    assert len(moves) == 2, "back on the CPU even after an error"


@pytest.mark.parametrize("method", ["textual_inversion", "dreambooth", "custom_diffusion", "vico"])
def test_rivals_are_refused_on_sdxl_before_any_work(models, tiny_encoders, tmp_path, method):
    given_settings = {"variants": {"ours": {}, "rival": {"method": method}}}
    where = load_context(
        params(models, "sdxl", tiny_encoders, tmp_path, given_settings), None, tmp_path / "data", tmp_path / "work"
    )
    with pytest.raises(PersresError, match=rf"train\.variants\.rival: {method} does not support SDXL models"):
        run_stage("train", where)
    assert not (tmp_path / "work").exists()


def test_v_star_cannot_train_on_sdxl(models, tiny_encoders, tmp_path):
    given_settings = {"variants": {"ours": {"train_token": True}}}
    where = load_context(
        params(models, "sdxl", tiny_encoders, tmp_path, given_settings), None, tmp_path / "data", tmp_path / "work"
    )
    with pytest.raises(PersresError, match="train_token does not support SDXL"):
        run_stage("train", where)


def test_rivals_and_ablations_go_through_on_sd21_in_half(models, tiny_encoders, tmp_path):
    """Rivals train in float32 whatever ``base.dtype`` is, and sample in it."""
    folder = write_photographs(tmp_path / "photos" / "generated")
    (folder / "concept.json").write_text(json.dumps({"macro_class": "mug"}))
    short = {"steps": 1}
    given_settings = {
        "class_images": {"steps": 2},
        "variants": {
            "ours": {},
            "token": {"train_token": True},
            "ti": {"method": "textual_inversion"} | short,
            "vico": {"method": "vico"} | short,
            "db": {"method": "dreambooth", "num_class_images": 1} | short,
            "cd": {"method": "custom_diffusion", "num_class_images": 1, "batch_size": 1} | short,
        },
    }
    path = params(models, "sd21", tiny_encoders, tmp_path, given_settings, dtype="bfloat16")
    raw = yaml.safe_load(path.read_text())
    raw["family"]["sample"] |= {
        "steps": 1,
        "prompts": 1,
        "configs": {name: {"variant": name} for name in given_settings["variants"]},
    }
    raw["family"]["runtime"]["cpu_offload"] = True
    path.write_text(yaml.safe_dump(raw))
    where = load_context(path, None, tmp_path / "data", tmp_path / "work")
    for stage in STAGES[:4]:
        run_stage(stage, where)
    for name in given_settings["variants"]:
        assert len(list(unzip_images(where.data / "samples" / name / "generated.zip"))) == 1


@pytest.mark.parametrize(
    ("given_settings", "message"),
    [
        ({"_class_name": "FluxPipeline"}, "is a FluxPipeline; residuals need"),
        ({"_class_name": "StableDiffusionInpaintPipeline"}, "StableDiffusionInpaintPipeline"),
        ({}, "cannot load the base model"),
    ],
)
def test_another_kind_of_pipeline_is_one_clear_error(tmp_path, given_settings, message):
    (tmp_path / "model_index.json").write_text(json.dumps(given_settings))
    with pytest.raises(PersresError, match=message):
        load_diffusion(Base(model=str(tmp_path)), "cpu")


def test_a_schedule_that_ddim_cannot_sample_is_one_clear_error(models, tmp_path):
    shutil.copytree(models["sdxl"], tmp_path / "m")
    path = tmp_path / "m" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "EDMEulerScheduler", "sigma_max": 80.0, "prediction_type": "epsilon"}))
    index = json.loads((tmp_path / "m" / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "EDMEulerScheduler"]
    (tmp_path / "m" / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(PersresError, match="EDMEulerScheduler"):
        load_diffusion(Base(model=str(tmp_path / "m")), "cpu")
