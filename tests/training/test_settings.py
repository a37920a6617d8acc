"""Settings out of range are refused, by every method that has them."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from persres.methods.dreambooth import METHOD as DREAMBOOTH
from persres.methods.ours import Ours

DreamBooth = DREAMBOOTH.settings
OUT_OF_RANGE = {
    "steps": 0,
    "batch_size": 0,
    "lr": 0.0,
    "weight_decay": -0.1,
    "checkpoint_every": 0,
    "concepts": 0,
    "rank_ratio": 0.0,
    "rank": 0,
    "init_gain": 0.0,
    "num_class_images": -1,
    "prior_weight": -0.1,
    "early_stop_every": 0,
    "early_stop_draws": 0,
    "early_stop_below": 0.0,
}
LEAST = {"weight_decay": 0.0, "rank": 1, "num_class_images": 0, "prior_weight": 0.0, "early_stop_every": 1, "early_stop_draws": 1, "steps": 1}  # fmt: skip


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_a_setting_out_of_range_is_refused(name):
    with pytest.raises(ValidationError, match=name):
        Ours(**{name: OUT_OF_RANGE[name]})
    if name in LEAST:
        assert getattr(Ours(**{name: LEAST[name]}), name) == LEAST[name]


def test_the_share_that_stops_a_training_is_below_one():
    with pytest.raises(ValidationError, match="early_stop_below"):
        Ours(early_stop_below=1.0)


@pytest.mark.parametrize(("name", "value"), [("num_class_images", -1), ("prior_weight", -0.1)])
def test_class_images_of_other_methods_too(name, value):
    with pytest.raises(ValidationError, match=name):
        DreamBooth(**{name: value})


def test_defaults_are_the_papers():
    ours = Ours()
    assert (ours.steps, ours.batch_size, ours.lr, ours.rank_ratio, ours.num_class_images) == (150, 4, 1e-3, 0.05, 0)
    assert (ours.target, ours.init_gain, ours.train_token, ours.name_class, ours.stop) == ("proj_out", 0.01, False, True, "steps")  # fmt: skip
    assert (ours.early_stop_every, ours.early_stop_draws, ours.early_stop_below) == (25, 16, 0.1)
    assert (DreamBooth().num_class_images, DreamBooth().prior_weight) == (200, 1.0)
    assert ours.class_images() is None and DreamBooth().class_images().count == 200
