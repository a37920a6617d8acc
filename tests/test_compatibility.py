"""What version 0.1 wrote is still read: residual files, exports, model cards, tags of a repository, data folders and a fleet's store.

tests/fixtures/v0_1/ was written by the code of commit 6425cc7 (its README.md has the script). Pictures are compared with those that that
code drew. The files never change; where a name of this library changes, only the calls below do.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from persres.cli import main
from persres.config import Drawing
from persres.datasets.layout import read_concepts
from persres.errors import PersresError
from persres.exports.about import ENTRY
from persres.exports.export import export, load_embedding
from persres.exports.importing import import_residual
from persres.fleet.agent import Report, mark_key, read_shard, report_key, run_shard
from persres.fleet.kinds import Unfit, unit_from
from persres.fleet.noop import NoopSpec
from persres.fleet.objects import get_input, get_unit, manifest_key
from persres.fleet.store import FolderStore
from persres.generate import generate
from persres.methods.common.base import Source
from persres.methods.common.registry import load_profile, method_named
from persres.models.diffusion import load_diffusion
from persres.personalized import PersonalizedPipeline
from persres.pipeline import load_context
from persres.places import located
from persres.residuals.file import load_residual
from persres.runs.checkpoints import read_header, read_tensors
from persres.runs.files import digest_file, digest_folder
from persres.runs.headers import header_facts
from persres.runs.outputs import read_index, read_macro_classes
from persres.runs.specs import FileRef, Item
from persres.runs.units import MANIFEST, Unit, finish_noted, is_done
from persres.sampling.draw import draw
from persres.versions.compare import differences
from persres.versions.ref import file_of
from persres.versions.repository import Repository
from persres.versions.tools import git

OLD = Path(__file__).parent / "fixtures" / "v0_1"
MODEL = "package:miniworld/weights/sd"  # as the old headers name it
PROMPT = "a photo of a {} on the beach"
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    """What the old code drew: final latents on the mini world, pictures of the tiny model."""
    with np.load(OLD / "expected.npz") as actual:
        return dict(actual)


@pytest.fixture(scope="module")
def pipe() -> PersonalizedPipeline:
    """The mini world with every old residual. None needs ``allow_other_base``: the weights are those of then."""
    pipe = PersonalizedPipeline.from_pretrained(MODEL, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    for path in sorted((OLD / "residuals").glob("*.safetensors")):
        pipe.load_residual(path, path.stem)
    return pipe.load_residual(OLD / "personalize" / "my_mug.safetensors", "personalize")


def latents(pipe, text: str, expected, **options) -> np.ndarray:
    """The final latents of three steps from the stored noise."""
    noise = torch.from_numpy(expected["noise"])
    size = {"num_inference_steps": 3, "guidance_scale": 6.0, "height": 64, "width": 64, "output_type": "latent"}
    return pipe(text, latents=noise, **size, **options).images.numpy()


def check_close(actual: np.ndarray, expected: dict[str, np.ndarray], name: str) -> None:
    assert np.abs(actual - expected[name]).max() < TOLERANCE


def unpacked(name: str, folder: Path) -> Path:
    with tarfile.open(OLD / f"{name}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def settings_of(name: str) -> dict:
    return header_facts(read_header(OLD / "residuals" / f"{name}.safetensors"))["settings"]


PLAIN = ("ours", "other", "settled", "with_prior", "token_too", "no_class", "keys_values", "personalize")


@pytest.mark.parametrize("name", PLAIN)
def test_a_residual_draws_the_same_picture(pipe, expected, name):
    pipe.set_residual(name)
    check_close(latents(pipe, PROMPT.replace("{}", pipe.residuals[name].phrase), expected), expected, name)


@pytest.mark.parametrize(("lag", "name"), [(True, "ours_lag"), ("auto", "ours_auto")])
def test_a_residual_draws_the_same_picture_under_masks(pipe, expected, lag, name):
    pipe.set_residual("ours")
    check_close(latents(pipe, PROMPT.replace("{}", "<v*> mug"), expected, lag=lag), expected, name)


def test_two_residuals_draw_the_same_picture(pipe, expected):
    pipe.set_residuals(["ours", "other"])
    check_close(latents(pipe, "a photo of a {1} and a {2}", expected, lag=True), expected, "several")


def test_the_command_draws_the_same_picture_from_the_same_seed(tmp_path):
    (old,) = (OLD / "generate").iterdir()
    residual = OLD / "residuals" / "ours.safetensors"
    (new,) = generate(residual, (PROMPT,), tmp_path, seed=7, lag=True, steps=3, device="cpu")
    before, after = (np.asarray(Image.open(path)).astype(int) for path in (old, new))
    assert np.abs(before - after).max() <= 1, "eight bits, rounded"


def test_headers_tell_what_was_trained_and_with_which_settings():
    """By the names that settings had then: a header is never rewritten."""
    facts = header_facts(read_header(OLD / "residuals" / "ours.safetensors"))
    facts_read = {key: facts[key] for key in ("format", "base_model", "concept", "v_star", "rare_token", "macro_class")}
    assert facts_read == {
        "format": "persres-residual-1", "base_model": MODEL, "concept": "heart_mug", "v_star": "<v*>", "rare_token": "sks",
        "macro_class": "mug",
    }  # fmt: skip
    assert len(facts["base_model_weights"]) == 16 and facts["photos"] == 2 and facts["resolution"] == 64
    assert settings_of("with_prior") | {"prior_images": 2, "prior_weight": 0.5, "rank": 1} == settings_of("with_prior")
    early = {"stop": "settled", "settle_every": 1, "settle_draws": 2, "settle_below": 0.9, "class_source": "chosen"}
    assert settings_of("settled") | early == settings_of("settled")
    _, info = load_residual(OLD / "residuals" / "settled.safetensors")
    assert info["steps"] < settings_of("settled")["steps"] == 20, "it stopped early"
    assert "token" in load_residual(OLD / "residuals" / "token_too.safetensors")[0]


def deltas(path: Path) -> dict[str, torch.Tensor]:
    state, _ = load_residual(path)
    layers = {key.rpartition(".")[0] for key in state if key.endswith(".up")}
    return {layer: state[f"{layer}.up"] @ state[f"{layer}.down"] for layer in layers}


@pytest.mark.parametrize("to", ["diffusers", "kohya"])
def test_an_export_comes_back_as_the_same_residual(tmp_path, to):
    exported, residual = OLD / "exports" / f"ours.{to}.safetensors", OLD / "residuals" / "ours.safetensors"
    actual = deltas(import_residual(exported, MODEL, "mug", "again", out=tmp_path))
    wanted = deltas(residual)
    assert set(actual) == set(wanted)
    for layer, delta in wanted.items():
        torch.testing.assert_close(actual[layer], delta, atol=1e-5, rtol=1e-4)
    fresh, _ = read_tensors(export(residual, to, tmp_path / "fresh.safetensors"))
    old, header = read_tensors(exported)
    assert set(fresh) == set(old) and all(torch.equal(fresh[key], old[key]) for key in old)
    assert json.loads(header[ENTRY])["concept"] == "heart_mug"


def test_exports_draw_the_same_picture_in_plain_diffusers(expected):
    from diffusers import DiffusionPipeline

    plain = DiffusionPipeline.from_pretrained(located(MODEL), dtype=torch.float32)
    plain.set_progress_bar_config(disable=True)
    load_embedding(plain, OLD / "exports" / "ours.v_star.safetensors", "<v*>")
    for to, word in (("diffusers", "sks"), ("kohya", "<v*>")):
        plain.load_lora_weights(str(OLD / "exports"), weight_name=f"ours.{to}.safetensors")
        check_close(latents(plain, PROMPT.replace("{}", f"{word} mug"), expected), expected, "ours")
        plain.unload_lora_weights()
    (vector,) = load_file(OLD / "exports" / "token_too.v_star.safetensors").values()
    assert torch.equal(vector[0], load_residual(OLD / "residuals" / "token_too.safetensors")[0]["token"])


def test_the_card_next_to_a_residual_gives_its_scores_to_an_export(tmp_path):
    shutil.copytree(OLD / "residuals", tmp_path / "residuals")
    _, header = read_tensors(export(tmp_path / "residuals" / "ours.safetensors", "kohya", tmp_path / "k.safetensors"))
    scores = json.loads(header[ENTRY])["scores"]
    assert set(scores) >= {"base", "ours", "ours_lag"} and 0 < scores["ours"]["clip_text"] < 1


def test_what_personalize_left_agrees_with_its_readme():
    front = yaml.safe_load((OLD / "personalize" / "README.md").read_text().split("---\n")[1])
    _, info = load_residual(OLD / "personalize" / "my_mug.safetensors")
    assert front["instance_prompt"] == "a photo of a <v*> mug" and front["persres"]["spec_hash"] == info["spec_hash"]


@pytest.mark.parametrize("path", sorted((OLD / "rivals").glob("*.safetensors")), ids=lambda path: path.stem)
def test_a_rival_draws_the_same_picture(tiny_pipeline, expected, path):
    """Of the tests' tiny model, which lay elsewhere then: such a file fits any model with the same layers."""
    method, spec = method_named(path.stem), read_header(path)["spec"]
    settings = method.settings(**spec["settings"])
    base = load_profile(OLD / "params.yaml", "mini").base.model_copy(
        update={"model": str(tiny_pipeline), "resolution": 32}
    )
    diffusion, phrase = load_diffusion(base, "cpu"), method.phrase(settings, base, spec["macro_class"])
    loaded = method.load(diffusion, Source(path, spec["concept"], base, OLD / "rivals" / "photo.png"), 1.0)
    item = Item(name="00_000", prompt=f"a photo of a {phrase}", phrase=phrase, plain="a photo of a mug", image=0)
    with loaded.inside():
        drawn, _ = draw(
            diffusion, [item], Drawing(variant=path.stem, steps=3), loaded.bank, 32, loaded.predictor
        )  # fmt: skip
    check_close(drawn.numpy(), expected, f"rival_{path.stem}")


