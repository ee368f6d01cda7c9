"""Matcher finds the same wherever pictures were moved to, and takes pictures of any kind."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matched_pictures import SMALL, cell, drawn_cats, size_of, some_points, upright
from PIL import Image
from torch.testing import assert_close

from semcorr import Matcher

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def matcher() -> Matcher:
    """With true weights: 12 cells a side."""
    return Matcher.load("efficientnet_lite0", SMALL, device="cpu")


@pytest.fixture(scope="module")
def random() -> Matcher:
    return Matcher.load("tiny", device="cpu")


@pytest.fixture(scope="module")
def cats(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return drawn_cats(tmp_path_factory.mktemp("cats") / "drawn")


def test_a_picture_matched_with_itself_returns_the_points(matcher, cats):
    for path in cats[:3]:
        size = size_of(path)
        points = some_points(size)
        match = matcher.match(path, path, points)

        assert ((match.points - points) / cell(matcher, size)).norm(dim=-1).max() < 0.1
        assert match.consistent.all()


@pytest.mark.parametrize(
    ("dtype", "option"),
    [(torch.bfloat16, "localise=argmax"), (torch.float16, "localise=soft"), (torch.float64, "localise=window_15_zero")],
)
def test_the_default_type_of_numbers_changes_nothing(cats, dtype, option):
    a, b = (Image.fromarray(upright(path)).resize((900, 600)) for path in cats[:2])

    def ask(matcher):
        match, flow = matcher.match(a, b, [[800, 500], [301, 99]]), matcher.dense(a, b, (30, 20))
        mutual = matcher.mutual(a, b, 9)
        return [*match[:5], *flow, *mutual[:5], matcher.similarity(a, b, [800, 500], (30, 20))]

    matcher = Matcher.load("tiny", option, device="cpu")
    expected = ask(matcher)
    torch.set_default_dtype(dtype)
    try:
        given, loaded = ask(matcher), ask(Matcher.load("tiny", option, device="cpu"))
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(torch.float32)

    for values, plain in zip([*given, *loaded], [*expected, *expected], strict=True):
        assert values.dtype == plain.dtype
        assert torch.equal(values, plain)


@pytest.mark.parametrize("turn", [False, True])
@pytest.mark.parametrize("width", [1, 30])
def test_stripes_are_matched_whichever_way_they_run(random, cats, turn, width):
    levels = np.repeat(np.arange(0, 240, 6, dtype=np.uint8)[:, None], width, axis=1)
    stripes = Image.fromarray(levels.T if turn else levels)

    for a, b in ((stripes, cats[0]), (cats[0], stripes)):
        assert random.match(a, b, [[0, 0]]).points.isfinite().all()


@pytest.mark.parametrize("which", ["a", "b"])
@pytest.mark.parametrize("factor", [1.5, 3.0])
def test_a_resized_picture_moves_the_answer_with_it(matcher, cats, factor, which):
    a, b = (Image.fromarray(upright(path)) for path in cats[:2])
    points = some_points(a.size)
    plain = matcher.match(a, b, points)
    larger = [round(side * factor) for side in (a if which == "a" else b).size]
    scale = torch.tensor(larger) / torch.tensor((a if which == "a" else b).size)

    if which == "a":
        moved = matcher.match(a.resize(larger), b, (points + 0.5) * scale - 0.5).points
    else:
        moved = (matcher.match(a, b.resize(larger), points).points + 0.5) / scale - 0.5

    off = ((moved - plain.points) / cell(matcher, b.size)).norm(dim=-1)[plain.consistent]
    assert len(off) > 20
    assert off.quantile(0.95) < 0.5
    assert off.median() < 0.1


@pytest.mark.parametrize("resize", ["squash", "letterbox"])
def test_a_padded_picture_moves_the_answer_with_it(cats, resize):
    matcher = Matcher.load("tiny", f"data.resize={resize}", device="cpu")
    a, b = (upright(path) for path in cats[:2])
    points = some_points(a.shape[1::-1])
    pads = ((30, 11), (7, 50), (0, 0))

    plain = matcher.match(a, b, points)
    from_padded = matcher.match(np.pad(a, pads, constant_values=200), b, points + torch.tensor([7.0, 30.0]))
    into_padded = matcher.match(a, np.pad(b, pads, constant_values=0), points)

    assert_close(from_padded.points, plain.points, atol=1e-2, rtol=0)
    assert_close(into_padded.points - torch.tensor([7.0, 30.0]), plain.points, atol=1e-2, rtol=0)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_picture_turned_by_exif_is_matched_as_it_is_shown(random, cats, tmp_path, orientation):
    turn = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    a, b = (Image.fromarray(upright(path)) for path in cats[:2])
    b.transpose(turn).save(tmp_path / "turned.png", exif=exif)
    points = some_points(a.size)

    assert_close(random.match(a, tmp_path / "turned.png", points).points, random.match(a, b, points).points)


@pytest.mark.filterwarnings("error")
def test_one_pixel_a_line_and_a_plain_picture_have_answers_inside(random, cats):
    for odd in (np.zeros((1, 1), np.uint8), np.zeros((1, 500), np.uint8), np.full((40, 30, 3), 9, np.uint8)):
        h, w = odd.shape[:2]
        there, back = random.match(cats[0], odd, [[5, 5]]).points, random.match(odd, cats[0], [[0, 0]]).points
        assert ((there >= -0.5) & (there <= torch.tensor([w, h]) - 0.5)).all()
        assert back.isfinite().all()
