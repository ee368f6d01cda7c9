"""Images are opened by formats that Pillow decodes itself, and by no others, whatever their names end in."""

import logging
import re
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from tiny_benchmarks import write_coco, write_spair

import semcorr
from semcorr.core.errors import UserError
from semcorr.data.coco_keypoints import COCOKeypoints
from semcorr.data.download.verify import check_images
from semcorr.data.open_image import open_image
from semcorr.data.pictures import load_picture
from semcorr.data.record import ImageRecord, Segmentation, image_size
from semcorr.data.spair import SPair
from semcorr.data.views import load_image
from semcorr.evaluation.pose.masks import segmentation_mask

PIXELS = np.kron(np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10, np.ones((16, 16, 1), np.uint8))
FORMATS = {"jpg": 4, "png": 0, "webp": 12, "tif": 0, "bmp": 0, "gif": 12, "ppm": 0, "avif": 12}  # off by, at most
OTHERS = ["EPS", "ICO", "TGA", "PCX", "SGI", "DDS", "ICNS", "JPEG2000", "QOI"]  # Pillow reads them, too
FAKES = {
    "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch x) (w) file\n": "PostScript",
    "%PDF-1.7\n": "a PDF",
    '<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>': "XML or an SVG drawing",
    "<!DOCTYPE html><p>404": "a web page",
    "version https://git-lfs.github.com/spec/v1\n": "a pointer of Git LFS",
    "no picture at all": "a text",
    "PK\x03\x04....": "a ZIP archive",
    "8BPS\0\1": "a Photoshop file",
    "\0\0\0\x18ftypheic": "HEIC",
    "\x7fELF\2\1\1\0": "none of a known kind",
    "": "empty",
}


def read_segmentation(path: Path) -> None:
    record = ImageRecord("a", path, (8, 8), torch.zeros(0, 2), torch.zeros(0).bool(), (0.0, 0.0, 7.0, 7.0))
    segmentation_mask(record._replace(segmentation=Segmentation(path, 1)))


def check(path: Path) -> None:
    check_images([ImageRecord("a", path, (8, 8), torch.zeros(0, 2), torch.zeros(0).bool(), (0.0, 0.0, 7.0, 7.0))])


def evaluate(path: Path) -> None:
    """The first image of a benchmark."""
    root = write_spair(path.parent / "spair")
    path.rename(root / "JPEGImages/cat/one.jpg")
    for pair in SPair(root=str(root), size=32).pairs("test"):
        load_image(pair.source.path)


def list_pairs(path: Path) -> None:
    root = write_coco(path.parent / "coco")
    path.rename(root / "images/00.jpg")
    COCOKeypoints(root=str(root), size=32, val=0, test=1).pairs("test")


READERS = [load_image, image_size, load_picture, read_segmentation, check, evaluate, list_pairs]


@pytest.fixture
def no_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program that is started is a failure."""

    def refuse(*arguments: object, **_: object) -> None:
        raise AssertionError(f"started {arguments}")

    for name in ("Popen", "call", "check_call", "run", "check_output"):
        monkeypatch.setattr(subprocess, name, refuse)


def saved(path: Path, kind: str) -> Path:
    """An image of a format that is not read, under the name of one that is."""
    with path.open("wb") as file:
        image = Image.fromarray(np.kron(PIXELS, np.ones((4, 4, 1), np.uint8)))
        image.save(file, format=kind)
    return path


@pytest.mark.usefixtures("no_programs")
@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("kind", OTHERS)
def test_other_formats_of_pillow_are_refused_whatever_their_name(tmp_path, kind, read):
    path = saved(tmp_path / "a.png", kind)

    with pytest.raises(UserError, match=r"(a\.png|one\.jpg|00\.jpg) is damaged or not an image: it seems to be .*, and "
                                        "read are JPEG, PNG, WEBP, TIFF, BMP, GIF, PPM, AVIF"):  # fmt: skip
        read(path)


@pytest.mark.usefixtures("no_programs")
@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("fake", FAKES, ids=FAKES.values())
def test_what_is_no_image_is_reported_by_what_it_seems_to_be(tmp_path, fake, read):
    (tmp_path / "a.jpg").write_bytes(fake.encode("latin1"))

    with pytest.raises(UserError, match=f"it seems to be {FAKES[fake]}"):
        read(tmp_path / "a.jpg")


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("name", ["a.{}", "a.txt", "a"])
def test_the_formats_that_are_read_are_recognised_by_their_bytes(tmp_path, suffix, name):
    Image.fromarray(PIXELS).save(tmp_path / f"b.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    path = (tmp_path / f"b.{suffix}").rename(tmp_path / name.format(suffix))

    for image in (load_image(path), load_picture(path).image):
        assert np.abs(np.asarray(image).astype(int) - PIXELS).max() <= FORMATS[suffix]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("read", [load_image, load_picture])
@pytest.mark.parametrize("share", [0.1, 0.4, 0.7])
def test_a_truncated_image_is_refused_in_every_format(tmp_path, suffix, read, share):
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    with pytest.raises(UserError, match=r"a\.\w+ is damaged or not an image"):
        read(path)


def test_no_library_of_ours_has_truncated_images_read():

    assert not ImageFile.LOAD_TRUNCATED_IMAGES


COMPRESSIONS = ["raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "lzma", "jpeg", "zstd"]


@pytest.mark.parametrize("compression", [*COMPRESSIONS, "group3", "group4", "tiff_ccitt"])
def test_a_damaged_tiff_of_any_compression_is_an_image_or_a_users_error(tmp_path, compression):
    path = tmp_path / "a.tif"
    bits = compression not in COMPRESSIONS
    Image.fromarray(PIXELS).convert("1" if bits else "RGB").save(path, compression=compression)
    assert load_image(path).size == (64, 32)
    whole = path.read_bytes()

    for seed in range(20):
        draw = np.random.default_rng(seed)
        damaged = bytearray(whole)
        for place in draw.integers(0, len(whole), 8):
            damaged[place] = int(draw.integers(256))
        path.write_bytes(damaged)
        with suppress(UserError):
            load_image(path)


@pytest.mark.parametrize("read", [load_image, image_size, load_picture])
def test_corrupt_metadata_is_reported_once_and_the_image_used(tmp_path, caplog, read: Callable[[Path], object]):
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "x" * 200, 1
    path = tmp_path / "a.jpg"
    Image.fromarray(PIXELS).save(path, exif=exif)
    path.write_bytes(path.read_bytes().replace(b"\1\x0e\0\2\0\0\0\xc9", b"\1\x0e\0\2\0\0\xff\xff"))

    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            with open_image(path) as image:
                image.getexif()
            read(path)

    assert [text for text in caplog.messages if "a.jpg" in text] == caplog.messages
    assert len(caplog.messages) == 1
    assert caplog.messages[0].endswith("The image is used all the same")


def test_nothing_of_ours_opens_an_image_otherwise():
    package = Path(semcorr.__file__).parent
    sources = [*package.rglob("*.py"), *(package.parents[1] / "scripts").glob("*.py")]
    found = {path.name for path in sources if re.search(r"Image\.open\(|imread\(|torchvision\.io", path.read_text())}

    assert found == {"open_image.py", "digital.py"}  # the latter reads the JPEG that it has just compressed
