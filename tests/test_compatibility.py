"""Files that version 0.1 wrote are still read: residual files, exports, model cards, tags of a repository, data folders, a fleet's store.

tests/fixtures/v0_1/ was written by the code of commit 6425cc7 (its README.md has the script), and never changes. Images are compared with
those that that code sampled. Where a name of this library changes, only the calls below change.
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

from persres.cli.main import main
from persres.config import legacy
from persres.config.schema import SamplingConfig
from persres.datasets.layout import read_concepts
from persres.errors import PersresError
from persres.exports.export import export
from persres.exports.importing import ImportOptions, import_residual
from persres.exports.metadata import ENTRY
from persres.exports.verify import load_embedding
from persres.fleet.content_store import get_input, get_unit, manifest_key
from persres.fleet.serialization import UnfitWorkerError, unit_from_json
from persres.fleet.store import FolderStore
from persres.fleet.worker import ShardReport, mark_key, read_shard, report_key, run_shard
from persres.generate import GenerateOptions, generate
from persres.methods.common.base import LearnedFile
from persres.methods.common.registry import load_profile, method_named
from persres.models.diffusion import load_diffusion
from persres.package_paths import located
from persres.pipeline import PersonalizedPipeline
from persres.residuals.file import load_residual
from persres.residuals.header import header_facts, read_header
from persres.sampling.sample import Request, sample_batch
from persres.stages.noop import NoopSpec
from persres.units.checkpoints import read_tensors
from persres.units.files import digest_file, digest_folder
from persres.units.outputs import read_index, read_macro_classes
from persres.units.specs import FileRef, ImageSpec
from persres.units.unit import MANIFEST, Unit, finish_interrupted, is_done
from persres.versions.compare import differences
from persres.versions.git_dvc import git
from persres.versions.repository import Repository
from persres.versions.residual_address import file_of
from persres.workflow import load_context

OLD = Path(__file__).parent / "fixtures" / "v0_1"
MODEL = "package:miniworld/weights/sd"  # as the old headers name it
PROMPT = "a photo of a {} on the beach"
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    """What the old code sampled: final latents on the mini world, images of the tiny model."""
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


def unpack(name: str, folder: Path) -> Path:
    with tarfile.open(OLD / f"{name}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def settings_of(name: str) -> dict:
    return header_facts(read_header(OLD / "residuals" / f"{name}.safetensors"))["settings"]


PLAIN = ("ours", "other", "settled", "with_prior", "token_too", "no_class", "keys_values", "personalize")


@pytest.mark.parametrize("name", PLAIN)
def test_a_residual_gives_the_same_image(pipe, expected, name):
    pipe.set_residual(name)
    check_close(latents(pipe, PROMPT.replace("{}", pipe.residuals[name].phrase), expected), expected, name)


@pytest.mark.parametrize(("lag", "name"), [(True, "ours_lag"), ("auto", "ours_auto")])
def test_a_residual_gives_the_same_image_with_lag(pipe, expected, lag, name):
    pipe.set_residual("ours")
    check_close(latents(pipe, PROMPT.replace("{}", "<v*> mug"), expected, lag=lag), expected, name)


def test_two_residuals_give_the_same_image(pipe, expected):
    pipe.set_residuals(["ours", "other"])
    check_close(latents(pipe, "a photo of a {1} and a {2}", expected, lag=True), expected, "several")


def test_generate_gives_the_same_image_from_the_same_seed(tmp_path):
    (old,) = (OLD / "generate").iterdir()
    residual = OLD / "residuals" / "ours.safetensors"
    (new,) = generate(residual, (PROMPT,), tmp_path, GenerateOptions(seed=7, lag=True, steps=3, device="cpu"))
    before, after = (np.asarray(Image.open(path)).astype(int) for path in (old, new))
    assert np.abs(before - after).max() <= 1, "eight bits, rounded"


def test_headers_record_what_was_trained_and_with_which_settings():
    """Settings have the names of version 0.1: a header is never rewritten."""
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
    info = load_residual(OLD / "residuals" / "settled.safetensors").header.info
    assert info["steps"] < settings_of("settled")["steps"] == 20, "it stopped early"
    assert load_residual(OLD / "residuals" / "token_too.safetensors").token is not None


def deltas(path: Path) -> dict[str, torch.Tensor]:
    return {layer: delta.matrix() for layer, delta in load_residual(path).layers.items()}


@pytest.mark.parametrize("to", ["diffusers", "kohya"])
def test_an_export_comes_back_as_the_same_residual(tmp_path, to):
    exported, residual = OLD / "exports" / f"ours.{to}.safetensors", OLD / "residuals" / "ours.safetensors"
    actual = deltas(import_residual(exported, MODEL, "mug", ImportOptions("again"), tmp_path))
    wanted = deltas(residual)
    assert set(actual) == set(wanted)
    for layer, delta in wanted.items():
        torch.testing.assert_close(actual[layer], delta, atol=1e-5, rtol=1e-4)
    fresh, _ = read_tensors(export(residual, to, tmp_path / "fresh.safetensors"))
    old, header = read_tensors(exported)
    assert set(fresh) == set(old) and all(torch.equal(fresh[key], old[key]) for key in old)
    assert json.loads(header[ENTRY])["concept"] == "heart_mug"


def test_exports_give_the_same_image_in_plain_diffusers(expected):
    from diffusers import DiffusionPipeline

    plain = DiffusionPipeline.from_pretrained(located(MODEL), dtype=torch.float32)
    plain.set_progress_bar_config(disable=True)
    load_embedding(plain, OLD / "exports" / "ours.v_star.safetensors", "<v*>")
    for to, word in (("diffusers", "sks"), ("kohya", "<v*>")):
        plain.load_lora_weights(str(OLD / "exports"), weight_name=f"ours.{to}.safetensors")
        check_close(latents(plain, PROMPT.replace("{}", f"{word} mug"), expected), expected, "ours")
        plain.unload_lora_weights()
    (vector,) = load_file(OLD / "exports" / "token_too.v_star.safetensors").values()
    assert torch.equal(vector[0], load_residual(OLD / "residuals" / "token_too.safetensors").token)


def test_an_export_has_the_scores_of_the_model_card_next_to_the_residual(tmp_path):
    shutil.copytree(OLD / "residuals", tmp_path / "residuals")
    _, header = read_tensors(export(tmp_path / "residuals" / "ours.safetensors", "kohya", tmp_path / "k.safetensors"))
    scores = json.loads(header[ENTRY])["scores"]
    assert set(scores) >= {"base", "ours", "ours_lag"} and 0 < scores["ours"]["clip_text"] < 1


def test_the_readme_of_personalize_matches_its_residual():
    front = yaml.safe_load((OLD / "personalize" / "README.md").read_text().split("---\n")[1])
    info = load_residual(OLD / "personalize" / "my_mug.safetensors").header.info
    assert front["instance_prompt"] == "a photo of a <v*> mug" and front["persres"]["spec_hash"] == info["spec_hash"]


@pytest.mark.parametrize("path", sorted((OLD / "rivals").glob("*.safetensors")), ids=lambda path: path.stem)
def test_a_rival_gives_the_same_image(tiny_pipeline, expected, path, tmp_path):
    """A rival file fits any model with the same layers, so the tiny model's folder may be another one."""
    method, spec = method_named(path.stem), read_header(path)["spec"]
    settings = method.settings(**legacy.translate(spec["settings"], "train"))
    base = load_profile(settings_file("params.yaml", tmp_path), "mini").base
    base = base.model_copy(update={"model": str(tiny_pipeline), "resolution": 32})
    diffusion, phrase = load_diffusion(base, "cpu"), method.phrase(settings, base, spec["macro_class"])
    loaded = method.load(diffusion, LearnedFile(path, spec["concept"], base, OLD / "rivals" / "photo.png"), 1.0)
    image = ImageSpec(name="00_000", prompt=f"a photo of a {phrase}", phrase=phrase, plain="a photo of a mug", image=0)
    sampling = SamplingConfig(variant=path.stem, steps=3)
    with loaded.patch():
        images, _ = sample_batch(diffusion, [Request([image], sampling, loaded.bank, predictor=loaded.predictor)], 32)[
            0
        ]
    check_close(images.numpy(), expected, f"rival_{path.stem}")


