"""Maps of several blocks on one grid."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from persres.sampling.mask_config import resized


@pytest.mark.parametrize(
    ("shape", "wanted", "mode"), [((2, 8), (4, 16), "bilinear"), ((4, 16), (2, 8), "area"), ((8, 2), (4, 1), "area")]
)
def test_maps_of_any_aspect_grow_smoothly_and_shrink_by_means(shape, wanted, mode):
    maps = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(resized(maps, wanted), F.interpolate(maps[:, None], wanted, mode=mode)[:, 0])
    assert resized(maps, shape) is maps
