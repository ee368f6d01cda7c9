"""Components that two images share keep their distances, and need what is computed of both images."""

import pytest
import torch
from pair_passes import slow_joint_pca
from tiny_diffusion import IMAGE, tiny_sd
from torch.nn.functional import normalize
from torch.testing import assert_close

from semcorr.core.errors import UserError
from semcorr.models.backbones.features import cell_moments, joint_pca


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


def cosines(a, b):
    return normalize(a.flatten(2).double(), dim=1).mT @ normalize(b.flatten(2).double(), dim=1)


SPECTRA = {
    "flat": lambda i: torch.ones_like(i),
    "slow": lambda i: 1 / i,
    "fast": lambda i: 1 / i**2,
    "repeated": lambda i: torch.where(i <= 8, 10.0, 1.0).double(),
    "dominated": lambda i: torch.where(i <= 2, 1000.0, 1.0).double(),
    "low rank": lambda i: (i <= 12).double(),
}


@pytest.mark.parametrize("mean", [0, 30])
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("side", [5, 14])  # 50 and 392 cells in 96 channels: either matrix of products is decomposed
def test_cosines_are_those_of_components_computed_in_double_precision(side, spectrum, mean):
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(96, 96, generator=generator, dtype=torch.double)).Q
    scale = SPECTRA[spectrum](torch.arange(1, 97).double())
    cells = torch.randn(2, 96, side * side, generator=generator, dtype=torch.double)
    cells[1] = 0.7 * cells[0] + 0.3 * cells[1]
    offset = mean * scale.max() * torch.randn(96, 1, generator=generator, dtype=torch.double)
    source, target = (directions @ (scale[:, None] * cells) + offset).float().unflatten(2, (side, side)).split(1)

    found, expected = cosines(*joint_pca(source, target, 24)), cosines(*slow_joint_pca(source, target, 24))

    assert_close(found, expected, atol=1e-4, rtol=0)
    top = expected.topk(2).values
    clear = top[..., 0] - top[..., 1] > 2e-4
    assert torch.equal(found.argmax(-1)[clear], expected.argmax(-1)[clear])


@pytest.mark.parametrize("size", [(2, 3), (8, 8)])
def test_one_target_of_many_sources_gives_what_each_pair_gives(size):
    generator = torch.Generator().manual_seed(0)
    sources, target = torch.rand(3, 24, *size, generator=generator), torch.rand(1, 24, *size, generator=generator)

    together = joint_pca(sources, target, 8, cell_moments(target))

    for i in range(3):
        alone = slow_joint_pca(sources[i, None], target, 8)
        assert_close(cosines(together[0][i, None], together[1][i, None]), cosines(*alone), atol=1e-5, rtol=0)


def test_where_there_are_fewer_directions_than_components_the_rest_is_zero():
    generator = torch.Generator().manual_seed(0)
    source, target = torch.rand(1, 24, 2, 2, generator=generator), torch.rand(1, 24, 1, 2, generator=generator)

    a, b = joint_pca(source, target, 10)

    assert a.shape[1] == b.shape[1] == 10
    assert a[:, 5:].abs().max() < 1e-5  # six cells differ from their mean in five directions
    assert_close(
        torch.cdist(*(m.flatten(2).mT for m in (a, b))), torch.cdist(*(m.flatten(2).mT for m in (source, target)))
    )


@pytest.mark.parametrize("side", [3, 8])
def test_gradients_are_those_of_a_projection_that_stays(side):
    generator = torch.Generator().manual_seed(0)
    source, target = torch.rand(2, 1, 24, side, side, generator=generator).requires_grad_()
    weights = torch.randn(2, 1, 6, side, side, generator=generator)

    a, b = joint_pca(source, target, 6)
    (found,) = torch.autograd.grad((a * weights[0] + b * weights[1]).sum(), source)

    cells = torch.cat((source.flatten(2), target.flatten(2)), dim=2)
    centred = cells - cells.mean(dim=2, keepdim=True)
    projected = torch.cat((a.flatten(2), b.flatten(2)), dim=2).detach()
    basis = centred.detach() @ projected.mT / projected.square().sum(2)[:, None]  # directions, from what lies on them
    both = (basis.mT @ centred).split(side * side, dim=2)
    loss = sum((part * weight.flatten(2)).sum() for part, weight in zip(both, weights, strict=True))
    assert_close(found, torch.autograd.grad(loss, source)[0], atol=1e-4, rtol=1e-4)
