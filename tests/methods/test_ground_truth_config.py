"""The sampling config that no model samples: the dataset draws the right answers, and they are scored as any other config."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from persres.errors import PersresError
from persres.experiments.run_profile import run_profile
from persres.images import square, to_images, to_tensor, unzip_images
from persres.methods.common.registry import load_profile
from persres.miniworld.ground_truth import render_prompt
from persres.models.diffusion import load_diffusion
from persres.seeding import seed_from
from persres.stages.jobs import job_type
from persres.units.outputs import read_index

CONFIGS = {"base": {}, "truth": {"ground_truth": "rendered"}, "truth_decoded": {"ground_truth": "autoencoder"}}


@pytest.fixture(scope="module")
def run(tiny_profile, tmp_path_factory):
    """All stages of a profile with five concepts, so that there are intervals."""
    folder = tmp_path_factory.mktemp("truth")
    names = ["heart_mug", "star_robot", "banded_cat", "nameless_0", "nameless_1"]
    (folder / "nouns.txt").write_text("mug\ncat\n")
    changes = {
        "fetch": tiny_profile["fetch"] | {"concepts": names},
        "sample": tiny_profile["sample"] | {"configs": CONFIGS},
        "score": {"attribute_classifier": "package:miniworld/weights/judge"},
    }
    (folder / "params.yaml").write_text(yaml.safe_dump({"profile": "tiny", "tiny": tiny_profile | changes}))
    return run_profile("tiny", folder / "params.yaml", folder)


def images(run, config: str, concept: str) -> dict:
    return unzip_images(run.data / "samples" / config / f"{concept}.zip")


def test_the_images_are_the_renderers(run):
    [spec] = [a.spec for a in read_index(run).archives if a.name == "truth/star_robot"]
    shown = images(run, "truth", "star_robot")
    assert list(shown) == [f"{image.name}.png" for image in spec.image_specs]
    for image in spec.image_specs:
        text = next(prompt.text for prompt in spec.prompts if prompt.number == image.number)
        seed = seed_from("ground truth", "star_robot", image.number, image.image, 0)
        wanted = square(render_prompt("star_robot", text, seed), run.profile.base.resolution)
        assert np.array_equal(np.asarray(shown[f"{image.name}.png"]), np.asarray(wanted))


def test_the_second_set_is_encoded_and_decoded(run):
    vae = load_diffusion(run.profile.base, "cpu")
    name, image = next(iter(images(run, "truth", "heart_mug").items()))
    with torch.no_grad():
        [wanted] = to_images(vae.decode(vae.posterior(to_tensor([image]))[0]))
    given = np.asarray(images(run, "truth_decoded", "heart_mug")[name]).astype(int)
    assert np.abs(given - np.asarray(wanted)).max() <= 1
    assert np.abs(given - np.asarray(image)).mean() > 5, "a random autoencoder changes it"


def test_the_ceiling_is_one_and_the_base_model_zero(run):
    table = pd.read_csv(run.data / "tables" / "ceiling.csv").set_index("config")
    for score in ("dino", "clip_image", "dino_object"):
        assert table.loc["truth", f"{score}_share"] == pytest.approx(1)
        assert table.loc["base", f"{score}_share"] == pytest.approx(0)
    assert table.loc["truth", "clip_text_distance"] == pytest.approx(0)
    assert table.loc["base", "clip_text_distance_low"] <= table.loc["base", "clip_text_distance"]
    assert "| truth |" in (run.data / "tables" / "ceiling.md").read_text()


def test_the_ground_truth_has_no_parameters_and_no_background_to_change(run):
    methods = (run.data / "tables" / "methods.md").read_text().splitlines()
    [row] = [line for line in methods if line.startswith("| truth |")]
    assert row.split("|")[2].strip() == "–"
    rows = pd.read_parquet(run.data / "scores" / "scores.parquet")
    assert rows.loc[rows["config"] == "truth", "background_change"].isna().all()
    assert read_index(run).configs["base"].sampling.is_base and not read_index(run).configs["truth"].sampling.is_base


def test_its_code_is_the_renderers(run):
    kind, specs = job_type("sample"), {archive.spec.config: archive.spec for archive in read_index(run).archives}
    assert "persres.miniworld.ground_truth" in kind.modules(specs["truth"])
    assert kind.modules(specs["base"]) == []
    assert kind.cost(specs["truth"]) == 0 < kind.cost(specs["base"])


def refused(tiny_profile, folder, **changes) -> str:
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump({"profile": "tiny", "tiny": tiny_profile | changes}))
    with pytest.raises(PersresError) as error:
        load_profile(path)
    return str(error.value)


def test_a_ground_truth_with_a_residual_is_refused(tiny_profile, tmp_path):
    sample = {"configs": {"truth": {"ground_truth": "rendered", "variant": "ours"}}}
    assert "sample.configs.truth" in refused(tiny_profile, tmp_path, sample=sample)
    for option in ({"lag": True}, {"strength": 0.5}, {"wrong_concept": True}):
        sample = {"configs": {"truth": {"ground_truth": "rendered"} | option}}
        assert "a residual; set variant" in refused(tiny_profile, tmp_path, sample=sample)


@pytest.mark.parametrize("kind", ["rendered", "autoencoder"])
def test_a_dataset_of_photos_has_none(tiny_profile, tmp_path, kind):
    fetch = {"dataset": "folder", "folder": "photos"}
    text = refused(tiny_profile, tmp_path, fetch=fetch, sample={"configs": {"truth": {"ground_truth": kind}}})
    assert "sample.configs.truth.ground_truth: dataset folder has no renderer (only miniworld has one)" in text


def test_another_kind_of_ground_truth_is_refused(tiny_profile, tmp_path):
    sample = {"configs": {"truth": {"ground_truth": "painted"}}}
    assert "ground_truth" in refused(tiny_profile, tmp_path, sample=sample)
