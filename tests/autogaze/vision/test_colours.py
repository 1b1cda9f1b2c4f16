"""Feature maps as colours."""

import torch

from autogaze.vision.colours import Colours


def test_like_features_have_like_colours_and_unlike_ones_other_colours():
    random = torch.Generator().manual_seed(0)
    kinds = torch.randn(3, 16, generator=random) * 5
    features = kinds.repeat_interleave(50, dim=0) + torch.randn(150, 16, generator=random) / 100
    found = Colours.of(features)(features).int().view(3, 50, 3)
    assert (found.amax(dim=1) - found.amin(dim=1))[:, :2].max() < 10  # the third direction holds what is left: noise
    apart = (found.float().mean(dim=1)[:, None] - found.float().mean(dim=1)).abs().amax(dim=2)
    assert apart[~torch.eye(3, dtype=torch.bool)].min() > 100


def test_colours_are_fixed_by_the_features_they_were_made_of():
    features = torch.randn(2, 4, 4, 8, generator=torch.Generator().manual_seed(1))
    colours = Colours.of(features)
    found = colours(features)
    assert found.shape == (2, 4, 4, 3) and found.dtype == torch.uint8
    assert torch.equal(colours(features[:1]), found[:1])
    assert found.amin() == 0 and found.amax() == 255
    assert colours(features * 1000).amax() == 255  # clamped, not wrapped round
