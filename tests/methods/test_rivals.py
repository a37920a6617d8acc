"""The rivals: what each trains and nothing else, that each learns, resumes to the same bits, and how it is sampled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from persres.config.schema import Base, VariantSettings
from persres.errors import PersresError
from persres.images import to_images, unzip_images
from persres.methods import custom_diffusion, dreambooth, vico
from persres.methods.common.registry import make_profile, method_named
from persres.methods.common.sample_units import load_method
from persres.methods.common.word_embeddings import NEUTRAL
from persres.models.diffusion import load_diffusion
from persres.models.text_encoding import encode_prompts
from persres.models.weight_patching import TOKEN, patched_weights
from persres.residuals.file import load_residual
from persres.sampling.sample import Request, sample_batch
from persres.seeding import generator
from persres.stages.train import class_image_units
from persres.training.batches import Batch, EncodedData, EncodedImages, TrainingPlan, masked_error, plain_batch
from persres.training.weight_training import TrainingRun, batch_loss, train_weights
from persres.units.outputs import read_index


@pytest.fixture(scope="module")
def diffusion(tiny_pipeline):
    return load_diffusion(Base(model=str(tiny_pipeline), resolution=32), "cpu")


@pytest.fixture(scope="module")
def token_id(diffusion) -> int:
    return diffusion.tokenizer.convert_tokens_to_ids("<v*>")


def photos(diffusion, seed: int = 0, count: int = 3) -> EncodedImages:
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return EncodedImages.of(diffusion, [Image.fromarray(s).resize((32, 32), Image.NEAREST) for s in small])


SHORT = {
    "textual_inversion": {"lr": 0.05},
    "dreambooth": {"lr": 1e-3},
    "custom_diffusion": {"batch_size": 2, "lr": 1e-3},
    "vico": {"batch_size": 2, "lr": 1e-3, "token_lr": 0.05},
}


def plan_of(diffusion, method: str, **changes) -> tuple[TrainingPlan, VariantSettings]:
    """A few steps of a rival on made-up photos."""
    rival = method_named(method)
    settings = rival.settings(**({"steps": 6, "checkpoint_every": 2} | SHORT[method] | changes))
    data = EncodedData(photos(diffusion), photos(diffusion, 1), Base(), "mug")
    return rival.plan(diffusion, settings, data), settings


METHODS = tuple(SHORT)


def everything(diffusion) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{k}": v
        for part in ("unet", "text_encoder", "vae")
        for k, v in getattr(diffusion, part).state_dict().items()
    }


@pytest.mark.parametrize("method", METHODS)
def test_the_shared_model_stays_bit_identical(diffusion, token_id, method):
    before = {k: v.clone() for k, v in everything(diffusion).items()}
    plan, settings = plan_of(diffusion, method)
    new = {name: value.detach().clone() for name, value in plan.new.items()}
    state, rows = train_weights(diffusion, plan, settings, TrainingRun("mug", token_id))
    assert all(torch.equal(v, before[k]) for k, v in everything(diffusion).items())
    assert all(p.grad is None for part in (diffusion.unet, diffusion.text_encoder) for p in part.parameters())
    assert set(state) == set(plan.names) | set(new) and len(rows) == 6
    start = before | new
    assert all((state[n] - start[n]).abs().max() > 0 for n in state if n != TOKEN)


def test_each_trains_what_its_authors_say(diffusion):
    names = {method: plan_of(diffusion, method)[0].names for method in METHODS}
    assert names["textual_inversion"] == [TOKEN]
    assert names["dreambooth"] == [f"unet.{n}" for n, _ in diffusion.unet.named_parameters()]
    kv = [n for n in names["custom_diffusion"] if n != TOKEN]
    assert TOKEN in names["custom_diffusion"] and all(
        ".attn2.to_" in n and n.split(".")[-2] in ("to_k", "to_v") for n in kv
    )
    assert len(kv) == 2 * sum(n.endswith("attn2.to_k.weight") for n, _ in diffusion.unet.named_parameters())
    both = plan_of(diffusion, "dreambooth", train_text_encoder=True)[0].names
    assert any(n.startswith("text_encoder.") for n in both)


def test_parameter_counts_on_stable_diffusions_shapes():
    """Custom Diffusion 19 M, DreamBooth 860 M for the U-Net, Textual Inversion 768."""
    from types import SimpleNamespace

    from tests.residuals.test_residuals import sd14_unet

    parts = SimpleNamespace(unet=sd14_unet())
    sizes = {f"unet.{n}": p.numel() for n, p in parts.unet.named_parameters()}
    assert sum(sizes[n] for n in custom_diffusion.trained_names(parts) if n != TOKEN) + 768 == 19_170_048
    assert sum(sizes[n] for n in dreambooth.trained_names(parts, False)) == 859_520_964


@pytest.mark.parametrize("method", METHODS)
def test_training_lowers_the_loss_on_draws_it_never_saw(diffusion, token_id, method):
    """And with its training turned off a rival has nothing to show: the same probe, before and after."""
    plan, settings = plan_of(diffusion, method, steps=60)
    loss = plan.loss or (lambda batch, sample_images: batch_loss(diffusion, batch, sample_images))

    def probe(state) -> float:
        values = {name: state[name] for name in plan.names}
        with torch.no_grad(), patched_weights(diffusion, values, token_id):
            draws = [generator("probe", i) for i in range(12)]
            return float(torch.stack([loss(plan.batch(0, d), d) for d in draws]).mean())

    start, _ = train_weights(diffusion, plan, settings.model_copy(update={"steps": 0}), TrainingRun("mug", token_id))
    before = probe(start)
    assert probe(start) == before
    assert probe(train_weights(diffusion, plan, settings, TrainingRun("mug", token_id))[0]) < before


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_equals_an_unbroken_one(diffusion, token_id, method, tmp_path):
    def run(*more):
        plan, settings = plan_of(diffusion, method)
        return train_weights(diffusion, plan, settings, TrainingRun("mug", token_id, *more))

    def stop(step: int, loss: float) -> None:
        if step == 4:
            raise KeyboardInterrupt

    whole, rows = run()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "c.safetensors", stop)
    resumed, again = run(tmp_path / "c.safetensors")
    assert all(torch.equal(whole[n], resumed[n]) for n in whole) and rows == again


def test_vico_looks_at_its_reference_where_the_prompt_names_it(diffusion):
    blocks = vico.ImageBlocks(diffusion.unet, generator("b"))
    x, noise = torch.randn(2, 4, 8, 8, generator=generator("x")), torch.randn(2, 4, 8, 8, generator=generator("n"))
    prompts = ["", "a photo of a <v*>"]
    text = encode_prompts(diffusion.tokenizer, diffusion.text_encoder, prompts)

    def out(reference):
        unet = vico.UNetWithReference(diffusion, blocks, reference, noise, *vico.positions(diffusion, prompts, "<v*>"))
        with torch.no_grad():
            return unet(x, torch.tensor(300), encoder_hidden_states=text).sample, unet.regularisation

    (one, reg), (two, _) = out(torch.zeros(2, 4, 8, 8)), out(torch.ones(2, 4, 8, 8))
    with torch.no_grad():
        plain = diffusion.unet(x, torch.tensor(300), encoder_hidden_states=text).sample
    assert torch.allclose(one[0], plain[0], atol=1e-5), "no V*, no image"
    assert (one[1] - plain[1]).abs().max() > 1e-4 and (one[1] - two[1]).abs().max() > 1e-5
    assert reg > 0
    assert (
        type(diffusion.unet.up_blocks[1].attentions[1].transformer_blocks[0].attn2.processor).__name__
        == "AttnProcessor2_0"
    )


def test_vico_stands_in_four_decoder_blocks_of_stable_diffusion():
    from tests.residuals.test_residuals import sd14_unet

    assert vico.target_blocks(sd14_unet()) == [
        f"up_blocks.{b}.attentions.{a}" for b, a in ((1, 1), (2, 0), (2, 2), (3, 1))
    ]


def test_otsu_parts_two_heaps_and_never_marks_nothing():
    attention = torch.tensor([[0.1, 0.12, 0.11, 0.9, 0.95], [0.5, 0.1, 0.1, 0.1, 0.1], [0.2] * 5])
    marked = vico.otsu(attention)
    assert marked[0].tolist() == [False, False, False, True, True]
    assert marked[1].tolist() == [True, False, False, False, False]
    assert marked.any(1)[:2].all()


def test_a_trained_token_changes_only_prompts_that_hold_it(diffusion, token_id):
    def states(prompt):
        return encode_prompts(diffusion.tokenizer, diffusion.text_encoder, [prompt])

    before = states("a photo of a <v*>"), states("a photo of a mug")
    with patched_weights(diffusion, {TOKEN: torch.randn(24)}, token_id):
        assert not torch.allclose(states("a photo of a <v*>"), before[0])
        assert torch.equal(states("a photo of a mug"), before[1])
    assert torch.equal(states("a photo of a <v*>"), before[0])


@pytest.mark.parametrize("name", ["unet.nothing.weight", "vae.x", "unet.conv_in"])
def test_a_state_of_another_architecture_is_refused(diffusion, token_id, name):
    with (
        pytest.raises(PersresError, match="another architecture"),
        patched_weights(diffusion, {name: torch.zeros(1)}, token_id),
    ):
        pass


def test_a_state_of_another_shape_changes_nothing(diffusion, token_id):
    before = diffusion.unet.conv_in.weight
    wrong = {"unet.conv_in.weight": torch.zeros(1)}
    with (
        pytest.raises(PersresError, match=r"unet\.conv_in\.weight is \[1\]"),
        patched_weights(diffusion, wrong, token_id),
    ):
        pass
    assert diffusion.unet.conv_in.weight is before


def test_neutral_templates():
    assert len(NEUTRAL) == len(set(NEUTRAL)) == 80 and all(t.count("{}") == 1 for t in NEUTRAL)


def test_textual_inversion_starts_at_its_word(diffusion, token_id):
    plan, settings = plan_of(diffusion, "textual_inversion")
    start, _ = train_weights(diffusion, plan, settings.model_copy(update={"steps": 0}), TrainingRun("mug", token_id))
    mug = diffusion.tokenizer("mug", add_special_tokens=False).input_ids[0]
    assert torch.equal(start[TOKEN], diffusion.text_encoder.get_input_embeddings().weight[mug])
    with pytest.raises(PersresError, match="init_word 'zebra' is 5 tokens"):
        plan_of(diffusion, "textual_inversion", init_word="zebra")


def test_resized_views_are_where_they_say_they_are():
    photo, words = Image.new("RGB", (32, 32), "white"), set()
    for seed in range(200):
        view, valid, word = custom_diffusion.resized(photo, generator("view", seed))
        assert view.size == (32, 32) and valid.shape == (32, 32)
        lit = torch.from_numpy(np.asarray(view)[..., 0] > 127)
        assert torch.equal(lit, valid.bool()), "the loss counts exactly where the photo lies"
        side = int(valid.any(1).sum())
        assert (word in custom_diffusion.SMALL) == (side < 0.6 * 32)
        assert word not in custom_diffusion.LARGE or bool(valid.all())
        words.add(word)
    assert words == {None, *custom_diffusion.SMALL, *custom_diffusion.LARGE}


def test_the_loss_counts_the_valid_area_only():
    out, target = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4)
    target[..., :2] = 3.0  # wrong on the left half
    valid = torch.zeros(1, 1, 4, 4)
    valid[..., 2:] = 1
    assert masked_error(out, target, valid).item() == 0.0
    assert masked_error(out, target, 1 - valid).item() == pytest.approx(9.0)
    assert masked_error(out, target, None).item() == pytest.approx(4.5)


def test_prior_weight_weighs_the_class_images(diffusion):
    first = plain_batch(photos(diffusion), "a", 2, generator("a"))
    both = first.joined(plain_batch(photos(diffusion, 1), "b", 2, generator("b"), 0.5))
    assert isinstance(both, Batch) and both.captions == ["a", "a", "b", "b"]
    assert both.weight.tolist() == [0.5, 0.5, 0.25, 0.25]


ABLATIONS = {
    "proj_in": {"target": "proj_in"},
    "attn_kv": {"target": "attn_kv"},
    "no_class": {"name_class": False},
    "with_prior": {"num_class_images": 2, "prior_weight": 1.0},
    "token_too": {"train_token": True, "lr": 0.01},
    "rank_1": {"rank": 1},
    "wordnet_class": {"class_source": "wordnet"},
}


@pytest.fixture(scope="module")
def chain(tiny_pipeline, tiny_encoders, tmp_path_factory):
    """The whole chain with every rival, in seconds."""
    import yaml

    from persres.workflow import STAGES, load_context, run_stage

    folder = tmp_path_factory.mktemp("rivals")
    short = {"steps": 2, "checkpoint_every": 1}
    few = {"num_class_images": 2}
    variants = {
        "ours": {},
        "ti": {"method": "textual_inversion", "lr": 0.5, **short},
        "db": {"method": "dreambooth", "lr": 1e-2, **short, **few},
        "cd": {"method": "custom_diffusion", "lr": 1e-2, "batch_size": 2, **short, **few},
        "vico": {"method": "vico", "lr": 0.05, "token_lr": 0.5, **short},
    } | ABLATIONS
    (folder / "nouns.txt").write_text("cat\n")
    profile = {
        "base": {"model": str(tiny_pipeline), "resolution": 32},
        "encoders": tiny_encoders,
        "fetch": {"dataset": "miniworld", "concepts": ["heart_mug", "diamond_mug"], "references": 3, "held_out": 0},
        "macro_class": {"source": "dataset", "nearest": True, "candidates": str(folder / "nouns.txt")},
        "train": {"steps": 2, "variants": variants},
        "sample": {
            "steps": 2,
            "images_per_prompt": 1,
            "prompts": 4,
            "configs": {"base": {}}
            | {v: {"variant": v} for v in variants}
            | {"named_by_wordnet": {"variant": "ours", "class_source": "wordnet"}},
        },
        "score": {},
        "runtime": {"workers": 1, "device": "cpu", "sample_batch": 4},
        "tables": {
            "bootstrap": 200,
            "rows": {"table3": {"attn_kv": "KV weights", "ours": "Ours"}, "table5": {"rank_1": "1"}},
        },
    }
    (folder / "params.yaml").write_text(yaml.safe_dump({"profile": "tiny", "tiny": profile}))
    context = load_context(folder / "params.yaml", None, folder / "data", folder / "work")
    for stage in STAGES:
        run_stage(stage, context)
    return context


def test_every_rival_goes_through_the_chain(chain):
    import pandas as pd

    table = pd.read_csv(chain.data / "tables" / "table1.csv").set_index("config")
    assert table.loc["ti", "params"] == 24
    assert table.loc["db", "params"] > table.loc["cd", "params"] > table.loc["ti", "params"]


@pytest.mark.parametrize("method", ["ours", "ti", "db", "cd", "vico"])
def test_the_chain_draws_with_what_was_learned(chain, method):
    """Same prompts, same noise: only the learned weights make the difference."""
    spec = next(p.spec for p in read_index(chain).archives if p.name == f"{method}/heart_mug")
    diffusion, items = load_diffusion(spec.base, "cpu"), spec.image_specs
    loaded = load_method(diffusion, spec)
    with loaded.patch():
        learned, _ = sample_batch(
            diffusion, [Request(items, spec.sampling, loaded.bank, predictor=loaded.predictor)], 32
        )[0]
    without, _ = sample_batch(diffusion, [Request(items, spec.sampling)], 32)[0]
    archive = unzip_images(chain.data / "samples" / method / "heart_mug.zip")
    for item, ours, plain in zip(items, to_images(learned), to_images(without), strict=True):
        assert np.array_equal(np.asarray(archive[f"{item.name}.png"]), np.asarray(ours))
        assert not np.array_equal(np.asarray(ours), np.asarray(plain)), f"{method} drew {item.name} without its weights"


def test_the_papers_tables_hold_the_rows_that_params_name(chain):
    import pandas as pd

    folder = chain.data / "tables"
    table3, table5 = (pd.read_csv(folder / f"{name}.csv") for name in ("table3", "table5"))
    assert list(table3["row"]) == ["KV weights", "Ours"] and list(table5["config"]) == ["rank_1"]
    assert "| KV weights |" in (folder / "table3.md").read_text()
    assert (folder / "categories.png").stat().st_size > 5000


def test_any_two_methods_can_be_compared(chain, capsys):
    from persres.cli.main import main

    assert main(["compare", "cd", "ours", "--data", str(chain.data)]) == 0
    output = capsys.readouterr().out
    assert "cd - ours, over 2 concepts" in output and "DINO" in output and " p " in output
    assert main(["compare", "cd", "nonsense", "--data", str(chain.data)]) == 1
    assert "'nonsense'" in capsys.readouterr().err


def test_class_images_are_drawn_once_for_a_class(chain):
    archives = list((chain.work / "class_images").glob("*/images.zip"))
    assert len(archives) == 1, "two mugs, two rivals with two images each: one pack"


def test_class_images_have_separate_settings(chain):
    """The guidance of drawing must not reach what DreamBooth learned: DVC's train stage does not watch it."""

    def hashes(section: str, **values) -> set[str]:
        settings = chain.profile.model_dump()
        settings[section] |= values
        units = class_image_units(replace(chain, profile=make_profile(settings)))
        return {unit.hash for unit in units.values()}

    before = hashes("sample")
    assert before == hashes("sample", cfg_scale=2.0, steps=7)
    assert before.isdisjoint(hashes("train", class_images={"cfg_scale": 2.0}))


