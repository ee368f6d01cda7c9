"""What features are held, stored and reported by is an image's own, whatever it is called."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from stored_ways import photograph

from semcorr.core.errors import UserError
from semcorr.core.files import unique_names
from semcorr.data.augment import mirror_view
from semcorr.data.dataset import ImageDataset
from semcorr.data.image_variants import ImageVariant, content_hash, mirrored_name, unmirrored_name
from semcorr.data.record import ImageRecord, PairRecord, check_pairs
from semcorr.data.views import make_view
from semcorr.evaluate import evaluate
from semcorr.evaluation.pose.alignment import list_pose_transforms
from semcorr.store.cache import FeatureCache

pytestmark = pytest.mark.integration

ENDS = [
    "",
    " mirrored",
    " turned 90",
    " turned 180",
    " plain",
    " mirrored plain",
    " mirrored turned 90",
    "\n",
    "\0",
    "\udcff",
]
POSES = list_pose_transforms(mirror=True, turns=(90, 180, 270))


def record(name: str, path: Path = Path("a.png"), **changes: object) -> ImageRecord:
    points = torch.tensor([[1.0, 2.0]])
    return ImageRecord(name, path, (40, 30), points, torch.ones(1).bool(), (0.0, 0.0, 9.0, 9.0))._replace(**changes)


NAMES = st.lists(st.sampled_from(["a", "A", "cat", *ENDS]), max_size=5).map("".join)


@given(st.sets(NAMES, min_size=2, max_size=6))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_no_two_images_and_no_two_poses_share_a_cache_name(names):
    every = [pose.image_variant(record(name)).name for name in names for pose in POSES]
    every += [ImageVariant(record(name), mirrored=True, turned=90).name for name in names]

    assert len(set(every)) == len(every)


@pytest.mark.parametrize("end", ENDS)
def test_a_mirror_images_mirror_image_is_the_image(end):
    name = unmirrored_name(f"cat{end}")

    assert mirrored_name(mirrored_name(name)) == name
    assert mirrored_name(name) != name


@pytest.mark.parametrize("end", ENDS)
def test_what_is_held_of_an_image_is_found_by_its_pairs(tmp_path, end):
    """Names of views, which pairs look features up by, are those of what is encoded."""
    path = tmp_path / "a.png"
    Image.fromarray(photograph(40, 30)).save(path)
    image = record(f"cat{end}", path)

    plain = make_view(image, 32, "squash")

    assert plain.name == ImageVariant(image).name == ImageDataset([ImageVariant(image)], 32, "squash")[0].name
    assert mirror_view(plain, [0]).name == ImageDataset([ImageVariant(image, mirrored=True)], 32, "squash")[0].name


def test_features_of_any_name_are_kept_on_a_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    held = FeatureCache(len(ENDS), torch.device("cpu"), place="disk")
    names = [f"cat{end}" for end in ENDS]

    held.add(names, {"cells": torch.arange(len(names) * 2.0).reshape(-1, 2)})

    assert [held[name]["cells"].tolist() for name in names] == [[2.0 * i, 2.0 * i + 1] for i in range(len(names))]


def pair(source: ImageRecord, target: ImageRecord, name: str = "pair", category: str = "cat") -> PairRecord:
    return PairRecord(name, category, source, target, 9.0)


def test_one_name_of_two_images_is_refused_with_both(tmp_path):
    one, other = record("x", tmp_path / "a/x.jpg"), record("x", tmp_path / "b/x.png")
    for another in (other, one._replace(mirrored=True), one._replace(upright=True)):
        with pytest.raises(UserError, match=r"two images are called 'x': .*a/x\.jpg and .*x\.(png|jpg)"):
            check_pairs([pair(one, another)], "mine")
        with pytest.raises(UserError, match=r"two images are called 'x'"):
            check_pairs([pair(another, another)], "mine test", {"x": one})  # of another split


def test_one_name_of_two_pairs_is_refused_with_both():
    a, b, c = (record(name, Path(name)) for name in "abc")
    for other in (pair(a, c), pair(c, b), pair(b, a), pair(a, b, category="dog")):
        with pytest.raises(UserError, match=r"two pairs are called 'pair': 'a' to 'b' and "):
            check_pairs([pair(a, b), other], "mine")

    check_pairs([pair(a, b), pair(a, b)], "mine")  # listed twice, as in PF-PASCAL


def test_a_file_of_several_paths_is_one_image(tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "link.png").symlink_to("a.png")
    (tmp_path / "hard.png").hardlink_to(tmp_path / "a.png")
    one = record("x", tmp_path / "a.png")
    for path in (tmp_path / "link.png", tmp_path / "hard.png", tmp_path / "../" / tmp_path.name / "a.png"):
        check_pairs([pair(one, one._replace(path=path))], "mine")


CLASHES = {  # files of one benchmark whose names were, or might be, taken for one another
    "endings": ["x.png", "x.jpg", "x.webp"],
    "folders": ["a/x.png", "b/x.png", "x.png"],
    "case": ["x.png", "X.png"],
    "mirror images": ["cat.png", "cat mirrored.png", "cat mirrored mirrored.png"],
    "turned ones": ["cat.png", "cat turned 90.png", "cat mirrored turned 90.png", "cat plain.png"],
    "dashes": ["x-y.png", "z.png", "x.png", "y-z.png"],
}


@pytest.fixture
def errors(config, tmp_path) -> Callable[[list[str]], list[list[float]]]:
    """Every file of a list paired with one other picture: predictions of each."""

    def predict(files: list[str], *line: str) -> list[list[float]]:
        root = tmp_path / "pairs"
        rows = [["source_image", "target_image", "XA", "YA", "XB", "YB"]]
        other = root / "other.png"
        for i, file in enumerate(files):
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photograph(80, 60, seed=i)).save(root / file, lossless=True, quality=100)
            rows.append(["other.png", file, "10;40;70", "10;30;50", "10;40;70", "10;30;50"])
        Image.fromarray(photograph(80, 60, seed=99)).save(other)
        with (root / "pairs.csv").open("w", newline="") as text:
            csv.writer(text).writerows(rows)
        for file in tmp_path.glob("run/*"):
            file.unlink()
        setting = ["data=pairs_csv", f"data.root={root}", "data.workers=0", "backbone=tiny", "trainer=cpu", *line]
        evaluate(config("evaluate", *setting))
        table = pq.read_table(tmp_path / "run/predictions.parquet").to_pylist()
        return [[row["predicted_x"] for row in table[i : i + 3]] for i in range(0, len(table), 3)]

    return predict


@pytest.mark.sampled(4)
@pytest.mark.parametrize("kind", [kind for kind in CLASHES if kind != "endings"])
def test_images_of_similar_names_have_features_of_their_own(errors, kind):
    """As they have under names that have nothing in common."""
    files = CLASHES[kind]

    assert errors(files) == errors([f"{chr(97 + i)}{i}.png" for i in range(len(files))])


def test_images_that_differ_by_their_ending_are_told_apart_or_refused(errors):
    """Never is one's answer the other's."""
    expected, message = errors(["a.png", "b.webp"]), ""
    try:
        found = errors(["x.png", "x.webp"])
    except UserError as error:
        message = str(error)

    assert "two images are called" in message if message else found == expected


def test_two_pictures_of_equal_content_are_stored_once_and_both_have_it(errors, tmp_path):
    stored = [f"store.root={tmp_path / 'store'}"]
    plain = errors(["a.png"])
    (tmp_path / "pairs/pairs.csv").unlink()

    assert errors(["a.png"], *stored) == plain
    copy = tmp_path / "pairs/copy/a.png"
    copy.parent.mkdir()
    copy.write_bytes((tmp_path / "pairs/a.png").read_bytes())
    ends = [record(str(path), path) for path in (copy, tmp_path / "pairs/a.png")]
    assert content_hash(ImageVariant(ends[0])) == content_hash(ImageVariant(ends[1]))


# -- what is written --


@pytest.mark.parametrize(
    "names", [["a", "A"], ["ä", "a\u0308"], ["straße", "STRASSE"], ["a", "a", "a"], ["Å", "a\u030a", "å"]]
)
def test_names_that_some_disk_takes_for_one_are_told_apart(names):
    found = unique_names([name] for name in names)

    assert found[0] == names[0]
    assert len({name.casefold() for name in found}) == len(names)


@pytest.mark.slow
def test_pictures_of_similar_names_are_each_drawn_and_told(tmp_path, monkeypatch, capsys):
    from semcorr import match

    folder = tmp_path / "many"
    folder.mkdir()
    files = [
        "x.png",
        "x.jpg",
        "X.webp",
        "x.y.png",
        "x\n.png",
        b"x\xff.png".decode(errors="surrogateescape"),
        "x mirrored.png",
    ]
    for i, name in enumerate(files):
        Image.fromarray(photograph(64, 48, seed=i)).save(folder / name)
    Image.fromarray(photograph(64, 48)).save(tmp_path / "a.png")
    line = [str(tmp_path / "a.png"), str(folder), "--points", "9,9", "--model", "tiny", "--device", "cpu"]
    code = match.main([*line, "--out", str(tmp_path / "out")])

    assert not code, capsys.readouterr().err
    targets = json.loads((tmp_path / "out/matches.json").read_text())["targets"]
    assert sorted(Path(one["target"]).name for one in targets) == sorted(files)
    assert len({one["image"].casefold() for one in targets}) == len(files)
    for one in targets:  # the right half of each is its own target
        with Image.open(tmp_path / "out" / one["image"]) as drawn, Image.open(one["target"]) as target:
            half = drawn.convert("RGB").crop((drawn.width - 640, 0, drawn.width, 480)).resize((16, 12))
            off = np.asarray(half).astype(int) - np.asarray(target.convert("RGB").resize((16, 12)))
        assert np.abs(off).mean() < 25, one["target"]
