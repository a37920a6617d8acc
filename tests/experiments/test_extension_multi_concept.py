"""The evidence on several concepts: which region is whose, the benchmark's list of pairs, and the whole part without a judge."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from persres.errors import PersresError
from persres.experiments.evidence.provenance import code_of
from persres.experiments.extensions.multi_concept import measure
from persres.experiments.extensions.multi_concept.cases import PAIRS, TRIPLES
from persres.experiments.extensions.multi_concept.figures import coloured_masks
from persres.experiments.extensions.multi_concept.pairs import read_pairs
from persres.experiments.extensions.multi_concept.sampling import CODE, CONFIGS
from persres.experiments.extensions.multi_concept.scores import mask_accuracy
from persres.experiments.extensions.regions import MAX_PARTS, Regions, connected_parts, match_parts, read_regions
from persres.experiments.extensions.study import Run
from persres.miniworld.attribute_classifier import load_attribute_classifier
from persres.miniworld.concepts import CONCEPTS
from persres.miniworld.render import Scene, render
from persres.models.diffusion import load_diffusion
from persres.package_paths import located
from persres.workflow import load_context


def test_touching_parts_are_parted_and_one_part_stays_one():
    mask = np.zeros((64, 64), dtype=bool)
    mask[10:40, 5:25] = mask[20:45, 30:55] = True
    mask[30:32, 25:30] = True  # a bridge of two pixels
    two, one = connected_parts(mask, 2)  # the larger first
    assert one[:, :25].sum() > 0.95 * one.sum() and two[:, 30:].sum() > 0.95 * two.sum() and not (one & two).any()
    assert len(connected_parts(mask, 1)) == 1, "no more than needed"
    assert connected_parts(np.zeros((64, 64), dtype=bool), 2) == []


def test_objects_take_the_parts_with_the_best_total_score():
    scores = np.log(np.array([[0.6, 0.4], [0.9, 0.1]]))  # both parts look like class 0, the second more
    assert match_parts(scores, [0, 1]) == [1, 0] and match_parts(scores, [1, 0]) == [0, 1]
    assert match_parts(scores[:1], [1, 0]) == [None, 0] and match_parts(scores[:0], [0, 1]) == [None, None]


def test_regions_of_rendered_pairs_are_the_true_ones(repo):
    classifier, rng = (
        load_attribute_classifier(Path(located("package:miniworld/weights/judge"))),
        np.random.default_rng(1),
    )
    looks = {c.name: c.appearance for c in CONCEPTS}
    scenes = [Scene(looks[a], "snow", second=looks[b]) for a, b in PAIRS]
    drawn = [render(scene, rng) for scene in scenes]
    kinds = [(scene.subject.kind, scene.second.kind) for scene in scenes]
    result = read_regions(classifier, np.stack([np.asarray(d.image) for d in drawn]), kinds)
    right = [
        (regions.masks[k] & d.masks[k]).sum() > 0.7 * (regions.masks[k] | d.masks[k]).sum()
        for regions, d in zip(result, drawn, strict=True)
        for k in range(2)
    ]
    assert np.mean(right) > 0.85
    assert np.mean([regions.seen.mean() for regions in result]) > 0.7


def test_pairs_are_of_two_classes_and_every_concept_stands_in_some():
    kinds = {c.name: c.appearance.kind for c in CONCEPTS}
    assert all(len({kinds[n] for n in names}) == len(names) <= MAX_PARTS for names in (*PAIRS, *TRIPLES))
    assert {name for names in PAIRS for name in names} == set(kinds) and len(set(map(frozenset, PAIRS))) == len(PAIRS)


def write_list(folder: Path) -> Path:
    """A benchmark of one pair, laid out as the published one, with a drawn photo for each of three."""
    entries = [
        {"class_prompt": kind, "instance_data_dir": f"./benchmark_dataset/{name}", "prompt_filename": "prompts/cat.txt"}
        for name, kind in (("pet_cat1", "cat"), ("things_mug1", "mug"))
    ]
    (folder / "prompts").mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps(entries))
    (folder / "dataset_multiconcept.json").write_text(
        json.dumps([[*entries, {"prompt_filename_compose": "prompts/pet_things.txt"}]])
    )
    (folder / "prompts" / "cat.txt").write_text("".join(f"a photo of a {{}} {'and ' * i}\n" for i in range(20)))
    (folder / "prompts" / "pet_things.txt").write_text("a {0} next to a {1}\n a {1} with a {0} \nthe {0} and the {0}\n")
    for entry in entries:
        place = folder / entry["instance_data_dir"]
        place.mkdir(parents=True)
        for i in range(3):
            noise = np.random.default_rng(i).integers(0, 255, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(noise).save(place / f"{i}.jpg")
    return folder


def test_the_list_of_pairs_is_read_and_a_prompt_without_both_is_left_out(tmp_path):
    (pair,) = read_pairs(write_list(tmp_path / "lists"))
    assert (pair.names, pair.classes) == (("pet_cat1", "things_mug1"), ("cat", "mug"))
    assert pair.prompts == ("a {1} next to a {2}", "a {2} with a {1}")
    with pytest.raises(PersresError, match="list of pairs"):
        read_pairs(tmp_path)


@pytest.fixture
def photos_params(tiny_profile, tmp_path) -> Path:
    """A profile ``several`` without a judge: two concepts of a list laid out as CustomConcept101's, random models."""
    changed = tiny_profile | {
        "fetch": {"dataset": "customconcept101", "folder": str(write_list(tmp_path / "lists"))},
        "macro_class": {"source": "dataset"},
        "train": {
            "class_images": {"steps": 1},
            "variants": {
                "ours": {"steps": 2, "rank_ratio": 0.4, "init_gain": 1.0},
                "custom_diffusion": {"method": "custom_diffusion", "steps": 2, "batch_size": 2, "num_class_images": 2, "resize": False},
            },
        },
        "sample": {"steps": 2, "images_per_prompt": 1, "configs": {"base": {}}},
    }  # fmt: skip
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump({"profile": "multi_concept", "multi_concept": changed}))
    return path


