"""Components that two images share keep their distances, and need the pair."""

import pytest
import torch
from tiny_diffusion import IMAGE, tiny_sd
from torch.nn.functional import normalize
from torch.testing import assert_close

from semcorr.core.errors import UserError
from semcorr.models.backbones.features import joint_pca


def test_joint_components_are_those_of_both_images_together():
    generator = torch.Generator().manual_seed(0)
    source, target = torch.rand(2, 6, 4, 8, generator=generator), torch.rand(2, 6, 2, 3, generator=generator)

    a, b = joint_pca(source, target, 4)

    for i in range(2):
        cells = torch.cat((source[i].flatten(1), target[i].flatten(1)), dim=1).T.double()
        cells = cells - cells.mean(0)
        _, singular, directions = torch.linalg.svd(cells)
        ours = torch.cat((a[i].flatten(1), b[i].flatten(1)), dim=1).T.double()
        assert_close(ours.norm(dim=0), singular[:4], atol=1e-5, rtol=1e-5)  # in the order of their variance
        assert_close(ours @ ours.T, (cells @ directions[:4].T) @ (cells @ directions[:4].T).T, atol=1e-4, rtol=1e-4)


def test_all_components_keep_every_distance_and_some_keep_most():
    backbone = tiny_sd(layers=[5], components=24)

    with torch.no_grad():
        a, b = backbone.pair(IMAGE[:1], IMAGE[1:])
        plain = tiny_sd(layers=[5])(IMAGE).values

    assert (backbone.joint, backbone.pairwise) == (True, False)
    distances = torch.cdist(a.values.flatten(2).mT, b.values.flatten(2).mT)
    assert_close(distances, torch.cdist(*(p[None].flatten(2).mT for p in plain)), atol=1e-3, rtol=1e-3)


def test_components_of_several_layers_lie_side_by_side_and_need_a_pair():
    backbone = tiny_sd(layers=[1, 4, 7], components=5)

    with torch.no_grad():
        a, _ = backbone.pair(IMAGE, IMAGE.flip(0))
        _, swapped = backbone.pair(IMAGE.flip(0), IMAGE)

    assert a.values.shape == (2, 15, 4, 8)
    assert backbone.channels == 15
    cosines = [torch.einsum("bcn,bcm->bnm", *[normalize(m.values.flatten(2), dim=1)] * 2) for m in (a, swapped)]
    assert_close(*cosines, atol=1e-3, rtol=1e-3)
    with pytest.raises(UserError, match="depend on both images"):
        backbone(IMAGE)