def test_each_rival_has_its_phrase(chain):
    import json

    index = json.loads((chain.data / "samples" / "index.json").read_text())
    phrases = {archive["spec"]["config"]: archive["spec"]["phrase"] for archive in index["archives"]}
    expected = {
        "base": "mug",
        "ours": "<v*> mug",
        "ti": "<v*>",
        "db": "sks mug",
        "cd": "<v*> mug",
        "vico": "<v*>",
        "no_class": "<v*>",
        "named_by_wordnet": "<v*> cat",
    }
    assert phrases == dict.fromkeys(ABLATIONS, "<v*> mug") | expected
    trained = {archive["spec"]["config"]: archive["spec"]["macro_class"] for archive in index["archives"]}
    assert set(trained.values()) == {"mug"}, "noise and scores keep the chosen class"


def test_ablations_train_what_they_say(chain):
    import pandas as pd

    params = pd.read_csv(chain.data / "tables" / "table1.csv").set_index("config")["params"]
    assert params["proj_in"] == params["ours"] == params["no_class"] == params["with_prior"]
    assert params["token_too"] == params["ours"] + 24
    assert params["rank_1"] <= params["ours"]
    folder = chain.data / "learned"
    variants = ("ours", "proj_in", "attn_kv", "token_too")
    files = {v: load_residual(folder / v / "heart_mug.safetensors") for v in variants}
    assert all(path.endswith(".proj_in") for path in files["proj_in"].layers)
    assert all(".attn2.to_" in path for path in files["attn_kv"].layers)
    assert files["token_too"].layers.keys() == files["ours"].layers.keys() and files["token_too"].token is not None