def test_the_settings_of_then_are_read_or_refused_with_their_new_names():
    """With the code of then they are read. Once settings have new names: every old key is refused, and the message has the new one; the
    settings of ``run.params.yaml`` for the other tests then stand in a file with the new names."""
    for name in yaml.safe_load((OLD / "params.yaml").read_text()).keys() - {"profile"}:
        load_profile(OLD / "params.yaml", name)
    profile = load_profile(OLD / "run.params.yaml")
    assert profile.train.variant("with_prior").prior_images == 2 and profile.runtime.offload


# A unit's hash holds the digest of the code that made it, so units of other code are made again by design, never read.
# What must hold: they are refused in one sentence, and nothing fails at them.
OTHER_CODE = "deploy the same commit"


def test_finished_units_are_done_or_refused(tmp_path):
    work = unpacked("units", tmp_path) / ".work"
    manifests = [json.loads(path.read_text()) for path in sorted(work.glob(f"[ts]*/*/{MANIFEST}"))]
    assert len(manifests) == 5 and {m["stage"] for m in manifests} == {"train", "sample", "score"}
    for manifest in manifests:
        raw = {key: manifest[key] for key in ("stage", "name", "spec")} | {"hash": manifest["spec_hash"]}
        try:
            assert is_done(unit_from(raw), work)
        except Unfit as error:
            assert OTHER_CODE in str(error)


