from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from semcorr.core.coords import from_view
from semcorr.core.errors import UserError
from semcorr.data.dataset import make_view
from semcorr.data.open_image import FORMATS, list_decoders
from semcorr.data.record import ImageRecord
from semcorr.data.views import fit_to_square, load_image, render_square, to_unit_range

SIZES = [(400, 200), (150, 310), (97, 101), (60, 40)]  # wide, tall, odd, enlarged


def record(path: Path, size: tuple[int, int], keypoints: list[list[float]]) -> ImageRecord:
    points = torch.tensor(keypoints, dtype=torch.float32)
    return ImageRecord("one", path, size, points, torch.ones(len(points), dtype=torch.bool), (10.0, 5.0, 30.0, 25.0))


def centroid(image: torch.Tensor, near: torch.Tensor, reach: int) -> torch.Tensor:
    """Centre of brightness around a point."""
    x, y = near.round().long().tolist()
    top, left = max(y - reach, 0), max(x - reach, 0)
    window = image.mean(0)[top : y + reach + 1, left : x + reach + 1]
    rows, columns = torch.arange(window.shape[0]) + top, torch.arange(window.shape[1]) + left
    return torch.stack((window.sum(0) @ columns.float(), window.sum(1) @ rows.float())) / window.sum()


@pytest.mark.parametrize("resize", ["squash", "letterbox"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("place", [(0.25, 0.3), (0.6, 0.8), (0.9, 0.15)])
def test_a_dot_drawn_at_a_keypoint_lands_at_the_keypoint_of_the_view(tmp_path, resize, size, place):
    x, y = round(place[0] * size[0]), round(place[1] * size[1])
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[y - 2 : y + 3, x - 2 : x + 3] = 255
    Image.fromarray(pixels).save(tmp_path / "dot.png")

    seen = make_view(record(tmp_path / "dot.png", size, [[x, y]]), side=112, resize=resize)

    found = centroid(to_unit_range(seen.image), seen.keypoints[0], reach=2 + round(4 * max(seen.scale.tolist())))
    assert_close(found, seen.keypoints[0], atol=0.1, rtol=0)


@pytest.mark.parametrize("resize", ["squash", "letterbox"])
@pytest.mark.parametrize("size", SIZES)
def test_from_view_leads_back_to_original_pixels(tmp_path, resize, size):
    points = torch.rand(6, 2) * torch.tensor(size)

    seen = make_view(record(tmp_path, size, points.tolist()), side=112, resize=resize, pixels=False)

    assert_close(from_view(seen.keypoints, seen.scale, seen.offset), points, atol=1e-3, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_letterbox_keeps_the_aspect_to_a_pixel(size):
    how = fit_to_square(size, side=112, resize="letterbox")

    assert max(how.size) == 112
    assert abs(how.size[0] * size[1] / size[0] - how.size[1]) <= 0.5 * max(size[1] / size[0], 1)


@pytest.mark.parametrize(
    ("size", "inside"),
    [((400, 200), (slice(25, 75), slice(0, 100))), ((200, 400), (slice(0, 100), slice(25, 75)))],
)
def test_letterbox_pads_with_black_on_both_sides(size, inside):
    white = Image.new("RGB", size, "white")

    square = render_square(white, 100, fit_to_square(size, 100, "letterbox"))

    expected = torch.zeros(3, 100, 100, dtype=torch.uint8)
    expected[:, inside[0], inside[1]] = 255
    assert_close(square, expected)


@pytest.mark.parametrize(
    ("resize", "expected"),
    [("letterbox", [9.625, 29.625, 49.625, 54.625]), ("squash", [9.625, 9.75, 49.625, 59.75])],
)
def test_the_box_follows_the_image(tmp_path, resize, expected):
    boxed = record(tmp_path, (400, 200), [[0.0, 0.0]])._replace(box=(40.0, 20.0, 200.0, 120.0))

    seen = make_view(boxed, side=100, resize=resize, pixels=False)

    assert seen.box.tolist() == expected  # (40 + .5) / 4 - .5, and so on; letterbox adds 25 rows above


def test_a_square_of_the_right_size_passes_unchanged():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)

    square = render_square(Image.fromarray(pixels), 32, fit_to_square((32, 32), 32, "squash"))

    assert torch.equal(square, torch.from_numpy(pixels).permute(2, 0, 1))


def test_bytes_become_their_255th_parts_to_the_last_bit():
    every = np.arange(256, dtype=np.uint8)
    expected = np.array([np.float32(value) / np.float32(255) for value in every])

    found = to_unit_range(torch.from_numpy(every).reshape(1, 1, 256).expand(2, 3, 1, 256))

    assert found.dtype == torch.float32
    assert np.array_equal(found.numpy(), np.broadcast_to(expected, (2, 3, 1, 256)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_divides_bytes_as_a_cpu_does():
    every = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)

    assert torch.equal(to_unit_range(every.cuda()).cpu(), to_unit_range(every))


def test_floats_are_not_divided_again():
    image = torch.rand(3, 4, 4)

    assert to_unit_range(image) is image


def test_exif_orientation_is_not_applied(tmp_path):
    """No benchmark's annotations expect it; readers that turn images move every keypoint."""
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    Image.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)

    assert load_image(tmp_path / "turned.jpg").size == (40, 20)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_any_colour_mode_is_read_as_rgb(tmp_path, mode):
    suffix = "jpg" if mode == "CMYK" else "png"
    Image.new("RGB", (8, 8), "white").convert(mode).save(tmp_path / f"one.{suffix}")

    square = render_square(load_image(tmp_path / f"one.{suffix}"), 8, fit_to_square((8, 8), 8, "squash"))

    assert_close(to_unit_range(square), torch.ones(3, 8, 8), atol=0.01, rtol=0)


def test_sides_are_rounded_as_the_quotient_of_whole_numbers():
    """39 x 840 / 624 is 52.5 and goes to the even side; 39 times the rounded ratio is a little more."""
    assert fit_to_square((624, 39), 840, "letterbox").size == (840, 52)
    assert round(39 * (840 / 624)) == 53


@pytest.mark.parametrize("size", [(640, 480), (333, 500), (77, 77)])
def test_a_margin_surrounds_what_the_square_would_be_without_it(size):
    plain, wide = fit_to_square(size, 800, "corner"), fit_to_square(size, 812, "corner+6")

    assert (wide.size, wide.scale) == (plain.size, plain.scale)
    assert (plain.offset, wide.offset) == ((0, 0), (6, 6))


@pytest.mark.parametrize("resize", ["corner+", "corner+0", "corner-6", "squash+6", "corner+56", "corner+12345"])
def test_a_margin_that_cannot_be_is_refused(resize):
    with pytest.raises(UserError, match=r"`data\.resize`"):
        fit_to_square((40, 30), 112, resize)


def test_pixels_are_those_of_torchvision():
    from torchvision.transforms.functional import pil_to_tensor

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (10, 14, 3), dtype=np.uint8))
    fit = fit_to_square(image.size, 14, "squash")
    expected = pil_to_tensor(image.resize((14, 14), Image.Resampling.BICUBIC))
    assert_close(render_square(image, 14, fit), expected, rtol=0, atol=0)


def test_the_decoders_are_those_that_pillow_knows():
    Image.init()
    assert list_decoders() == [name for name in FORMATS if name in Image.OPEN]
