"""A folder of pictures: what is read, what is not and is said so, and files that are nearly pictures."""

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from stored_ways import WAYS, exif_chunk, photograph, saved, turned, write_png, write_tiff

from semcorr import match
from semcorr.core.errors import UserError
from semcorr.data.pictures import (
    list_image_files,
    list_pictures,
    load_picture,
    measure_picture,
    read_whole,
    readable_suffixes,
)
from semcorr.inference.transfer.annotations import read_annotations

GREY = photograph()[..., 0]
KNOWN = [
    "a.jfif",
    "b.JPE",
    "c.pjpeg",
    "d.pjp",
    "e.tif",
    "f.TIFF",
    "g.avif",
    "h.apng",
    "i.pgm",
    "j.webp",
    "k.bmp",
    "l.gif",
]
UNREAD = ["a.heic", "b.HEIF", "c.svg", "d.dng", "e.nef", "f.cr2", "g.psd", "h.mp4", "i", "j.jpg.bak", "k.jp2", "l.zip"]
SILENT = [
    ".hidden.heic", "._a.jpg", ".DS_Store", "labels.json", "notes.txt", "pairs.csv", "a.xml", "data.yaml", "read.md",
    "Thumbs.db", "desktop.ini",
]  # fmt: skip


def filled(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def test_every_usual_ending_is_read(tmp_path, caplog):
    filled(tmp_path, *KNOWN, *SILENT)

    assert [path.name for path in list_pictures(tmp_path)] == sorted(KNOWN)
    assert not caplog.messages


@pytest.mark.parametrize("name", UNREAD)
def test_what_is_not_read_is_named(tmp_path, caplog, name):
    list_image_files(filled(tmp_path, name, "z.png", *SILENT))

    assert [
        message for message in caplog.messages if f"{tmp_path}: 1 not read as images: {name}. Read are .jpg" in message
    ]


def test_of_many_a_few_are_named_and_all_counted(tmp_path, caplog):
    list_image_files(filled(tmp_path, *UNREAD, *KNOWN))

    assert "12 not read as images: a.heic, b.HEIF, c.svg and 9 more" in caplog.text


def test_folders_links_and_pipes_are_not_left_out_in_silence(tmp_path, caplog):
    import os

    filled(tmp_path / "below", "b.png", "c.heic")
    filled(tmp_path / ".hidden", "b.heic")
    (tmp_path / "gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "linked").symlink_to("below")
    os.mkfifo(tmp_path / "pipe.png")

    assert list_image_files(tmp_path) == []
    assert "4 not read as images: below/, gone.jpg, linked/ and 1 more" in caplog.text
    caplog.clear()
    assert list_image_files(tmp_path, recursive=True) == [tmp_path / "below/b.png"]
    assert "4 not read as images: below/c.heic, gone.jpg, linked/ and 1 more" in caplog.text


def test_a_folder_that_cannot_be_listed_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"nothing cannot be listed \(No such file or directory\)\. Give a folder"):
        list_image_files(tmp_path / "nothing")


def test_a_pillow_without_avif_does_not_take_it(tmp_path, monkeypatch, caplog):
    Image.init()
    monkeypatch.delitem(Image.OPEN, "AVIF")

    assert list_image_files(filled(tmp_path, "a.avif", "b.png")) == [tmp_path / "b.png"]
    assert "1 not read as images: a.avif" in caplog.text
    assert ".avif" not in readable_suffixes()


def test_no_image_at_all_is_a_user_error_and_what_there_is_is_named(tmp_path, caplog):
    with pytest.raises(UserError, match=r"has no images \(\.jpg, .*\)\. Give a folder of images"):
        list_pictures(filled(tmp_path, "a.heic"))
    assert "1 not read as images: a.heic" in caplog.text


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_wrong_ending_is_read_by_content(tmp_path, kind):
    Image.fromarray(GREY).save(tmp_path / "a.jpg", format=kind, lossless=True)

    assert np.array_equal(np.asarray(load_picture(tmp_path / "a.jpg").image)[..., 0], GREY)


def test_match_names_what_it_does_not_read_and_transfer_too(tmp_path, caplog):
    folder = filled(tmp_path / "many", "b.heic", "labels.json")
    for name in ("a.jfif", "c.png"):
        Image.fromarray(photograph()).save(folder / name, format="JPEG")
    line = [str(folder / "c.png"), str(folder), "--out", str(tmp_path / "out"), "--model", "tiny"]
    code = match.main([*line, "--points", "9,9", "--device", "cpu"])

    assert not code
    assert "many: 1 not read as images: b.heic" in caplog.text
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.png", "c.png", "matches.json"}

    caplog.clear()
    shutil.copy(folder / "c.png", folder / "d.img")  # its ending is none, but the annotations name it
    content = {
        "images": [{"id": 1, "file_name": "d.img"}], "categories": [{"id": 1, "name": "thing", "keypoints": ["nose"]}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "keypoints": [40.0, 50.0, 2]}],
    }  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(content))
    sheet = read_annotations(tmp_path / "a.json", folder)

    assert [target.photo.name for target in sheet.targets] == ["a.jfif", "c.png"]
    assert "many: 1 not read as images: b.heic" in caplog.text