def test_the_note_of_a_run_that_was_killed_is_carried_out(tmp_path):
    """Two units trained in one pass, killed before the first manifest: whatever code runs next finishes them, or leaves them alone."""
    unpacked("units", tmp_path)
    shutil.move(tmp_path / ".work" / "noted", tmp_path / "work" / "train")
    finish_noted("train", tmp_path / "work")
    made = sorted((tmp_path / "work" / "train").glob(f"*/{MANIFEST}"))
    assert len(made) == 2 and not list((tmp_path / "work" / "train").glob("together-*"))
    assert {json.loads(path.read_text())["name"] for path in made} == {"settled/heart_mug", "settled/star_robot"}


def test_a_published_data_folder_is_shown_and_its_index_is_read_or_refused(tmp_path, capsys):
    data = unpacked("data", tmp_path) / "data"
    assert main(["show", "--data", str(data)]) == 0
    assert "Ours w/ LAG" in capsys.readouterr().out
    assert main(["compare", "ours", "base", "--data", str(data)]) == 0
    assert "ours" in capsys.readouterr().out
    context = load_context(OLD / "run.params.yaml", None, data, tmp_path / "work")
    assert [concept.name for concept, _ in read_concepts(data / "concepts")] == ["heart_mug", "star_robot"]
    assert read_macro_classes(context) == {"heart_mug": "mug", "star_robot": "robot"}
    try:
        index = read_index(context)
    except PersresError as error:
        assert "run the sample stage again" in str(error)
        return
    assert list(index.methods) == ["base", "ours", "ours_lag", "confident", "other"] and len(index.packs) == 10
    drawing = index.methods["confident"].drawing
    assert (drawing.mask_blocks, drawing.mask_when) == ("confident", "sure") and index.methods[
        "other"
    ].drawing.other_concept
    for pack in index.packs:
        assert (data / "samples" / f"{pack.name}.zip").is_file()


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A clone of the repository whose v1 and v2 were published then, DVC's remote a folder next to it."""
    root = unpacked("versions", tmp_path_factory.mktemp("versions"))
    git(root, "clone", "-q", "origin.git", "work")
    return root / "work"


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("PERSRES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")


