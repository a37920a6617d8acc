"""LAG by prompt: which prompts are masked."""

from __future__ import annotations

import pytest
import torch

from persres.config.schema import SamplingConfig
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
