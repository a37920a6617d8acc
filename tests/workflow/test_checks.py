"""What a run would find out after hours is checked before it."""

from __future__ import annotations

import pytest
import yaml

from persres import workflow
from persres.config.schema import ClassImageRequest
from persres.errors import PersresError
from persres.methods.common.registry import load_profile
from persres.stages.checks import check_folders, check_profile
from persres.stages.train import _class_images
from persres.units.context import Context


def changed(repo, tmp_path, section: str, **values):
    """The mini profile with other settings of one section."""
    settings = yaml.safe_load((repo / "params.yaml").read_text())
    settings["mini"].setdefault(section, {}).update(values)
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(settings))
    return load_profile(path, "mini")


@pytest.mark.parametrize(
    ("section", "values", "path"),
    [
        ("score", {"attribute_classifier": "nowhere"}, "score.attribute_classifier"),
        ("encoders", {"clip": {"model": "local-dir:nowhere", "pretrained": None}}, "encoders.clip.model"),
        ("encoders", {"dino": {"model": "local-dir:package:nowhere"}}, "encoders.dino.model"),
    ],
)
def test_a_missing_folder_of_a_scoring_model_stops_the_whole_run_first(
    repo, tmp_path, monkeypatch, section, values, path
):
    profile = changed(repo, tmp_path, section, **values)
    with pytest.raises(PersresError, match=f"{path}: no folder"):
        check_folders(profile)
    monkeypatch.setattr(workflow, "run_stage", lambda name, context: pytest.fail(f"{name} begins"))
    with pytest.raises(PersresError, match=f"{path}: no folder"):
        workflow.run_chain(Context(profile, tmp_path / "data", tmp_path / "work"))
    check_folders(load_profile(repo / "params.yaml", "mini"))


@pytest.mark.parametrize("steps", [501, 750, 998, 1000])
def test_a_schedule_that_is_not_possible_stops_a_run_first(repo, tmp_path, steps):
    with pytest.raises(PersresError, match=rf"sample\.configs\.\w+\.steps: {steps} steps are not possible"):
        check_profile(changed(repo, tmp_path, "sample", steps=steps))
    with pytest.raises(PersresError, match=r"train\.class_images\.steps"):
        check_profile(
            changed(
                repo,
                tmp_path,
                "train",
                class_images={"steps": steps},
                variants={"ours": {}, "custom": {"method": "custom_diffusion", "num_class_images": 4}},
            )
        )


@pytest.mark.parametrize("macro_class", ["../secret", "/etc", "a/../../b", "dog\0", ""])
def test_a_class_is_no_path_to_class_images(tmp_path, macro_class):
    class Settings:
        def class_images(self):
            return ClassImageRequest(prompt="a {}", count=1, folder=str(tmp_path / "images"))

    with pytest.raises(PersresError, match="macro class"):
        _class_images(None, {}, Settings(), macro_class)