def test_versions_are_listed_and_compared(repository, cache, capsys):
    assert main(["list", "--repo", str(repository), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == ["v2", "v1"]
    assert main(["list", "--rev", "v1", "--repo", str(repository), "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"ours/heart_mug", "ours/star_robot"}
    actual = differences("v1", "v2", Repository(str(repository)))
    assert actual["settings"]["train.steps"] == [5, 3] and actual["settings"]["train.settle_below"] == [None, 0.2]
    assert actual["settings"]["runtime.offload"] == [True, False]
    assert actual["settings"]["runtime.recompute"] == [False, True]
    before, after = actual["scores"]["ours"]["clip_text"]
    assert before != after and 0 < before < 1 and 0 < after < 1
    assert main(["diff", "v1", "v2", "--repo", str(repository)]) == 0
    assert "train.steps: 5 -> 3" in capsys.readouterr().out


def test_a_residual_of_a_version_is_pulled_and_draws_the_same_picture(
    repository, cache, tmp_path, pipe, expected, capsys
):
    assert main(["pull", "heart_mug", "--rev", "v1", "--repo", str(repository), "--out", str(tmp_path / "a")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'a' / 'heart_mug.safetensors'}\n"
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["heart_mug.md", "heart_mug.png", "heart_mug.safetensors"]
    path = file_of("ours/heart_mug@v1", repository)  # as load_residual does with a ref
    assert digest_file(path) == digest_file(OLD / "residuals" / "ours.safetensors")
    pipe.load_residual("ours/heart_mug@v1", "pulled", repo=repository)
    check_close(latents(pipe, PROMPT.replace("{}", pipe.residuals["pulled"].phrase), expected), expected, "ours")
    pipe.unload_residual("pulled")


def test_the_tag_of_an_artifact_is_there(repository):
    assert git(repository, "tag").split() == ["residuals@v1.0.0", "residuals@v2.0.0", "v1", "v2"]


def test_a_store_gives_what_it_holds_and_old_shards_end_in_a_report(tmp_path):
    root = unpacked("fleet_store", tmp_path) / "store"
    store, work = FolderStore(root), tmp_path / "agent"
    before = set(store.keys(""))
    shards = {key.split("/")[1].removesuffix(".json") for key in before if key.startswith("shards/")}
    assert len(shards) == 5
    for shard in shards:
        assert {raw["stage"] for raw in json.loads(store.read(read_shard(str(root), shard).key))["units"]}
        old = Report(**json.loads(store.read(report_key(shard))))
        assert not old.failed and all(OTHER_CODE in reason for reason in old.unfinished.values())
        new = run_shard(str(root), shard, work)
        assert not new.failed and all(OTHER_CODE in reason for reason in new.unfinished.values())
    assert set(store.keys("")) >= before, "nothing is lost by it"


def test_a_store_gives_inputs_and_units_by_digest(tmp_path):
    store = FolderStore(unpacked("fleet_store", tmp_path) / "store")
    units = [json.loads(store.read(key)) for key in store.keys("units/") if key.startswith("units/train/")]
    (photo, *_) = units[0]["spec"]["photos"]
    here = Path(get_input(store, FileRef(**photo), tmp_path / "cache").path)
    assert digest_file(here) == photo["digest"] and here.name == Path(photo["path"]).name
    (folder,) = store.keys("folders/")
    whole = Path(get_input(store, FileRef(path="heart_mug", digest=folder.rpartition("/")[2]), tmp_path / "cache").path)
    assert digest_folder(whole) == folder.rpartition("/")[2] and (whole / "concept.json").is_file()
    for number in range(2):
        unit = Unit("noop", f"n/{number}", NoopSpec(number=number))  # its spec names no code, so its hash is the same
        assert get_unit(store, unit, tmp_path / "work") and is_done(unit, tmp_path / "work")
    third = Unit("noop", "n/2", NoopSpec(number=2))
    assert not store.has(manifest_key(third))
    assert [key for key in store.keys("started/") if key.startswith(mark_key(third, ""))], "an agent died at it"