def settings_file(name: str, folder: Path) -> Path:
    """An old settings file with today's names."""
    raw = yaml.safe_load((OLD / name).read_text())
    translated = {key: value if key == "profile" else legacy.translate(value) for key, value in raw.items()}
    (folder / name).write_text(yaml.safe_dump(translated))
    return folder / name


OLD_SETTINGS = {  # in run.params.yaml, with today's names
    "macro_class.finder": "zero_shot_settings",
    "macro_class.finder.judge": "diffusion_classifier",
    "macro_class.finder.keep": "num_candidates",
    "train.variants.settled.stop": "stop: early",
    "train.variants.settled.settle_every": "early_stop_every",
    "train.variants.settled.settle_draws": "early_stop_draws",
    "train.variants.settled.settle_below": "early_stop_below",
    "train.variants.with_prior.prior_images": "num_class_images",
    "train.variants.with_prior.class_source": "class_source: selected",
    "sample.methods": "configs",
    "sample.methods.ours.class_source": "class_source: selected",
    "sample.methods.confident.mask_blocks": "mask_blocks: confidence_weighted",
    "sample.methods.confident.mask_when": "mask_when: high_confidence",
    "sample.methods.other.other_concept": "wrong_concept",
    "score.judge": "attribute_classifier",
    "runtime.train_together": "concepts_per_batch",
    "runtime.recompute": "gradient_checkpointing",
    "runtime.offload": "cpu_offload",
}


