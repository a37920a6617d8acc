"""The studies ``masks`` and ``lag_by_prompt``: positions, mask coverage and claims, on made-up rows."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
import pytest
import torch

from persres.experiments.evidence.localisation import Case
from persres.experiments.extensions.lag_by_prompt import claims as prompt_claims
from persres.experiments.extensions.masks import claims as mask_claims
from persres.experiments.extensions.masks.coverage import GROUPS, MASK_CONFIGS, SHUFFLED, masks_from_maps, scene_groups
from persres.experiments.extensions.sampled import off_centre, paired, ratio
from persres.methods.common.registry import load_profile
from persres.prompts import PROMPT_GROUPS
from persres.sampling.mask_config import AUTO, MaskConfig


def test_an_object_is_off_centre_by_its_centroid():
    masks = np.zeros((3, 10, 10), dtype=bool)
    masks[0, 3:7, 3:7], masks[1, 0:4, 3:7] = True, True
    assert off_centre(masks).tolist() == [False, True, False]
    case = Case(torch.zeros(3, 1, 10, 10), torch.from_numpy(masks[[0, 1, 1]]), ["", "", ""], ["", "", ""])
    assert scene_groups(case, [False, False, True]) == list(GROUPS)


def test_masks_of_blocks_have_one_size():
    maps = {"a": torch.rand(2, 16), "b": torch.rand(2, 64)}
    per_block = masks_from_maps(maps, MaskConfig("otsu"), 8)
    assert len(per_block) == 2 and all(m.shape == (2, 64) for m in per_block)
    assert len(masks_from_maps(maps, AUTO, 8)) == 1
    single = masks_from_maps(maps, MaskConfig(source_blocks=("b",)), 8)[0]
    assert torch.equal(single, MaskConfig().mask(maps["b"], (8, 8)))


# DINO and background change by config
SCORES = {
    "base": (0.3, np.nan),
    "ours": (0.6, 0.05),
    "auto": (0.6, 0.01),
    "ours_lag": (0.57, 0.025),
    "weaker": (0.5, 0.03),
    "auto_disk": (0.55, 0.01),
    "auto_random": (0.4, 0.01),
    "auto_inverted": (0.32, 0.045),
    "when_scenes": (0.6, 0.03),
    **{f"share_{s}": (0.58, 0.01) for s in mask_claims.SHARES},
    **{f"disk_{s}": (0.55, 0.01) for s in mask_claims.SHARES},
}


def score_rows(**other: tuple[float, float]) -> pd.DataFrame:
    """Ten concepts, every prompt group and position; ``other`` replaces scores."""
    return pd.DataFrame([
        {"config": config, "concept": f"c{c}", "prompt_group": prompts, "group": position, "dino": score + 0.001 * c,
         "clip_text": 1 - score / 5, "background_change": change}
        for config, (score, change) in (SCORES | other).items() for c in range(10)
        for prompts in PROMPT_GROUPS for position in GROUPS
    ])  # fmt: skip


def coverage(auto: float) -> pd.DataFrame:
    iou = {"auto": auto, "auto_disk": 0.5, SHUFFLED: 0.4}
    return pd.DataFrame([
        {"set": "concepts", "concept": f"c{c}", "mask": name, "group": group, "iou": value + 0.001 * c, "ceiling": 0.5}
        for name, value in iou.items() for c in range(10) for group in GROUPS
    ])  # fmt: skip


def holding(claims: Iterable[dict]) -> set[str]:
    return {c["claim"] for c in claims if c["holds"]}


def test_claims_about_masks_hold_by_their_margins_and_fail_under_controls():
    rows = score_rows()
    claims = list(mask_claims.claims(rows, coverage(0.75)))
    assert {c["claim"] for c in claims} == holding(claims)
    assert "quarter" not in holding(mask_claims.claims(score_rows(auto=(0.6, 0.02)), coverage(0.75)))
    assert "identity_retained" not in holding(mask_claims.claims(score_rows(auto=(0.57, 0.01)), coverage(0.75)))
    assert "iou" not in holding(mask_claims.claims(rows, coverage(0.68)))
    controls = mask_claims.negative_controls(rows, coverage(0.75))
    assert {verdict for verdicts in controls.values() for verdict in verdicts.values()} == {"fails"}
    assert paired(rows, "dino", "auto", "base") == pytest.approx(np.full(10, 0.3))
    assert ratio(rows, "background_change", "auto", "ours") == pytest.approx(np.full(10, 0.2))
    assert len(paired(rows, "dino", "auto", "missing")) == 0


def test_claims_about_prompts_hold_and_fail_under_controls():
    rows = score_rows(auto=(0.599, 0.01))
    assert {c["claim"] for c in prompt_claims.claims(rows)} == holding(prompt_claims.claims(rows))
    assert set(prompt_claims.negative_controls(rows)["masks inverted"].values()) == {"fails"}


def test_the_profile_samples_what_claims_and_figures_need(repo):
    profile = load_profile(repo / "params.yaml", "masks")
    needed = set(SCORES) | set(prompt_claims.CONFIGS) | set(MASK_CONFIGS)
    assert needed <= set(profile.sample.configs)
    assert profile.sample.images_per_prompt == 4 and profile.sample.prompts is None and not profile.fetch.concepts
