"""Whatever file or array a user has: the right colours the right way up, or a sentence."""

import struct
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from semcorr.core.errors import UserError
from semcorr.data.pictures import MIN_REDUCED_PIXELS, list_image_files, list_pictures, load_picture
from semcorr.inference.encoded import place_picture, trim_borders

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = RGB[..., 0]
TURNS = {  # EXIF orientation: what a camera does to the upright picture before it writes it
    1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, 1), 7: lambda x: np.rot90(x, 2).swapaxes(0, 1), 8: lambda x: np.rot90(x, -1),
}  # fmt: skip


def pixels(source: object) -> np.ndarray:
    return np.asarray(load_picture(source).image)


def alike(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)


@pytest.mark.parametrize(
    ("source", "expected"),
    {
        "RGB": (RGB, RGB),
        "grey": (GREY, alike(GREY)),
        "one channel": (GREY[..., None], alike(GREY)),
        "16 bits": (GREY.astype(np.uint16) * 257, alike(GREY)),
        "floats": (RGB / 255, RGB),
        "half precision": (torch.from_numpy(GREY / 255).half(), alike(GREY)),
        "booleans": (GREY > 100, alike((GREY > 100).astype(np.uint8) * 255)),
        "a tensor, channels first": (torch.from_numpy(RGB).permute(2, 0, 1), RGB),
        "a grey tensor": (torch.from_numpy(GREY), alike(GREY)),
        "PIL": (Image.fromarray(RGB), RGB),
        "PIL, 16 bits": (Image.fromarray(GREY.astype(np.uint16) * 257), alike(GREY)),
        "PIL, floats": (Image.fromarray((GREY / 255).astype(np.float32)), alike(GREY)),
        "PIL, palette": (Image.fromarray(GREY).convert("P"), alike(GREY)),
        "PIL, CMYK": (Image.fromarray(255 - np.dstack([RGB, np.full_like(GREY, 255)]), mode="CMYK"), RGB),
    }.values(),
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
def test_any_array_or_image_becomes_eight_bit_colours(source, expected):
    assert np.abs(pixels(source).astype(int) - expected).max() <= 1


def test_what_is_transparent_is_white_whatever_lies_under_it(tmp_path):
    clear = np.dstack([RGB, np.zeros_like(GREY)])
    clear[2, 3, 3] = 255
    Image.fromarray(clear).save(tmp_path / "clear.png")

    found = pixels(tmp_path / "clear.png")

    assert (found[2, 3] == RGB[2, 3]).all()
    assert (found[0] == 255).all()


def as_mode(pixels: np.ndarray, mode: str) -> Image.Image:
    image = Image.fromarray(pixels)
    return (
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
        if mode == "I;16"
        else image.convert(mode)
    )


@pytest.mark.parametrize(
    ("mode", "kind"), [("RGB", "png"), ("L", "png"), ("I;16", "png"), ("CMYK", "jpg"), ("RGB", "tif")]
)
@pytest.mark.parametrize("orientation", TURNS)
def test_a_file_and_its_pil_image_are_turned_upright(tmp_path, orientation, mode, kind):
    upright = np.asarray(Image.fromarray(RGB).resize((45, 30), Image.Resampling.NEAREST))
    stored = as_mode(np.ascontiguousarray(TURNS[orientation](upright)), mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"turned.{kind}", exif=exif)

    expected = np.asarray(as_mode(upright, "L" if mode == "I;16" else mode).convert("RGB"))
    with Image.open(tmp_path / f"turned.{kind}") as opened:
        for source in (tmp_path / f"turned.{kind}", opened):
            found = load_picture(source)
            assert found.size == found.image.size == (45, 30)
            off = np.abs(np.asarray(found.image).astype(int) - expected)
            assert off.mean() < (20 if kind == "jpg" else 1)


@pytest.mark.parametrize(("orientation", "size"), [(1, (10000, 6000)), (6, (6000, 10000))])
def test_a_jpeg_of_sixty_megapixels_is_never_whole_in_memory(tmp_path, orientation, size):
    path = tmp_path / "large.jpg"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("L", (10000, 6000), 90).save(path, exif=exif)

    found = load_picture(path)

    assert found.size == size
    assert min(found.image.size) >= 1200
    assert found.image.width * found.image.height <= MIN_REDUCED_PIXELS / 4
    assert found.image.width / found.image.height == pytest.approx(size[0] / size[1], rel=1e-3)


def bomb(path: Path, side: int) -> Path:
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 100) + b"IDAT" + bytes(100))
    return path


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_a_png_that_unpacks_to_gigabytes_is_refused_before_it_does(tmp_path, side):
    with pytest.raises(UserError, match="Reduce it"):
        load_picture(bomb(tmp_path / "bomb.png", side))


