"""A match draws itself: in notebooks, as an image, and on files that are read again."""

import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matched_pictures import SMALL
from PIL import Image, ImageShow

from semcorr import Matcher
from semcorr.core.errors import UserError
from semcorr.data.pictures import load_picture
from semcorr.inference.displayed import displayed_size
from semcorr.inference.matches import Match
from semcorr.inference.plots import GAP, LEGEND, plot_matches

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def matcher() -> Matcher:
    return Matcher.load("efficientnet_lite0", SMALL, device="cpu")


@pytest.fixture
def files(tmp_path) -> list[str]:
    generator = np.random.default_rng(0)
    paths = []
    for name, size in (("a.png", (90, 120)), ("b.png", (100, 60))):
        Image.fromarray(generator.integers(0, 255, (*size, 3), dtype=np.uint8)).resize((200, 150)).save(tmp_path / name)
        paths.append(str(tmp_path / name))
    return paths


def test_a_notebook_gets_the_plot_as_png(matcher, files):
    match = matcher.match(*files, [(20, 30), (100, 90)])

    displayed = Image.open(io.BytesIO(match._repr_png_() or b""))

    expected = plot_matches(load_picture(files[0]), load_picture(files[1]), match)
    np.testing.assert_array_equal(np.asarray(displayed), np.asarray(expected))
    width, height = displayed_size((200, 150))
    assert displayed.size == (2 * width + GAP, height + LEGEND)
    np.testing.assert_array_equal(np.asarray(match.plot()), np.asarray(expected))


@pytest.mark.parametrize("give", [load_picture, Image.open, lambda path: np.asarray(Image.open(path))])
def test_pictures_without_a_path_are_kept_to_draw_on(matcher, files, give):
    a, b = (give(path) for path in files)
    points = [(20, 30)]

    plots = [np.asarray(match.plot()) for match in (matcher.match(a, b, points), matcher.match(*files, points))]

    np.testing.assert_array_equal(*plots)


def test_every_way_to_match_can_be_drawn(matcher, files):
    encoded = matcher.encode(files[0])
    matches = [*matcher.match(encoded, files, [(20, 30)]), matcher.mutual(encoded, files[1], most=3)]

    assert all(match.plot().height == 480 + LEGEND for match in matches)


def test_of_a_large_picture_no_more_is_kept_than_is_displayed(matcher):
    large = np.random.default_rng(0).integers(0, 255, (900, 1600, 3), dtype=np.uint8)

    kept, _ = matcher.match(large, large[:100, :100], [(1500, 800)]).pictures or ()

    assert kept.size == (1600, 900)
    assert kept.origin.size == displayed_size((1600, 900))


def test_a_path_is_found_again_from_another_folder(matcher, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    match = matcher.match("a.png", "b.png", [(20, 30)])
    monkeypatch.chdir("/")

    match.plot()


def test_a_file_that_is_gone_or_replaced_is_reported(matcher, files, caplog):
    match = matcher.match(*files, [(20, 30)])
    Image.new("RGB", (40, 30)).save(files[1])

    with pytest.raises(UserError, match=r"b\.png is 40 x 30 pixels now, and was 200 x 150"):
        match.plot()
    assert match._repr_png_() is None  # a notebook shows the text, and no traceback
    (record,) = caplog.records
    assert "The match is not drawn: " in record.getMessage()
    assert "b.png is 40 x 30 pixels now" in record.getMessage()


def test_a_match_made_by_hand_says_how_it_is_drawn():
    match = Match(torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1), torch.ones(1).bool(), torch.zeros(1, 2))

    assert match._repr_png_() is None
    with pytest.raises(UserError, match="plot_matches"):
        match.plot()


def test_show_displays_in_a_notebook_in_a_viewer_or_says_that_there_is_none(matcher, files, monkeypatch):
    match, displayed, viewed = matcher.match(*files, [(20, 30)]), [], []
    monkeypatch.setattr(ImageShow, "show", lambda image: viewed.append(image) or True)
    for shell in (SimpleNamespace(kernel=object()), object()):  # a notebook's; IPython's in a terminal
        ipython = SimpleNamespace(
            get_ipython=lambda shell=shell: shell, display=SimpleNamespace(display=displayed.append)
        )
        monkeypatch.setitem(sys.modules, "IPython", ipython)
        match.show()
    monkeypatch.delitem(sys.modules, "IPython")
    match.show()

    assert [image.size for image in displayed] == [match.plot().size]
    assert [image.size for image in viewed] == [match.plot().size] * 2
    monkeypatch.setattr(ImageShow, "show", lambda image: False)
    with pytest.raises(UserError, match=r"match\.plot\(\)\.save"):
        match.show()


def test_points_that_do_not_come_back_are_hollow_and_numbered_points_have_colours(files):
    points = torch.tensor([[40.0, 40.0], [150.0, 100.0]])
    match = Match(points, points, torch.ones(2), torch.tensor([True, False]), points)

    plot = np.asarray(plot_matches(load_picture(files[0]), load_picture(files[1]), match)).astype(int)

    width, _ = displayed_size((200, 150))
    for start in (0, width + GAP):
        (x, y), (u, v) = ((start + (a + 0.5) * 3.2, (b + 0.5) * 3.2) for a, b in points.tolist())
        assert np.abs(plot[round(y) - 6, round(x) - 1] - (86, 180, 233)).max() < 30
        assert plot[round(v) - 6, round(u)].min() > 220
