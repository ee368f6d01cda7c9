"""Annotated images label others: keypoints are found where they were drawn, each picture read once."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from matched_pictures import encodings
from partly_labelled import alone, coco, write
from PIL import Image, ImageOps
from torch.testing import assert_close

from semcorr import Matcher
from semcorr.data.keypoints import flip_from_names
from semcorr.data.pictures import load_picture
from semcorr.inference.transfer.annotations import read_annotations
from semcorr.inference.transfer.crop import crop_picture, enlarge_box, mirror_crop
from semcorr.inference.transfer.pipeline import label_folder, open_source
from semcorr.inference.transfer.propagate import encode_source, propagate

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def matcher() -> Matcher:
    """With true weights: 12 cells a side."""
    return Matcher.load("efficientnet_lite0", "backbone.size=192", device="cpu")


@pytest.fixture(scope="module")
def random() -> Matcher:
    return Matcher.load("tiny", device="cpu")


@pytest.fixture
def written(tmp_path: Path) -> Callable[[dict], Path]:
    """written(content) is the file's path."""
    return partial(write, tmp_path)


@pytest.fixture(scope="module")
def sheet(creatures, tmp_path_factory):
    path = tmp_path_factory.mktemp("sheet") / "annotations.json"
    path.write_text(json.dumps(coco(creatures, sources=3)))
    return read_annotations(path, alone(creatures, path.parent))


@pytest.fixture(scope="module")
def cats(matcher, sheet) -> list:
    return [one for target in sheet.sources[1] for one in open_source(matcher, target, sheet.categories[0], flip=True)]


@pytest.mark.parametrize("use", ["vote", "best"])
def test_a_source_finds_its_own_keypoints(matcher, sheet, cats, use):
    item = sheet.sources[1][0]
    part = crop_picture(load_picture(item.photo.path), item.box)
    target = matcher.encode(part.picture)

    found = propagate(matcher, cats if use == "best" else cats[:1], target, use)

    off = (part.from_crop(found.points) - item.points)[item.keypoint_mask] / torch.tensor(part.picture.size) * 12
    assert off.norm(dim=-1).max() < 1  # a cell
    assert found.fit.argmax() == 0
    assert found.scores[item.keypoint_mask].min() > 0.4
    assert not found.scores[~torch.stack([one.keypoint_mask for one in cats]).any(0)].any()


def test_a_mirrored_source_labels_a_mirror_image_with_left_and_right_exchanged(matcher, sheet, cats):
    target = sheet.sources[1][0]
    part = mirror_crop(
        crop_picture(load_picture(target.photo.path), enlarge_box(target.box, target.points[target.keypoint_mask]))
    )
    order = list(flip_from_names(sheet.categories[0]["keypoints"]))

    found = propagate(matcher, cats, matcher.encode(part.picture), "best")

    truth, visible = part.to_crop(target.points)[order], target.keypoint_mask[order]
    assert cats[int(found.fit.argmax())].mirrored
    off = (found.points - truth)[visible] / torch.tensor(part.picture.size) * 12
    assert off.norm(dim=-1).max() < 1
    assert order[0] == 1


def test_a_mirrored_source_shows_the_left_where_it_showed_the_right(random, creatures):
    part = crop_picture(load_picture(next((creatures / "JPEGImages/cat").glob("*.jpg"))), None)
    points = torch.tensor([[20.0, 30.0], [50.0, 41.0], [0.0, 0.0]])

    own, other = encode_source(random, part, points, torch.tensor([True, True, False]), "a", flip=[2, 1, 0])

    assert own.keypoint_mask.tolist() == [True, True, False]
    assert other.keypoint_mask.tolist() == [False, True, True]
    x, y = mirror_crop(part).to_crop(points)[0].tolist()
    side = random.module.backbone.size
    scale = torch.tensor([side / part.picture.size[0], side / part.picture.size[1]])
    assert_close(other.points[2], (torch.tensor([x, y]) + 0.5) * scale - 0.5, atol=1e-2, rtol=0)


def test_the_best_of_one_source_is_the_matcher_itself(random, creatures):
    a, b = (load_picture(path) for path in sorted((creatures / "JPEGImages/cat").glob("*.jpg"))[:2])
    points = torch.tensor([[20.0, 30.0], [50.0, 41.0]])
    (one,) = encode_source(random, crop_picture(a, None), points, torch.tensor([True, True]), "a")
    target = random.encode(b)
    plain = Matcher(random.module, device="cpu", subcell=False).match(a, b, points)

    for use in ("best", "vote"):
        assert_close(propagate(random, [one], target, use).points, plain.points, atol=1e-3, rtol=0)