# -- nearly pictures --


def packed(values: np.ndarray) -> bytes:
    """Of 12 bits each; an even number to a row."""
    pairs = values.reshape(-1, 2).astype(int)
    return np.stack(
        [pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], axis=-1
    ).astype(np.uint8).tobytes()  # fmt: skip


SIZE = GREY.shape[::-1]
DEEP = GREY.astype(np.uint16) * 257
HALF = np.dstack([GREY, np.where(GREY > 100, 255, 0).astype(np.uint8)])  # transparent where it is dark
WHITE = np.where(GREY > 100, GREY, 255)
KEY = struct.pack(">H", int(DEEP[0, 0]))


def few(bits: int, clear: int) -> np.ndarray:
    """The grey in fewer bits, one of its values transparent."""
    values = GREY.astype(int) * (2**bits - 1) // 255
    return np.where(values == clear, 255, values * 255 // (2**bits - 1))


GREYS = {  # files, and the grey that they show
    "16 bits": (lambda to: write_png(to, DEEP, 0, 16), GREY),
    "16 bits, one value clear": (
        lambda to: write_png(to, DEEP, 0, 16, before=[(b"tRNS", KEY)]), np.where(GREY[0, 0] == GREY, 255, GREY),
    ),
    **{
        f"{bits} bits, {key} clear": (  # of 0 to 2^bits - 1
            lambda to, bits=bits, key=key: write_png(
                to, GREY.astype(int) * (2**bits - 1) // 255, 0, bits, before=[(b"tRNS", struct.pack(">H", key))]
            ),
            few(bits, key),
        )
        for bits, key in ((1, 0), (1, 1), (2, 1), (2, 2), (4, 3), (4, 6), (4, 15))
    },
    "16 bits with alpha": (lambda to: write_png(to, HALF.astype(np.uint16) * 257, 4, 16), WHITE),
    "LA": (lambda to: write_png(to, HALF, 4), WHITE),
    "12 bits": (lambda to: write_tiff(to, packed(GREY.astype(int) * 4095 // 255), SIZE, 12), GREY),
    "16 bits, white is 0": (lambda to: write_tiff(to, (65535 - DEEP).tobytes(), SIZE, 16, t262=0), GREY),
    "8 bits, white is 0": (lambda to: write_tiff(to, (255 - GREY).tobytes(), SIZE, 8, t262=0), GREY),
    "floats": (lambda to: write_tiff(to, (GREY / 255).astype("<f4").tobytes(), SIZE, 32, t339=3), GREY),
    "one bit": (lambda to: saved(Image.fromarray(GREY > 100), to, format="PNG"), (GREY > 100) * 255),
    "big-endian": (lambda to: saved(Image.fromarray(DEEP.astype(">u2")), to, format="TIFF"), GREY),
    "PPM": (lambda to: to.write_bytes(b"P5 120 90 4095\n" + (DEEP // 16).astype(">u2").tobytes()) and to, GREY),
}  # fmt: skip


@pytest.mark.parametrize("way", GREYS)
def test_any_depth_shows_its_grey_to_benchmarks_and_to_match(tmp_path, way):
    write, expected = GREYS[way]
    path = write(tmp_path / "a")

    for image in (load_picture(path).image, read_whole(path, upright=True), read_whole(path, upright=False)):
        assert np.abs(np.asarray(image).astype(int) - expected[..., None]).max() <= 1


NO_PICTURES = {
    "floats beyond 1": (
        lambda to: write_tiff(to, GREY.astype("<f4").tobytes(), SIZE, 32, t339=3),
        "floats from 0 to 255",
    ),
    "not a number": (lambda to: write_tiff(to, np.full(SIZE, np.nan, "<f4").tobytes(), SIZE, 32, t339=3), "from nan"),
    "32 bits": (
        lambda to: write_tiff(to, (GREY.astype("<u4") << 20).tobytes(), SIZE, 32),
        "numbers from 0 to 267386880",
    ),
    "negative": (
        lambda to: write_tiff(to, (GREY.astype("<i2") - 9).tobytes(), SIZE, 16, t339=2),
        "numbers from -9 to 246",
    ),
    "a raw file": (
        lambda to: write_tiff(to, GREY.tobytes(), SIZE, 8, t254=1),
        "a camera's raw file, of which the preview",
    ),
    "a DNG": (lambda to: write_tiff(to, GREY.tobytes(), SIZE, 8, t50706=4), "a camera's raw file"),
    "HEIC": (lambda to: to.write_bytes(b"\0\0\0\x18ftypheic") and to, "seems to be HEIC"),
    "a depth of 24": (lambda to: write_tiff(to, GREY.tobytes(), SIZE, 24), "a TIFF of a depth, colours or compression"),
    "8 bits in 32": (
        lambda to: write_tiff(to, GREY.astype("<u4").tobytes(), SIZE, 32),
        "is unclear whether 255 or 65535 is white",
    ),
    "a PNG's first bytes": (lambda to: to.write_bytes(b"\x89PNG\r\n\x1a\n") and to, "a damaged PNG"),
}


@pytest.mark.parametrize("kind", NO_PICTURES)
@pytest.mark.parametrize("read", [load_picture, lambda path: read_whole(path, upright=True)])
def test_what_cannot_be_shown_is_a_user_error_with_its_name(tmp_path, kind, read):
    write, message = NO_PICTURES[kind]

    with pytest.raises(UserError) as caught:
        read(write(tmp_path / "a.jpg"))

    assert str(caught.value).startswith(str(tmp_path / "a.jpg"))
    assert message in str(caught.value)


@pytest.mark.parametrize("way", [*WAYS, "MPO"])
def test_a_file_cut_anywhere_is_a_picture_or_a_user_error(tmp_path, way):
    """Never anything else, whoever reads it."""
    frames = {"save_all": True, "append_images": [Image.fromarray(GREY)]}
    whole = WAYS[way](photograph(), tmp_path / "a") if way in WAYS else saved(
        Image.fromarray(photograph()), tmp_path / "a.mpo", **frames
    )  # fmt: skip
    content, random = whole.read_bytes(), np.random.default_rng(0)
    for end in (0, 9, *random.integers(10, len(content), 6).tolist(), len(content) - 1):
        whole.write_bytes(content[:end])
        for read in (load_picture, measure_picture, lambda path: read_whole(path, upright=True)):
            message = str(whole)
            try:
                read(whole)
            except UserError as error:
                message = str(error)
            assert str(whole) in message


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (1, 300)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_the_smallest_pictures_are_read(tmp_path, size, orientation):
    pixels = np.full((size[1], size[0], 3), 77, np.uint8)
    path = turned(pixels, tmp_path / "a.png", orientation)

    assert measure_picture(path) == (size, True)
    assert np.array_equal(np.asarray(load_picture(path).image), pixels)


def test_an_orientation_in_text_after_the_pixels_is_applied_and_other_text_decodes_nothing(tmp_path, monkeypatch):
    xmp = b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'
    noted = write_png(tmp_path / "a.png", photograph(), 2, after=[(b"iTXt", xmp)])
    plain = write_png(tmp_path / "b.png", photograph(), 2, after=[(b"tEXt", b"date:create\0today")])
    broken = write_png(tmp_path / "c.png", photograph(), 2, after=[(b"eXIf", exif_chunk(6)[:9])])

    assert measure_picture(noted).size == load_picture(noted).size == (90, 120)
    assert load_picture(broken).size == (120, 90)
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    assert measure_picture(plain).size == (120, 90)