def test_a_jpeg_above_pillows_limit_is_a_user_error(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**6)
    Image.new("L", (2000, 1001)).save(tmp_path / "huge.jpg")

    with pytest.raises(UserError, match=r"huge.jpg has more than 2 million pixels, which are not decoded. Reduce it$"):
        load_picture(tmp_path / "huge.jpg")


def test_a_truncated_jpeg_a_text_and_a_missing_file_are_each_a_user_error_with_their_name(tmp_path):
    whole = tmp_path / "whole.jpg"
    Image.fromarray(RGB).resize((300, 200)).save(whole)
    (tmp_path / "cut.jpg").write_bytes(whole.read_bytes()[:2000])
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.jpg").touch()

    for name in ("cut.jpg", "text.jpg", "empty.jpg", "missing.jpg", "."):
        with pytest.raises(UserError) as message:
            load_picture(tmp_path / name)
        assert str(tmp_path / name) in str(message.value)


@pytest.mark.parametrize(
    "source",
    [RGB.astype(np.int32), RGB * 2.0, np.full((3, 3), np.nan), RGB[None], np.zeros((0, 4)), torch.zeros(5, 6, 7)],
)
def test_an_array_that_is_no_picture_is_a_user_error(source):
    with pytest.raises(UserError, match=r"`image`.*got|`image`.*must"):
        load_picture(source)


def test_a_folder_gives_its_pictures_in_order_and_an_empty_one_a_user_error(tmp_path):
    for name in ("b.PNG", "a.jpg", "notes.txt", "._a.jpg", ".hidden.png"):
        (tmp_path / name).touch()
    (tmp_path / "none").mkdir()

    assert [path.name for path in list_pictures(tmp_path)] == ["a.jpg", "b.PNG"]
    with pytest.raises(UserError, match="no images"):
        list_pictures(tmp_path / "none")


def test_folders_below_are_looked_into_but_for_hidden_ones(tmp_path):
    for name in (".folder/a.jpg", "below/.b.jpg", "below/c.jpg", "d.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    found = list_image_files(tmp_path, recursive=True)

    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["below/c.jpg", "d.jpg"]


def test_plain_borders_are_left_out_and_plain_pictures_are_not():
    framed = np.full((20, 30, 3), 7, np.uint8)
    framed[4:10, 5:14] = RGB

    assert trim_borders(Image.fromarray(framed)) == (5, 4, 14, 10)
    assert trim_borders(Image.fromarray(RGB)) == (0, 0, 9, 6)
    assert trim_borders(Image.new("RGB", (1, 1))) == (0, 0, 1, 1)
    assert trim_borders(Image.new("RGB", (8, 5), "red")) == (0, 0, 8, 5)


@pytest.mark.parametrize("resize", ["squash", "letterbox", "corner"])
def test_a_point_of_a_padded_picture_lies_in_the_view_where_its_pixel_is(resize):
    framed = np.zeros((40, 60, 3), np.uint8)
    framed[10:30, 20:50] = np.random.default_rng(0).integers(0, 120, (20, 30, 3))
    framed[16, 33] = 255
    view, place = place_picture(load_picture(framed), 120, resize)

    brightest = divmod(int(view[0].argmax()), 120)[::-1]
    point = place.to_view(torch.tensor([[33.0, 16.0]]))

    assert (point[0] - torch.tensor(brightest)).abs().max() <= 2.5  # the pixel is 4 to 6 wide here
    assert torch.allclose(place.from_view(point), torch.tensor([[33.0, 16.0]]), atol=1e-4)


def test_a_tiff_that_pil_does_not_turn_is_a_user_error_and_not_a_picture_on_its_side(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("CMYK", (45, 30)).save(tmp_path / "turned.tif", exif=exif)

    with suppress(UserError):  # as of Pillow 13, which says that it turned it and did not
        found = load_picture(tmp_path / "turned.tif")
        assert found.size == found.image.size == (30, 45)