@pytest.mark.parametrize("variant", [v for v in ABLATIONS if v != "rank_1"])
def test_every_ablation_learns_something_else_than_ours(chain, variant):
    paths = (chain.data / "learned" / v / "heart_mug.safetensors" for v in ("ours", variant))
    ours, other = (load_residual(path).layers for path in paths)
    assert ours.keys() != other.keys() or any(not torch.equal(ours[k].up, other[k].up) for k in ours)


def test_a_learned_token_has_moved_and_is_used(chain, diffusion, token_id):
    token = load_residual(chain.data / "learned" / "token_too" / "heart_mug.safetensors").token
    start = diffusion.text_encoder.get_input_embeddings().weight[token_id]
    assert (token - start).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ({"method": "nonsense"}, "nonsense"),
        ({"method": "dreambooth", "rank": 3}, "rank"),
        ({"method": "textual_inversion", "steps": 0}, "steps"),
    ],
)
def test_a_wrong_rival_is_one_clear_error(variant, message):
    with pytest.raises(ValueError, match=message):
        make_profile({"fetch": {"dataset": "miniworld"}, "train": {"variants": {"ours": {}, "x": variant}}})


@pytest.mark.parametrize("sampling", [{"lag": True}, {"strength": 0.5}])
def test_a_rival_is_neither_masked_nor_scaled(sampling):
    with pytest.raises(ValueError, match=r"sample\.configs\.x\.(lag|strength)"):
        make_profile(
            {
                "fetch": {"dataset": "miniworld"},
                "train": {"variants": {"db": {"method": "dreambooth"}}},
                "sample": {"configs": {"base": {}, "x": {"variant": "db"} | sampling}},
            }
        )
