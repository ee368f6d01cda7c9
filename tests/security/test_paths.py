"""No name that stands in a file leads out of its folder, and no file that is none makes a reader wait."""

import os
import random
import socket
from pathlib import Path

import pytest
import torch
from readers_of_names import READERS, Reader
from safetensors.torch import save_file
from tiny_benchmarks import picture, write_spair

from semcorr.core.errors import UserError
from semcorr.core.paths import name_fault, open_plain, quote_value, require_file_name, resolve_inside
from semcorr.data.pictures import load_picture as read_picture
from semcorr.data.record import image_size
from semcorr.data.spair import SPair
from semcorr.data.views import load_image

ATTACKS = {
    "a folder above": "../outside.jpg",
    "above, from below": "a/../../outside.jpg",
    "many above": "../" * 40 + "etc/hostname",
    "an absolute path": "/etc/hostname",
    "two slashes": "//etc/hostname",
    "a drive": "C:/outside.jpg",
    "backslashes": "..\\outside.jpg",
    "a drive with backslashes": "C:\\outside.jpg",
    "another machine": "\\\\host\\share\\outside.jpg",
    "a home folder": "~/outside.jpg",
    "a URL": "http://localhost/outside.jpg",
    "a file URL": "file:///etc/hostname",
    "a name that is too long": "x" * 300 + ".jpg",
    "bytes that are too many": "ä" * 128,
    "nothing but a folder": "./",
    "a control character": "out\x1bside.jpg",
}
IN_JSON = {
    "a NUL byte": "outside.jpg\0.png",
    "a new line": "out\nside.jpg",
    "half a character": "out\ud800side.jpg",
    "no name": "",
}
CASES = [
    pytest.param(reader, name, id=f"{reader}: {attack}")
    for reader, about in READERS.items()
    for attack, name in (ATTACKS | (IN_JSON if about.json else {})).items()
    if not (about.file.endswith(".xml") and attack == "a control character")  # which is no XML
]


@pytest.mark.parametrize(("reader", "name"), CASES)
def test_a_name_that_leads_out_of_its_folder_is_a_user_error(tmp_path, reader, name):
    about, root = READERS[reader], tmp_path / "root"
    root.mkdir()
    picture(tmp_path / "outside.jpg")
    about.write(root, name)

    with pytest.raises(UserError) as refused:
        about.read(root)

    message = str(refused.value)
    assert about.file in message
    assert quote_value(name).strip(".'")[:20] in message
    assert len(message.splitlines()) == 1
    assert len(message) < 600


@pytest.mark.parametrize("value", [None, 7, 2.5, True, ["a.jpg"], {"a": "b"}])
def test_a_name_that_is_no_text_is_a_user_error(value):
    with pytest.raises(UserError, match=r"a\.json, image 7 names .*, which is not text\. .* correct it"):
        require_file_name(value, "a.json, image 7")


def linked(tmp_path: Path, attack: str) -> str:
    """Make a link in the folder of images; return a name that goes through it."""
    outside, images = picture(tmp_path / "outside/b.jpg"), tmp_path / "root"
    if attack == "a file":
        (images / "b.jpg").symlink_to(outside)
        return "b.jpg"
    if attack == "a relative link":
        (images / "b.jpg").symlink_to("../outside/b.jpg")
        return "b.jpg"
    if attack == "a folder":
        (images / "below").symlink_to(outside.parent)
        return "below/b.jpg"
    if attack == "a link to a link":
        (images / "one").symlink_to(images / "two")
        (images / "two").symlink_to(outside.parent)
        return "one/b.jpg"
    if attack == "a sibling of the same beginning":
        sibling = picture(tmp_path / "root-other/b.jpg")
        (images / "b.jpg").symlink_to(sibling)
        return "b.jpg"
    (images / "b.jpg").symlink_to("/dev/zero")
    return "b.jpg"


LINKS = ("a file", "a relative link", "a folder", "a link to a link", "a sibling of the same beginning", "a device")


