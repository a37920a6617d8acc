"""Maps of several blocks on one grid."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from persres.config.schema import SamplingConfig
from persres.sampling.mask_config import AUTO, PAPER, MaskConfig, mask_config_of, resized


@pytest.mark.parametrize(
    ("shape", "wanted", "mode"), [((2, 8), (4, 16), "bilinear"), ((4, 16), (2, 8), "area"), ((8, 2), (4, 1), "area")]
)
def test_maps_of_any_aspect_grow_smoothly_and_shrink_by_means(shape, wanted, mode):
    maps = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(resized(maps, wanted), F.interpolate(maps[:, None], wanted, mode=mode)[:, 0])
    assert resized(maps, shape) is maps


def test_the_defaults_are_those_of_a_config_and_the_papers():
    assert MaskConfig() == PAPER == mask_config_of(SamplingConfig(variant="ours", lag=True)) == mask_config_of(True)
    assert (PAPER.threshold, PAPER.area, PAPER.smooth, PAPER.source_blocks, PAPER.control, PAPER.policy) == ("median", 0.5, 0.0, (), None, "always")  # fmt: skip
    assert AUTO == mask_config_of("auto") == mask_config_of(SamplingConfig(variant="ours", lag="auto"))
    assert (AUTO.threshold, AUTO.source_blocks) == ("otsu", "confidence_weighted")
