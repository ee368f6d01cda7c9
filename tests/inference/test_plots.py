"""A match as a picture: warped the right way round, and each picture in the colours of its own features."""

import numpy as np
import pytest
import torch
from matched_pictures import SMALL, drawn_cats, upright
from PIL import Image

from semcorr import Matcher
from semcorr.core.types import FeatureMap
from semcorr.data.pictures import Picture, load_picture
from semcorr.inference.dense import smooth_flow
from semcorr.inference.displayed import displayed_size
from semcorr.inference.encoded import EncodedPicture, Flow, place_picture
from semcorr.inference.plots import FADED_CONTRAST, GAP, plot_features, plot_similarity, plot_warp
from semcorr.match import MatchOptions, draw_outputs
from semcorr.visualization.canvas import POINT_COLOURS, draw_colour_bar

pytestmark = pytest.mark.integration


def noise(width: int, height: int) -> Picture:
    return load_picture(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def panels(sheet: Image.Image, *sizes: tuple[int, int]) -> list[np.ndarray]:
    """Of these original sizes, from left to right."""
    found, x = [], 0
    for width, height in map(displayed_size, sizes):
        found.append(np.asarray(sheet.crop((x, 0, x + width, height))).astype(int))
        x += width + GAP
    assert x - GAP == sheet.width
    return found


def test_a_warp_shows_the_source_where_the_flow_from_the_target_leads():
    """The target is the source from column 20 and row 10 on; where nothing is sure it is shown itself, in pale grey."""
    a = load_picture(noise(30, 30).image.resize((480, 480)))
    b = load_picture(np.asarray(a.image)[10:, 20:][:460])
    width, height = displayed_size(b.size)
    flow = torch.tensor([20.0, 10.0]).expand(height, width, 2)
    sure = torch.ones(height, width)
    sure[:, : width // 2] = 0

    left, middle, right = panels(plot_warp(a, b, Flow(flow, sure)), a.size, b.size, b.size)

    np.testing.assert_array_equal(left, np.asarray(a.image))
    np.testing.assert_array_equal(right, np.asarray(b.image.resize((width, height))))
    border = 48  # where confidence, and so the picture, goes over from one to the other
    rows, columns = np.ogrid[:height, width // 2 + border : width]
    x, y = (np.round((at + 0.5) * n / m + off - 0.5).astype(int) for at, n, m, off in
            ((columns, b.size[0], width, 20), (rows, b.size[1], height, 10)))  # fmt: skip
    assert np.corrcoef(middle[:, width // 2 + border :].ravel(), np.asarray(a.image)[y, x].ravel())[0, 1] > 0.9
    grey = np.asarray(b.image.resize((width, height)).convert("L")).astype(float) * FADED_CONTRAST + 255 * (
        1 - FADED_CONTRAST
    )
    faded = slice(0, width // 2 - border)
    assert np.abs(middle[:, faded] - grey[:, faded, None]).max() <= 1


def blocky_flow(width: int, height: int, cell: int, outliers: float) -> tuple[Flow, torch.Tensor]:
    """A shear, known at cells that each move rigidly, of which a share goes anywhere; and the shear itself."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    shear = torch.stack((0.2 * y + 10, 0.1 * x - 5), dim=-1)
    blocks = shear[cell // 2 :: cell, cell // 2 :: cell].clone()
    lost = torch.rand(blocks.shape[:2], generator=generator) < outliers
    blocks[lost] = 200 * (torch.rand(int(lost.sum()), 2, generator=generator) - 0.5)
    flow = blocks.repeat_interleave(cell, 0).repeat_interleave(cell, 1)[:height, :width]
    return Flow(flow, torch.full((height, width), 0.5)), shear


@pytest.mark.parametrize(("outliers", "most"), [(0.0, 0.5), (0.15, 1.0)])
def test_a_smoothed_flow_has_no_blocks_and_keeps_what_neighbours_agree_on(outliers, most):
    flow, shear = blocky_flow(480, 360, 20, outliers)

    smooth = smooth_flow(flow, tolerance=1.0)

    def steps(values: torch.Tensor) -> float:
        return float(values.diff(dim=1).norm(dim=-1).max())

    assert steps(flow.flow) > 1.5
    assert steps(smooth.flow) < most
    inner = (slice(40, -40), slice(40, -40))
    assert (smooth.flow - shear)[inner].norm(dim=-1).median() < 2
    assert smooth.confidence[inner].median() > 0.35


def test_a_smoothed_flow_of_one_displacement_is_that_displacement():
    flow = Flow(torch.tensor([20.0, -10.0]).expand(60, 90, 2), torch.rand(60, 90))

    torch.testing.assert_close(smooth_flow(flow, 1.0).flow, flow.flow.clone())


def test_a_flow_that_neighbours_do_not_share_is_faded():
    flow = Flow(200 * torch.rand(360, 480, 2, generator=torch.Generator().manual_seed(0)), torch.ones(360, 480))
    flow = flow._replace(flow=flow.flow[::20, ::20].repeat_interleave(20, 0).repeat_interleave(20, 1))

    assert smooth_flow(flow, 1.0).confidence.median() < 0.3


def test_a_map_has_its_pictures_aspect_the_query_and_a_bar_with_its_numbers():
    a, b = noise(90, 60), noise(60, 90)
    similarity = torch.linspace(-0.25, 0.75, 60)[None].expand(90, 60)

    plot = plot_similarity(a, b, (29.5, 19.5), similarity)

    left, right = panels(plot.crop((0, 0, 720 + GAP + 320, 480)), a.size, b.size)
    np.testing.assert_array_equal(left[300:], np.asarray(a.image.resize((720, 480)))[300:])
    y, x = np.nonzero((left == POINT_COLOURS[3]).all(-1))
    assert [(x.min() + x.max()) / 2, (y.min() + y.max()) / 2] == pytest.approx([240, 160], abs=1)
    light = right.sum(-1).mean(0).reshape(16, 20).mean(1)
    assert (np.diff(light) > 0).all()
    bar = plot.crop((720 + GAP + 320 + GAP, 0, plot.width, 480))
    np.testing.assert_array_equal(np.asarray(bar), np.asarray(draw_colour_bar(480, -0.25, 0.75, 0.7)))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("swapped", [False, True])
def test_the_commands_warp_is_what_the_target_shows(tmp_path, swapped):
    """A picture and a part of it: the warp of one is like the other where it is sure, and unlike without a flow."""
    whole = upright(drawn_cats(tmp_path)[0])
    pair = [load_picture(whole), load_picture(whole[: len(whole) * 3 // 4, whole.shape[1] // 4 :])]
    a, b = pair[::-1] if swapped else pair
    matcher = Matcher.load("efficientnet_lite0", SMALL, device="cpu")
    encoded = (matcher.encode(a), matcher.encode(b))
    wanted = MatchOptions([(3, 3)], mutual=False, limit=9, dense=True, pca=False)
    sheets = dict(draw_outputs(matcher, (a, b), encoded, matcher.match(*encoded, [(3, 3)]), wanted))

    confidence = matcher.dense(encoded[1], encoded[0], displayed_size(b.size)).confidence
    left, middle, right = panels(sheets["_warped"], a.size, b.size, b.size)
    plain = np.asarray(a.image.resize(displayed_size(b.size)))
    sure, *coarse = (blurred(np.asarray(one)) for one in (255 * (confidence > 0.5), middle, plain, right))
    off, without = (np.abs(one - coarse[-1])[sure > 250].mean() for one in coarse[:2])
    assert (sure > 250).mean() > 0.5
    assert off < 0.65 * without  # a flow from the source to the target is off by 1.0 to 1.6
    np.testing.assert_array_equal(left, np.asarray(a.image.resize(displayed_size(a.size))))


def blurred(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels.astype(np.uint8)).reduce(16)).astype(int)


def halves(size: tuple[int, int], across: bool) -> FeatureMap:
    """One kind of features left and another right, or the same above and below."""
    kinds = torch.eye(8)[:2]
    row = kinds.repeat_interleave(6, 0).T  # 8 12
    values = (row[:, None, :] if across else row[:, :, None]).expand(8, 12, 12)
    noise = 0.01 * torch.randn(8, 12, 12, generator=torch.Generator().manual_seed(0))
    return FeatureMap((values + noise)[None], 10)


def test_pictures_have_the_colours_of_their_own_features():
    """And what is alike in both has one colour."""
    a, b = noise(300, 200), noise(200, 240)
    maps = (halves(a.size, across=True), halves(b.size, across=False))
    encoded = tuple(
        EncodedPicture(one, None, place_picture(image, 120, "squash")[1], "")
        for one, image in zip(maps, (a, b), strict=True)
    )

    first, one, second, other = panels(plot_features(a, b, encoded, maps), a.size, a.size, b.size, b.size)

    np.testing.assert_array_equal(first, np.asarray(a.image.resize(displayed_size(a.size))))
    np.testing.assert_array_equal(second, np.asarray(b.image.resize(displayed_size(b.size))))
    left, right = np.array_split(one, 2, axis=1)
    above, below = np.array_split(other, 2, axis=0)
    main = int(np.abs(left.mean((0, 1)) - right.mean((0, 1))).argmax())  # the first component; others are noise
    lean = [half[..., main].mean() for half in (left, right, above, below)]
    assert abs(lean[0] - lean[1]) > 150
    assert lean[0] == pytest.approx(lean[2], abs=20)
    assert lean[1] == pytest.approx(lean[3], abs=20)
    assert all(half[..., main].std() < 20 for half in (left, right, above, below))
