"""Upsampling: a cell becomes four by four around its centre."""

import torch
from test_heads import built, maps
from torch.testing import assert_close

from semcorr.core.coords import to_image
from semcorr.core.types import FeatureMap


def test_a_cell_becomes_four_by_four_around_its_centre():
    """What one cell changes is as far from its centre to the left as to the right."""
    head, x = built("upsample"), maps(1, 9, 11)
    changed = FeatureMap(x.values.clone(), 8)
    changed.values[..., 4, 6] += 1

    before, after = head.transform(x), head.transform(changed)

    assert (before.stride, before.values.shape[-2:]) == (2, (36, 44))
    rows, columns = (before.values != after.values).any(1)[0].nonzero().T
    pixels = to_image(torch.stack((columns, rows), dim=-1).float(), 2)
    middle = (pixels.amin(0) + pixels.amax(0)) / 2
    assert_close(middle, to_image(torch.tensor([6.0, 4.0]), 8))
    assert (pixels.amax(0) - pixels.amin(0)).tolist() == [18, 18]  # 4 cells of 2 pixels, 3 more on either side


def test_features_moved_by_a_cell_are_found_moved_by_four():
    head, x = built("upsample"), maps(1, 9, 11)

    fine, moved = head.transform(x).values, head.transform(FeatureMap(x.values.roll(1, dims=-1), 8)).values

    assert_close(moved[..., 8:-4], fine[..., 4:-8])


def test_products_over_the_channels_are_cosines_of_features_after_a_layer_norm():
    """Until its weights have learned; then they are dot products of what it gives, over their number."""
    cosines, products = built("upsample", trained=False), built("upsample", "products=true", trained=False)
    a, b, points = maps(1, 9, 11), maps(1, 9, 11), torch.rand(1, 5, 2) * 60

    centres = to_image(torch.tensor([[[3.0, 4.0], [20.0, 7.0]]]), 2)
    assert_close(products(a, b, centres), cosines(a, b, centres), atol=1e-3, rtol=0)

    with torch.no_grad():
        products.stages[-1][-1].weight.copy_(torch.rand(products.stages[-1][-1].weight.shape) + 0.5)
        fine, cell = products.transform(a), products.transform(b).values[0, :, 5, 6].tolist()
        slow = [sum(x * y for x, y in zip(d, cell, strict=True)) for d in products.describe(fine, points)[0].tolist()]
        assert_close(products(a, b, points)[0, :, 5, 6], torch.tensor(slow) / len(cell), atol=1e-5, rtol=1e-4)
