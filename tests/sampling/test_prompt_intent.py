"""LAG or not by itself: what prompts ask for, and what is measured of masks, on made-up rows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from persres.config.schema import SamplingConfig
from persres.experiments.evidence.localisation import Case
from persres.experiments.extensions.lag_by_prompt import claims as prompt_claims
from persres.experiments.extensions.masks import claims as mask_claims
from persres.experiments.extensions.masks.coverage import GROUPS, MASK_CONFIGS, SHUFFLED, masks_from_maps, scene_groups
from persres.experiments.extensions.sampled import off_centre, paired, ratio
from persres.methods.common.registry import load_profile
from persres.sampling.lag import guidance_rule
from persres.sampling.mask_config import AUTO, MaskConfig, mask_config_of, masks_prompt
from persres.sampling.prompt_intent import prompt_intent

SCENE = ("a photo of a {} on the beach", "a {} next to a red ball", "{} in the snow", "a photo of a {}", "a close up of my {} and a wooden table",
         "a {} wearing a hat", "{} on top of a painted wall")  # fmt: skip
APPEARANCE = ("a watercolour painting of a {}", "a photo of a red {}", "pixel art of a {} in the snow", "a {} made of crochet", "{} in the style of Van Gogh",
        "a {} painted in oil", "a cube shaped {}", "a {} sculpture of marble in a garden")  # fmt: skip


@pytest.mark.parametrize("text", SCENE + APPEARANCE)
def test_a_prompts_words_say_whether_the_thing_itself_changes(text):
    phrase = "<v*> dog"
    assert prompt_intent(text.format(phrase), phrase) == ("scene" if text in SCENE else "look")


def test_prompts_are_masked_by_what_they_ask_for():
    by_words = MaskConfig("otsu", source_blocks="confidence_weighted", policy="scenes")
    assert masks_prompt(by_words, "a dog on the moon", "dog") and not masks_prompt(by_words, "a red dog", "dog")
    assert masks_prompt(AUTO, "a red dog", "dog")
    assert mask_config_of(SamplingConfig(variant="ours", lag="auto")) == AUTO
    settings = SamplingConfig(
        variant="ours", lag=True, mask="quantile", mask_area=0.2, mask_blocks=["a"], mask_smooth=0.5
    )
    assert mask_config_of(settings) == MaskConfig("quantile", 0.2, ("a",), 0.5)


def test_where_no_block_is_sure_nothing_is_masked():
    noise, attention = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 8, 8)
    attention[:, 2:5, 2:5] = 1
    rule = guidance_rule(
        torch.ones(1, 2, 3), "mask", MaskConfig("otsu", source_blocks="confidence_weighted", policy="high_confidence")
    )[1]
    rule.finish("b.proj_out", torch.cat([noise, attention] * 2).flatten(1), (8, 8))
    mask = rule.mask_at((8, 8))[0]
    assert mask[[0, 2]].all() and torch.equal(mask[1].view(8, 8), attention[0])


def test_a_thing_is_off_centre_by_its_centroid():
    masks = np.zeros((3, 10, 10), dtype=bool)
    masks[0, 3:7, 3:7], masks[1, 0:4, 3:7] = True, True
    assert off_centre(masks).tolist() == [False, True, False]
    case = Case(torch.zeros(3, 1, 10, 10), torch.from_numpy(masks[[0, 1, 1]]), ["", "", ""], ["", "", ""])
    assert scene_groups(case, [False, False, True]) == list(GROUPS)


def test_masks_of_blocks_are_brought_to_one_size():
    maps = {"a": torch.rand(2, 16), "b": torch.rand(2, 64)}
    block_masks = masks_from_maps(maps, MaskConfig("otsu"), 8)
    assert len(block_masks) == 2 and all(m.shape == (2, 64) for m in block_masks)
    assert len(masks_from_maps(maps, AUTO, 8)) == 1
    only = masks_from_maps(maps, MaskConfig(source_blocks=("b",)), 8)[0]
    assert torch.equal(only, MaskConfig().mask(maps["b"], (8, 8)))


GOOD = {
    "base": (0.3, np.nan),
    "ours": (0.6, 0.05),
    "auto": (0.6, 0.01),
    "ours_lag": (0.57, 0.025),
    "weaker": (0.5, 0.03),
}


def made_up(**other: tuple[float, float]) -> pd.DataFrame:
    """DINO and background change by method, ten concepts, every group of prompts and of places."""
    dino = {f"share_{s}": (0.58, 0.01) for s in mask_claims.SHARES} | {
        f"disk_{s}": (0.55, 0.01) for s in mask_claims.SHARES
    }
    dino |= {
        "auto_disk": (0.55, 0.01),
        "auto_random": (0.4, 0.01),
        "auto_inverted": (0.32, 0.045),
        "when_scenes": (0.6, 0.03),
    }
    cells = GOOD | dino | other
    return pd.DataFrame([
        {"method": method, "concept": f"c{c}", "prompt_group": group, "group": place, "dino": score + 0.001 * c,
         "clip_text": 1 - score / 5, "background_change": change}
        for method, (score, change) in cells.items() for c in range(10)
        for group in ("background", "object", "style", "property") for place in GROUPS
    ])  # fmt: skip


def lying(auto: float) -> pd.DataFrame:
    iou = {"auto": auto, "auto_disk": 0.5, SHUFFLED: 0.4}
    return pd.DataFrame([
        {"set": "concepts", "concept": f"c{c}", "masking": name, "group": group, "iou": value + 0.001 * c, "ceiling": 0.5}
        for name, value in iou.items() for c in range(10) for group in GROUPS
    ])  # fmt: skip


def holding(claims) -> set[str]:
    return {c["claim"] for c in claims if c["holds"]}


def test_claims_of_masks_hold_by_their_margins_and_fall_when_broken():
    rows = made_up()
    claims = list(mask_claims.claims(rows, lying(0.75)))
    assert {c["claim"] for c in claims} - holding(claims) == set()
    assert "quarter" not in holding(mask_claims.claims(made_up(auto=(0.6, 0.02)), lying(0.75)))
    assert "kept" not in holding(mask_claims.claims(made_up(auto=(0.57, 0.01)), lying(0.75)))
    assert "iou" not in holding(mask_claims.claims(rows, lying(0.68)))
    assert {v for names in mask_claims.negative_controls(rows, lying(0.75)).values() for v in names.values()} == {
        "falls"
    }
    assert paired(rows, "dino", "auto", "base") == pytest.approx(np.full(10, 0.3))
    assert ratio(rows, "background_change", "auto", "ours") == pytest.approx(np.full(10, 0.2))
    assert len(paired(rows, "dino", "auto", "nobody")) == 0


def test_claims_of_choosing_hold_and_fall():
    rows = made_up(auto=(0.599, 0.01))
    assert {c["claim"] for c in prompt_claims.claims(rows)} == holding(prompt_claims.claims(rows))
    assert set(prompt_claims.negative_controls(rows)["masks inverted"].values()) == {"falls"}


def test_the_profile_draws_what_the_claims_and_figures_need(repo):
    configs = set(load_profile(repo / "params.yaml", "masks").sample.configs)
    assert set(made_up()["method"]) | set(prompt_claims.CONFIGS) | set(MASK_CONFIGS) - {"auto_disk"} <= configs
    profile = load_profile(repo / "params.yaml", "masks")
    assert profile.sample.images_per_prompt == 4 and profile.sample.prompts is None and not profile.fetch.concepts
