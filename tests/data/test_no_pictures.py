"""Files that are no images, or of formats that are not read: what they are is said, and what can be done about it."""

import logging
import struct

import numpy as np
import pytest
from PIL import Image
from stored_ways import TURNS, photograph

from semcorr.core.errors import UserError
from semcorr.data.pictures import list_image_files, load_picture, measure_picture

PIXELS = photograph()
SAVE, REPLACE = "Save it as JPEG or PNG.", "Replace the file"
STARTS = {  # first bytes, what they are taken for, and the remedy
    "HEIC": (b"\0\0\0\x18ftypheic", "HEIC", SAVE),
    "a burst of HEIC": (b"\0\0\0\x18ftyphevc", "HEIC", SAVE),
    "CR3": (b"\0\0\0\x18ftypcrx ", "a camera's raw file", SAVE),
    "NEF": (b"MM\0*\0\0\0\x08", "a TIFF of a depth", SAVE),
    "JPEG XL": (b"\xff\x0a\0\0", "JPEG XL", SAVE),
    "PSD": (b"8BPS\0\1", "a Photoshop file", SAVE),
    "SVG": (b"<svg xmlns='x'/>", "an SVG drawing", SAVE),
    "SVG with a prologue": (b"<?xml version='1.0'?><svg/>", "XML or an SVG drawing", SAVE),
    "PDF": (b"%PDF-1.4", "a PDF", SAVE),
    "EXR": (b"v/1\x01\x02\0\0\0", "OpenEXR", SAVE),
    "HDR": (b"#?RADIANCE\n", "Radiance HDR", SAVE),
    "TGA": (b"\0\0\x02\0" + bytes(40), "a TGA image", SAVE),
    "PAM": (b"P7\nWIDTH 1\n", "a PAM image", SAVE),
    "DICOM": (bytes(128) + b"DICM", "DICOM", SAVE),
    "GIMP": (b"gimp xcf file\0", "a GIMP file", SAVE),
    "DDS": (b"DDS |\0\0\0", "a DDS texture", SAVE),
    "FITS": (b"SIMPLE  =                    T", "FITS", SAVE),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS", "Run `git lfs pull`."),
    "a page": (b"\n<!doctype html>", "a web page", "Download the image itself."),
    "a page in capitals": (b"<HTML>", "a web page", "Download the image itself."),
    "a ZIP": (b"PK\x03\x04", "a ZIP archive", "Unpack it."),
    "MKV": (b"\x1aE\xdf\xa3", "a video", REPLACE),
    "MP4": (b"\0\0\0\x20ftypisom", "a video", REPLACE),
    "nothing": (b"", "empty", REPLACE),
    "zeros": (bytes(999), "none of a known kind", REPLACE),
    "half a JPEG": (b"\xff\xd8\xff\xe0", "a damaged JPEG", REPLACE),
}  # fmt: skip


@pytest.mark.parametrize("kind", STARTS)
def test_what_a_file_is_and_what_to_do_is_reported(tmp_path, kind):
    start, message, remedy = STARTS[kind]
    path = tmp_path / "a.jpg"
    path.write_bytes(start)

    for read in (load_picture, measure_picture):
        with pytest.raises(UserError) as error:
            read(path)
        assert str(error.value).startswith(f"{path} is damaged or not an image: it seems to be ")
        assert message in str(error.value)
        if read is load_picture or remedy != REPLACE:
            assert str(error.value).endswith(remedy)


def exif_of(kind: int, count: int, value: bytes) -> bytes:
    """An orientation as a field of any type."""
    return b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHI4s", 0x0112, kind, count, value) + bytes(4)


ORIENTATIONS = {  # type of the field, its count and value; whether it turns, and whether something is said
    "a short": (3, 1, b"\6\0\0\0", True, ""),
    "a long": (4, 1, b"\6\0\0\0", True, ""),
    "a byte": (1, 1, b"\6\0\0\0", True, ""),
    "two of them": (3, 2, b"\6\0\6\0", True, "too many entries"),
    "text": (2, 2, b"6\0\0\0", False, "its orientation is '6'"),
    "0": (3, 1, b"\0\0\0\0", False, ""),
    "9": (3, 1, b"\x09\0\0\0", False, ""),
}


@pytest.mark.parametrize("case", ORIENTATIONS)
def test_an_orientation_of_an_odd_type_turns_or_is_reported(tmp_path, caplog, case):
    kind, count, value, turns, message = ORIENTATIONS[case]
    stored = np.ascontiguousarray(TURNS[6](PIXELS)) if turns else PIXELS
    path = tmp_path / "a.webp"
    Image.fromarray(stored).save(path, lossless=True, exif=exif_of(kind, count, value))

    with caplog.at_level(logging.WARNING):
        assert np.array_equal(np.asarray(load_picture(path).image), PIXELS)
    assert measure_picture(path).size == PIXELS.shape[1::-1]
    assert message in caplog.text
    assert bool(caplog.text) is bool(message)


@pytest.mark.parametrize("folder", ["__MACOSX", "@eaDir", "$RECYCLE.BIN", ".thumbnails"])
def test_copies_that_systems_make_are_no_images_of_a_folder(tmp_path, caplog, folder):
    for name in ("a.png", f"{folder}/a.png", f"{folder}/b.jpg", f"sub/{folder}/c.jpg", "sub/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    assert list_image_files(tmp_path, recursive=True) == [tmp_path / "a.png", tmp_path / "sub/d.png"]
    assert not caplog.text