def test_the_answer_moves_with_the_box(matcher, creatures, written, tmp_path):
    """Pasted into a larger picture, and its box with it."""
    content = coco(creatures, sources=2)
    content = {**content, "images": content["images"][:3], "annotations": content["annotations"][:3]}
    folder = tmp_path / "JPEGImages"
    shutil.copytree(creatures / "JPEGImages/cat", folder / "cat")
    for path in folder.rglob("*.jpg"):
        if not any(image["file_name"].endswith(path.name) for image in content["images"]):
            path.unlink()
    (plain,) = label_folder(matcher, read_annotations(written(content), folder))
    last = content["images"][-1]
    image = ImageOps.expand(Image.open(folder / last["file_name"]), (100, 30, 55, 70), fill=(9, 99, 200))
    image.save(folder / "cat/wide.png")
    last.update(file_name="cat/wide.png", width=image.width, height=image.height)
    box = content["annotations"][-1]["bbox"]
    content["annotations"][-1]["bbox"] = [box[0] + 100, box[1] + 30, *box[2:]]
    (folder / plain.target.photo.name).unlink()

    (moved,) = label_folder(matcher, read_annotations(written(content), folder))

    off = (moved.points - torch.tensor([100.0, 30.0]) - plain.points)[plain.valid].norm(dim=-1)
    assert off.median() < 0.5
    x, y, w, h = content["annotations"][-1]["bbox"]
    low, high = torch.tensor([x, y]), torch.tensor([x + w, y + h])
    more = 0.1 * max(w, h) + 1
    assert ((moved.points >= low - more) & (moved.points <= high + more)).all()


def test_place_decides_where_looks_do_not_and_counts_between_boxes_only(random, creatures):
    """A chequered picture, of whose cells every fourth looks the same."""
    tile = np.kron([[0, 255], [255, 0]], np.ones((8, 8))).astype(np.uint8)
    plain = crop_picture(load_picture(np.tile(tile, (8, 8))), None)
    points = torch.tensor([[40.0, 88.0]])
    target = random.encode(plain.picture)
    boxed, whole = (
        encode_source(random, plain, points, torch.tensor([True]), "a", has_box=boxed)[0] for boxed in (True, False)
    )

    without, with_box, with_none = (
        propagate(random, [source], target, prior_weight=place).points
        for source, place in ((boxed, 0.0), (boxed, 1e3), (whole, 1e3))
    )

    assert (with_box - points).norm() < 5
    assert torch.equal(with_none, without)
    assert (without - points).norm() > 5


def test_place_is_not_asked_of_targets_without_a_box(random, creatures, written, tmp_path):
    content, folder = coco(creatures), alone(creatures, tmp_path)
    boxed = [
        list(label_folder(random, read_annotations(written(content), folder), prior_weight=by)) for by in (0.0, 9.0)
    ]
    for one in content["annotations"]:
        if "keypoints" not in one:
            del one["bbox"]
    whole = [
        list(label_folder(random, read_annotations(written(content), folder), prior_weight=by)) for by in (0.0, 9.0)
    ]

    assert all(torch.equal(one.points, other.points) for one, other in zip(*whole, strict=True))
    assert not any(torch.equal(one.points, other.points) for one, other in zip(*boxed, strict=True))


@pytest.mark.parametrize("use", ["vote", "best"])
def test_a_score_is_the_similarity_times_the_share_that_stands_behind_it(random, creatures, use):
    """One source agrees with itself; a match that does not come back has half of its similarity."""
    a, b = (load_picture(path) for path in sorted((creatures / "JPEGImages/cat").glob("*.jpg"))[:2])
    points = torch.rand(40, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor(a.size) - 0.5
    (one,) = encode_source(random, crop_picture(a, None), points, torch.ones(40, dtype=torch.bool), "a")
    match = Matcher(random.module, device="cpu", subcell=False).match(a, b, points)

    found = propagate(random, [one], random.encode(b), use)

    assert 0 < match.consistent.sum() < 40
    assert_close(found.scores, match.scores.clamp(0, 1) * (1 + match.consistent.float()) / 2, atol=1e-4, rtol=0)


def test_a_source_whose_box_is_too_small_shows_all_its_keypoints(random, creatures, written, tmp_path):
    content = coco(creatures, sources=1)
    content["annotations"][0]["bbox"] = [*content["annotations"][0]["keypoints"][:2], 2, 2]
    sheet = read_annotations(written(content), alone(creatures, tmp_path))

    for one in open_source(random, sheet.sources[1][0], sheet.categories[0], flip=True):
        points = one.points[one.keypoint_mask]
        assert (points >= -0.5).all()
        assert (points <= random.module.backbone.size - 0.5).all()


def test_every_picture_is_encoded_once_and_sources_also_mirrored(random, sheet, monkeypatch):
    seen = encodings(random, monkeypatch)

    labels = list(label_folder(random, sheet))

    assert len(labels) == len(sheet.targets) == 5
    assert sum(seen) == 5 + 2 * 3
    seen.clear()
    assert list(label_folder(random, sheet, flip=False))
    assert sum(seen) == 5 + 3


def test_targets_are_opened_as_they_are_labelled(random, sheet, monkeypatch):
    opened: list[object] = []
    own = Image.open
    monkeypatch.setattr(Image, "open", lambda file, **options: (opened.append(file), own(file, **options))[1])

    next(label_folder(random, sheet))

    assert len(opened) == 3 + 1  # sources, and one target