def test_old_settings_are_refused_with_their_new_names():
    with pytest.raises(PersresError) as refused:
        load_profile(OLD / "run.params.yaml")
    _, *lines = str(refused.value).splitlines()
    for path, new in OLD_SETTINGS.items():
        (line,) = [line for line in lines if line.startswith(f"  fixture.{path}: ")]
        assert line.endswith(f"is now {new!r}")
    assert len(lines) == len(OLD_SETTINGS), "every line has a new name"


def test_old_settings_with_the_new_names_are_read(tmp_path):
    raw = yaml.safe_load((OLD / "params.yaml").read_text())
    for name in raw.keys() - {"profile"}:
        assert load_profile(settings_file("params.yaml", tmp_path), name)
    profile = load_profile(settings_file("run.params.yaml", tmp_path))
    assert profile.train.variant("with_prior").num_class_images == 2 and profile.runtime.cpu_offload


# The hash of a unit holds the digest of the code that made it: units of other code run again by design.
# They are refused in one sentence, and nothing fails because of them.
OTHER_CODE = "deploy the same commit"


def test_finished_units_are_done_or_refused(tmp_path):
    work = unpack("units", tmp_path) / ".work"
    manifests = [json.loads(path.read_text()) for path in sorted(work.glob(f"[ts]*/*/{MANIFEST}"))]
    assert len(manifests) == 5 and {m["stage"] for m in manifests} == {"train", "sample", "score"}
    for manifest in manifests:
        raw = {key: manifest[key] for key in ("stage", "name", "spec")} | {"hash": manifest["spec_hash"]}
        try:
            assert is_done(unit_from_json(raw), work)
        except UnfitWorkerError as error:
            assert OTHER_CODE in str(error)


def test_a_batch_that_was_killed_before_its_manifests_is_finished(tmp_path):
    """Two units trained in one batch, killed before the first manifest."""
    unpack("units", tmp_path)
    shutil.move(tmp_path / ".work" / "noted", tmp_path / "work" / "train")
    finish_interrupted("train", tmp_path / "work")
    made = sorted((tmp_path / "work" / "train").glob(f"*/{MANIFEST}"))
    assert len(made) == 2 and not list((tmp_path / "work" / "train").glob("together-*"))
    assert {json.loads(path.read_text())["name"] for path in made} == {"settled/heart_mug", "settled/star_robot"}


def test_a_published_data_folder_is_shown_and_its_index_is_refused(tmp_path, capsys):
    data = unpack("data", tmp_path) / "data"
    assert main(["show", "--data", str(data)]) == 0
    assert "Ours w/ LAG" in capsys.readouterr().out
    assert main(["compare", "ours", "base", "--data", str(data)]) == 0
    assert "ours" in capsys.readouterr().out
    context = load_context(settings_file("run.params.yaml", tmp_path), None, data, tmp_path / "work")
    assert [concept.name for concept, _ in read_concepts(data / "concepts")] == ["heart_mug", "star_robot"]
    assert read_macro_classes(context) == {"heart_mug": "mug", "star_robot": "robot"}
    with pytest.raises(PersresError, match="run the sample stage again"):
        read_index(context)


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A clone of the repository whose v1 and v2 were published then, DVC's remote a folder next to it."""
    root = unpack("versions", tmp_path_factory.mktemp("versions"))
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
    assert actual["settings"]["train.steps"] == [5, 3] and actual["settings"]["train.early_stop_below"] == [None, 0.2]
    assert actual["settings"]["runtime.cpu_offload"] == [True, False]
    assert actual["settings"]["runtime.gradient_checkpointing"] == [False, True]
    before, after = actual["scores"]["ours"]["clip_text"]
    assert before != after and 0 < before < 1 and 0 < after < 1
    assert main(["diff", "v1", "v2", "--repo", str(repository)]) == 0
    assert "train.steps: 5 -> 3" in capsys.readouterr().out


def test_a_residual_of_a_version_is_pulled_and_gives_the_same_image(
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


def test_an_artifact_has_its_tag(repository):
    assert git(repository, "tag").split() == ["residuals@v1.0.0", "residuals@v2.0.0", "v1", "v2"]


def test_old_shards_end_in_a_report(tmp_path):
    root = unpack("fleet_store", tmp_path) / "store"
    store, work = FolderStore(root), tmp_path / "worker"
    before = set(store.keys(""))
    shards = {key.split("/")[1].removesuffix(".json") for key in before if key.startswith("shards/")}
    assert len(shards) == 5
    for shard in shards:
        assert {raw["stage"] for raw in json.loads(store.read(read_shard(str(root), shard).key))["units"]}
        old = ShardReport(**json.loads(store.read(report_key(shard))))
        assert not old.failed and all(OTHER_CODE in reason for reason in old.unfinished.values())
        new = run_shard(str(root), shard, work)
        assert not new.failed and all(OTHER_CODE in reason for reason in new.unfinished.values())
    assert set(store.keys("")) >= before, "nothing is deleted"


def test_a_store_gives_inputs_and_units_by_digest(tmp_path):
    store = FolderStore(unpack("fleet_store", tmp_path) / "store")
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
    assert [key for key in store.keys("started/") if key.startswith(mark_key(third, ""))], "a worker died at it"
