"""A match as a picture: warped the right way round, and each picture in the colours of its own features."""

import numpy as np
import pytest
import torch
from matched_pictures import SMALL, drawn_cats, upright
from PIL import Image

from semcorr import Matcher
from semcorr.core.types import FeatureMap
from semcorr.data.pictures import Picture, load_picture
from semcorr.inference.encoded import EncodedPicture, Flow, place_picture
from semcorr.inference.plots import FADED, GAP, displayed_size, plot_features, plot_warp
from semcorr.match import MatchOptions, draw_outputs

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
    rows, columns = np.ogrid[:height, width // 2 : width]
    x, y = (np.round((at + 0.5) * n / m + off - 0.5).astype(int) for at, n, m, off in
            ((columns, b.size[0], width, 20), (rows, b.size[1], height, 10)))  # fmt: skip
    assert np.corrcoef(middle[:, width // 2 :].ravel(), np.asarray(a.image)[y, x].ravel())[0, 1] > 0.9
    grey = np.asarray(b.image.resize((width, height)).convert("L")).astype(float) * FADED + 255 * (1 - FADED)
    assert np.abs(middle[:, : width // 2] - grey[:, : width // 2, None]).max() <= 1


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