@pytest.mark.parametrize("attack", LINKS)
def test_a_link_out_of_the_folder_is_a_user_error_with_a_remedy(tmp_path, attack):
    (tmp_path / "root").mkdir()
    name = linked(tmp_path, attack)

    with pytest.raises(
        UserError, match=r"line 3 names '.*', which a link leads out of .*Give the folder .* data\.root"
    ):
        resolve_inside(tmp_path / "root", name, "pairs.csv, line 3", "data.root")


@pytest.mark.parametrize("reader", [name for name, about in READERS.items() if about.links])
def test_each_reader_of_peoples_own_images_refuses_a_link_out_of_their_folder(tmp_path, reader):
    about: Reader = READERS[reader]
    outside = picture(tmp_path / "outside/z.jpg")
    (tmp_path / "root").mkdir()
    about.write(tmp_path / "root", "z.jpg")
    (tmp_path / "root" / about.folder / "z.jpg").symlink_to(outside)

    with pytest.raises(UserError, match=f"{about.file}.*'z.jpg', which a link leads out of"):
        about.read(tmp_path / "root")


def test_links_within_the_folder_and_a_folder_that_is_a_link_are_followed(tmp_path):
    images = tmp_path / "disk/images"
    picture(images / "deep/a.jpg")
    (images / "b.jpg").symlink_to("deep/a.jpg")
    (images / "other").symlink_to(images / "deep")
    (tmp_path / "root").symlink_to(images)

    for name in ("deep/a.jpg", "./deep//a.jpg", "b.jpg", "other/a.jpg"):
        path = resolve_inside(tmp_path / "root", name, "here", "data.root")
        assert path == tmp_path / "root" / name
        assert image_size(path) == (40, 30)


def test_a_benchmark_whose_folder_of_images_is_a_link_of_the_users_is_read(tmp_path):
    write_spair(tmp_path / "spair")
    (tmp_path / "spair/JPEGImages").rename(tmp_path / "disk")
    (tmp_path / "spair/JPEGImages").symlink_to(tmp_path / "disk")

    assert len(SPair(root=str(tmp_path / "spair"), size=32).pairs("test")) == 2


def test_a_weights_folder_of_links_into_a_cache_is_read(tmp_path):
    from semcorr.models.weights.checkpoints import read_weights

    (tmp_path / "blobs").mkdir()
    (tmp_path / "model").mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "blobs/1f")
    (tmp_path / "model/part.safetensors").symlink_to("../blobs/1f")
    READERS["the index of weights"].write(tmp_path / "model", "part.safetensors")

    assert read_weights(tmp_path / "model")["a"].tolist() == [1, 1]


def odd_file(folder: Path, kind: str) -> Path:
    path = folder / "a.jpg"
    if kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as server:
            os.chdir(folder)
            server.bind("a.jpg")
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        path.symlink_to(path)
    return path


@pytest.mark.parametrize("kind", ["a named pipe", "a socket", "a folder", "a device", "a link to itself"])
@pytest.mark.parametrize("read", [open_plain, load_image, image_size, read_picture])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path, monkeypatch, kind, read):
    monkeypatch.chdir(tmp_path)
    path = odd_file(tmp_path, kind)

    with pytest.raises((UserError, OSError) if read is open_plain else UserError) as refused:
        read(path)

    assert "a.jpg" in str(refused.value)
    assert kind in str(refused.value) or kind == "a link to itself"


def test_a_pipe_that_an_annotation_names_is_not_waited_for(tmp_path):
    (tmp_path / "root").mkdir()
    READERS["transfer"].write(tmp_path / "root", "pipe.jpg")
    os.mkfifo(tmp_path / "root/images/pipe.jpg")

    with pytest.raises(UserError, match=r"sheet\.json, image 2, field `file_name`, names .*pipe\.jpg, .* named pipe"):
        READERS["transfer"].read(tmp_path / "root")


def test_names_that_are_let_through_at_a_glance_are_those_that_a_closer_look_lets_through():
    draw = random.Random(0)
    for _ in range(3000):
        name = "".join(draw.choices("aZ0_.-() /\\:~\n\x00\u2028é", k=draw.randrange(0, 9)))
        for folders in (False, True):
            try:
                assert require_file_name(name, "list.csv", folders) == name
                assert name_fault(name, folders) is None, repr(name)
            except UserError:
                assert name_fault(name, folders), repr(name)
