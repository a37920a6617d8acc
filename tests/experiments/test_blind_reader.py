"""The sheets for a blind reader, and the count of right answers."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import yaml
from PIL import Image

from persres.errors import PersresError
from persres.experiments import blind_reader
from persres.experiments.blind_reader import CELL, GAP, LINE, NONE, score, write_sheets
from persres.experiments.run_profile import run_profile
from persres.images import unzip_images


@pytest.fixture(scope="module")
def small_run(tiny_profile, tmp_path_factory):
    """A sampled run of three concepts; "ours" is the base model without guidance, so that nothing has to be trained."""
    folder = tmp_path_factory.mktemp("blind")
    sample = tiny_profile["sample"] | {"configs": {"base": {}, "ours": {"cfg_scale": 1.0}}}
    params = folder / "params.yaml"
    params.write_text(yaml.safe_dump({"profile": "tiny", "tiny": tiny_profile | {"sample": sample}}))
    return run_profile("tiny", params, folder, stages=("fetch", "macro_class", "train", "sample"))


@pytest.fixture
def sheets(small_run, tmp_path):
    """The sheets of a sampled run: two configs, three concepts."""
    return write_sheets([(small_run, ("base", "ours"))], tmp_path, seed=1), tmp_path


def answer(folder, items, say):
    (folder / "answers.json").write_text(json.dumps({str(item.number): say(item) for item in items}))
    return score(folder)


def test_every_config_shows_two_images_of_each_concept(sheets):
    items, folder = sheets
    assert [item.number for item in items] == list(range(1, len(items) + 1))
    counts = Counter((item.config, item.concept) for item in items)
    assert set(counts.values()) == {2} and {config for config, _ in counts} == {"base", "ours"}
    assert [item.config for item in items] != sorted(item.config for item in items), "configs are mixed"
    assert json.loads((folder / "key.json").read_text())[0]["number"] == 1


def test_the_sheet_shows_the_images_at_their_numbers_and_says_nothing_else(sheets, small_run):
    items, folder = sheets
    sheet = np.asarray(Image.open(folder / "images.png").convert("RGB"))
    for item in items:
        image = unzip_images(small_run.data / "samples" / item.config / f"{item.concept}.zip")[f"{item.image}.png"]
        index = item.number - 1
        left = GAP + (index % blind_reader.COLUMNS) * (CELL + GAP)
        top = GAP + (index // blind_reader.COLUMNS) * (CELL + LINE + GAP) + LINE
        assert np.array_equal(sheet[top : top + CELL, left : left + CELL], image.resize((CELL, CELL), Image.NEAREST))


def test_answers_are_counted_by_config(sheets):
    items, folder = sheets
    right = answer(folder, items, lambda item: item.letter if item.config == "ours" else NONE)
    assert right["ours"] == {"images": 6, "named": 6, "mistaken": 0, NONE: 0}
    assert right["base"] == {"images": 6, "named": 0, "mistaken": 0, NONE: 6}
    wrong = answer(folder, items, lambda item: "Z")
    assert wrong["ours"]["mistaken"] == wrong["base"]["mistaken"] == 6


def test_missing_and_surplus_answers_are_refused(sheets):
    items, folder = sheets
    with pytest.raises(PersresError, match="one answer per image"):
        answer(folder, items[1:], lambda item: NONE)
    (folder / "answers.json").write_text(json.dumps({str(n): NONE for n in range(1, len(items) + 2)}))
    with pytest.raises(PersresError, match=f"see {len(items) + 1}$"):
        score(folder)


def test_a_config_that_was_not_sampled_is_named(small_run, tmp_path):
    with pytest.raises(PersresError, match="no images of config 'lost'"):
        write_sheets([(small_run, ("lost",))], tmp_path)
    assert not list(tmp_path.iterdir())