def test_the_study_runs_on_a_list_of_photos_and_samples_nothing_twice(photos_params, tmp_path, monkeypatch):
    run, out = Run(photos_params, tmp_path / "work", "cpu"), tmp_path / "out"
    out.mkdir()
    summary = measure.measure(run, out)
    assert set(CONFIGS) <= set(summary["configs"]) and summary["images"] == 2 and not summary["classified"]
    assert summary["masks"]["max_sum"] <= 1 + 1e-3
    for method in CONFIGS:
        result = summary["configs"][method]
        assert -1 <= result["worse"]["mean"] <= 1 and result["missing"]["mean"] is None, method
    assert summary["configs"]["base"]["background_change"]["mean"] == 0
    assert {p.name for p in out.iterdir()} == {"rows.csv", "sheet.png", "scores.png"}
    assert measure.configs(summary).count("\n") == len(CONFIGS) + 3 and measure.triples(summary)
    monkeypatch.setattr("persres.experiments.extensions.multi_concept.sampling.sample_batch", None)
    context = load_context(
        photos_params, "multi_concept", tmp_path / "work" / "multi_concept" / "data", tmp_path / "work"
    )
    sampler = measure.MultiConceptSampler(
        context, load_diffusion(context.profile.base, "cpu"), tmp_path / "work" / measure.CACHE
    )
    cases = measure.cases_of(context)
    again = {method: sampler.sample(method, cases) for method in CONFIGS}
    assert not np.array_equal(again["ours"].images, again["added"].images)
    assert not np.array_equal(again["merged"].images, again["base"].images)


def test_mask_accuracy():
    left, right = np.zeros((2, 8, 8), dtype=bool)
    left[:, :4], right[:, 4:] = True, True
    regions = Regions(np.stack([left, right]), np.array([True, True]), left | right)
    masks = np.zeros((4, 2, 4, 4))
    masks[0, 0, :, :2] = masks[0, 1, :, 2:] = 1  # each on its own
    masks[1] = masks[0, ::-1]  # on the other's
    masks[2] = 1  # everywhere; the last nowhere
    result = mask_accuracy(masks, [regions] * 4)
    assert result[:3].tolist() == [1, 0, 0.5] and np.isnan(result[3]) and np.isnan(mask_accuracy(None, [regions])[0])


def test_masks_are_shown_a_colour_each():
    masks = np.zeros((2, 4, 4))
    masks[0, 0, 0] = masks[1, 1, 1] = 1
    picture = np.asarray(coloured_masks(masks))
    assert (
        picture[0, 0].tolist() == [230, 60, 60] and picture[1, 1].tolist() == [60, 150, 240] and picture[3].sum() == 0
    )


def test_the_study_can_be_run(repo):
    part = measure.STUDY
    assert part.measure is measure.measure and code_of(CODE)
    assert load_context(repo / "params.yaml", part.profile).profile.sample.images_per_prompt == 4
