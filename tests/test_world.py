"""The shipped mini world: its weights load as a stranger would load them, and the paper's first effects show.

These are the tests that a broken method fails: a zero residual is put through the very same chain.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from persres.cli import STAGES, run_stage
from persres.residual_file import load_residual, save_residual
from persres.residuals import find_targets
from persres.stages.context import Context

CONCEPTS = ["star_robot", "team_ball", "masked_fish"]


@pytest.fixture(scope="module")
def weights(repo) -> Path:
    return repo / "persres" / "miniworld" / "weights"


def test_weights_are_small_half_precision_and_documented(weights):
    from safetensors.torch import load_file

    files = list(weights.rglob("*.safetensors"))
    assert {p.relative_to(weights).parts[0] for p in files} == {"sd", "clip", "dino", "judge"}
    assert sum(p.stat().st_size for p in files) < 40 * 2**20
    assert all(t.dtype == torch.float16 for p in files for t in load_file(p).values() if t.is_floating_point())
    assert "Measured" in (weights / "MODEL_CARD.md").read_text()
    assert not [p for p in weights.rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")]


def test_a_plain_diffusers_pipeline_draws(weights):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(weights / "sd", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    picture = pipe(
        "a photo of a red ball on the grass",
        num_inference_steps=20,
        guidance_scale=6.0,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    middle, corner = picture.resize((8, 8)).getpixel((4, 4)), picture.resize((8, 8)).getpixel((0, 7))
    assert middle[0] > max(middle[1:]) + 40, f"the ball should be red, is {middle}"
    assert corner[1] > max(corner[0], corner[2]) + 20, f"the grass should be green, is {corner}"


@pytest.fixture(scope="module")
def scored(repo, tmp_path_factory) -> Context:
    """Three concepts, eight prompts, all methods, at the mini profile's own settings."""
    folder = tmp_path_factory.mktemp("world")
    told = yaml.safe_load((repo / "params.yaml").read_text())
    mini = yaml.safe_load(
        yaml.safe_dump(told["mini"]).replace("persres/miniworld/weights", str(repo / "persres/miniworld/weights"))
    )
    mini["fetch"]["concepts"] = CONCEPTS
    mini["sample"] |= {"prompts": 8, "steps": 25}
    (folder / "params.yaml").write_text(yaml.safe_dump({"profile": "mini", "mini": mini}))
    context = Context.load(folder / "params.yaml", None, folder / "data", folder / "work")
    for stage in STAGES[:5]:
        run_stage(stage, context)
    return context


def means(context: Context) -> pd.DataFrame:
    rows = pd.read_parquet(context.data / "scores" / "scores.parquet")
    return rows.groupby("method")[["clip_text", "clip_image", "dino", "background_change"]].mean()


def test_identity_rises_and_lag_keeps_the_background(scored):
    table = means(scored)
    assert table.loc["ours", "dino"] > table.loc["base", "dino"] + 0.05
    assert table.loc["ours", "clip_image"] > table.loc["base", "clip_image"] + 0.03
    assert table.loc["ours_lag", "dino"] > table.loc["base", "dino"] + 0.02
    assert table.loc["ours_lag", "background_change"] < 0.8 * table.loc["ours", "background_change"]


def test_a_residual_of_zeros_gains_nothing(scored, tmp_path):
    """The same chain with ΔW = 0: whatever V* alone changes is far from what training gives."""
    from persres.models import load_diffusion

    before = means(scored)
    unet = load_diffusion(scored.profile.base, "cpu").unet
    for path in (scored.data / "residuals" / "ours").glob("*.safetensors"):
        state, info = load_residual(path)
        save_residual(path, {k: torch.zeros_like(v) for k, v in state.items()}, find_targets(unet), info)
    for stage in ("sample", "score"):
        run_stage(stage, scored)
    after = means(scored)
    gain, nothing = (t.loc["ours", "dino"] - t.loc["base", "dino"] for t in (before, after))
    assert nothing < 0.5 * gain
    assert after.loc["ours", "dino"] == pytest.approx(after.loc["ours_lag", "dino"], abs=1e-3)
