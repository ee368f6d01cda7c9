"""A few annotated images label the others: the vote by a slow twin, answers by what was drawn, files, mistakes."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from test_matcher import encodings
from torch.testing import assert_close
from typer.testing import CliRunner

from semcorr import Matcher
from semcorr.data.coco_keypoints import read_images
from semcorr.data.groups import flip_from_names, keypoint_names
from semcorr.data.pictures import Picture, picture
from semcorr.errors import UserError
from semcorr.transfer.carry import carry, check_rule, labelled
from semcorr.transfer.coco import read_sheet
from semcorr.transfer.command import app
from semcorr.transfer.cut import cut, holding, mirrored
from semcorr.transfer.folder import labelled_all, source
from semcorr.transfer.labels import bones
from semcorr.transfer.vote import best_source, fitness, placing, standing, vote, voting

SKELETON = [[1, 3], [2, 4]]


@pytest.fixture(scope="module")
def matcher() -> Matcher:
    """With true weights: 12 cells a side."""
    return Matcher.load("efficientnet_lite0", "backbone.size=192", device="cpu")


@pytest.fixture(scope="module")
def random() -> Matcher:
    return Matcher.load("tiny", device="cpu")


def coco(creatures: Path, categories: tuple[str, ...] = ("cat",), sources: int = 2, boxes: bool = True) -> dict:
    """Drawn creatures; the first of each category are annotated, the rest are to be labelled."""
    content: dict = {"images": [], "annotations": [], "categories": []}
    for kind, category in enumerate(categories, 1):
        names = list(keypoint_names("spair71k", category).values())
        content["categories"].append({"id": kind, "name": category, "keypoints": names, "skeleton": SKELETON})
        for i, file in enumerate(sorted((creatures / "ImageAnnotation" / category).glob("*.json"))):
            told = json.loads(file.read_text())
            x1, y1, x2, y2 = told["bndbox"]
            one = {"id": len(content["images"]) + 100, "image_id": len(content["images"]), "category_id": kind}
            if boxes:
                one["bbox"] = [x1, y1, x2 - x1, y2 - y1]
            if i < sources:
                points = [told["kps"][str(k)] for k in range(len(names))]
                one["keypoints"] = [each for p in points for each in ([*p, 2] if p else [0, 0, 0])]
            size = {"width": told["image_width"], "height": told["image_height"]}
            content["images"].append({"id": one["image_id"], "file_name": f"{category}/{told['filename']}"} | size)
            content["annotations"].append(one)
    return content


def alone(creatures: Path, into: Path) -> Path:
    """A folder with the cats only."""
    return shutil.copytree(creatures / "JPEGImages/cat", into / "images/cat").parent


@pytest.fixture
def written(tmp_path: Path):
    """written(content) is the file's path."""

    def write(content: dict, name: str = "annotations.json") -> Path:
        (tmp_path / name).write_text(json.dumps(content))
        return tmp_path / name

    return write


def typed(*arguments: object) -> tuple[int, str]:
    line = [str(argument) for argument in arguments]
    model = [] if "--model" in line else ["--model", "tiny"]
    result = CliRunner().invoke(app, [*line, *model, "--device", "cpu"], env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


# -- the vote --


def toy(sources: int = 4, keypoints: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shown = torch.rand(sources, keypoints, generator=generator) > 0.4
    shown[:, 0], shown[:, 1] = False, True
    return torch.rand(sources, keypoints, 3, 4, generator=generator), shown


@pytest.mark.parametrize("use", ["vote", "best"])
def test_the_vote_is_that_of_a_loop(use):
    similarity, shown = toy()
    fit = fitness(similarity, shown)
    found = vote(similarity, {"vote": voting, "best": best_source}[use](fit, shown))

    numbers, there = similarity.double().numpy(), shown.numpy()
    fits = [np.mean([numbers[s, k].max() for k in range(5) if there[s, k]]) for s in range(4)]
    for k in range(5):
        known = [s for s in range(4) if there[s, k]]
        total = np.zeros((3, 4))
        if use == "best":
            total += numbers[max(known, key=lambda s: fits[s]), k] if known else 0
        else:
            shares = [np.exp(fits[s] / 0.1) for s in known]
            for s, share in zip(known, shares, strict=True):
                total += numbers[s, k] * share / sum(shares)
        assert_close(found[k].double(), torch.from_numpy(total), atol=1e-5, rtol=0)
    assert not found[0].any()  # which no source shows


def test_two_sources_that_agree_outvote_one_that_is_surer():
    similarity = torch.zeros(3, 1, 1, 5)
    similarity[0, 0, 0, 4] = 0.65
    similarity[1:, 0, 0, 1] = 0.6
    shown = torch.ones(3, 1, dtype=torch.bool)
    fit = fitness(similarity, shown)

    assert vote(similarity, voting(fit, shown)).argmax() == 1
    assert vote(similarity, best_source(fit, shown)).argmax() == 4


def test_a_source_without_keypoints_has_no_say():
    similarity, shown = toy()
    shown[2] = False
    fit = fitness(similarity, shown)

    for use in (voting, best_source):
        weights = use(fit, shown)
        assert not weights[2].any()
        assert_close(weights.sum(0), shown.any(0).float())


def test_sources_stand_behind_what_they_would_say_and_what_comes_back():
    found = torch.tensor([[10.0, 10.0]])
    own = torch.tensor([[[10.0, 12.0]], [[30.0, 10.0]], [[10.0, 10.0]]])  # near, far, near
    asked = torch.zeros(3, 1, 2)
    back = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]], [[9.0, 0.0]]])  # near, near, far
    weights = torch.tensor([[0.5], [0.3], [0.2]])

    assert standing(own, found, back, asked, weights, near=2.0).item() == pytest.approx(0.5 + 0.3 / 2 + 0.2 / 2)


def test_places_are_gaussians_of_a_loop():
    generator = torch.Generator().manual_seed(0)
    cells, weights = torch.rand(3, 2, 2, generator=generator) * 4, torch.rand(3, 2, generator=generator)

    found = placing(cells, weights, (6, 4), spread=0.25)

    assert found.shape == (2, 4, 6)
    for k in range(2):
        for y in range(4):
            for x in range(6):
                off = [((x - cells[s, k, 0]) / 6) ** 2 + ((y - cells[s, k, 1]) / 4) ** 2 for s in range(3)]
                expected = sum(weights[s, k] * np.exp(-float(off[s]) / (2 * 0.25**2)) for s in range(3))
                assert found[k, y, x].item() == pytest.approx(float(expected), rel=1e-4)


# -- parts of pictures --


def test_points_go_into_a_part_and_out_again():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    points = torch.tensor([[25.0, 17.0], [31.0, 12.0]])
    part = cut(Picture(image, image.size, "a"), (20.0, 10.0, 15.0, 12.0))

    for one in (part, mirrored(part)):
        inside = one.into(points)
        assert_close(one.out_of(inside), points)
        for (x, y), (u, v) in zip(points.int().tolist(), inside.int().tolist(), strict=True):
            assert one.picture.image.getpixel((u, v)) == image.getpixel((x, y))


def test_a_part_of_a_huge_picture_is_in_its_original_pixels():
    reduced = Picture(Image.new("RGB", (60, 40)), (480, 320), "huge")
    part = cut(reduced, (80.0, 80.0, 160.0, 80.0), margin=0.0)

    assert (part.corner, part.picture.size) == ((10, 10), (20, 10))
    assert_close(part.into(torch.tensor([[79.5, 79.5]])), torch.tensor([[-0.5, -0.5]]))  # the box's corner
    assert_close(part.out_of(torch.tensor([[19.5, 9.5]])), torch.tensor([[239.5, 159.5]]))


def test_a_box_is_enlarged_to_hold_its_keypoints():
    assert holding((10.0, 10.0, 5.0, 5.0), torch.tensor([[3.5, 12.0]])) == (4.0, 10.0, 11.0, 5.0)


# -- what is found --


@pytest.fixture(scope="module")
def sheet(creatures, tmp_path_factory):
    path = tmp_path_factory.mktemp("sheet") / "annotations.json"
    path.write_text(json.dumps(coco(creatures, sources=3)))
    return read_sheet(path, alone(creatures, path.parent))


@pytest.fixture(scope="module")
def cats(matcher, sheet) -> list:
    return [one for thing in sheet.sources[1] for one in source(matcher, thing, sheet.categories[0], flip=True)]


@pytest.mark.parametrize("use", ["vote", "best"])
def test_a_source_finds_its_own_keypoints(matcher, sheet, cats, use):
    thing = sheet.sources[1][0]
    part = cut(picture(thing.photo.path), thing.box)
    target = matcher.encode(part.picture)

    found = carry(matcher, cats if use == "best" else cats[:1], target, use)

    off = (part.out_of(found.points) - thing.points)[thing.shown] / torch.tensor(part.picture.size) * 12
    assert off.norm(dim=-1).max() < 1  # a cell
    assert found.fit.argmax() == 0
    assert found.scores[thing.shown].min() > 0.4
    assert not found.scores[~torch.stack([one.shown for one in cats]).any(0)].any()


def test_a_mirrored_source_labels_a_mirror_image_with_left_and_right_exchanged(matcher, sheet, cats):
    thing = sheet.sources[1][0]
    part = mirrored(cut(picture(thing.photo.path), holding(thing.box, thing.points[thing.shown])))
    order = list(flip_from_names(sheet.categories[0]["keypoints"]))

    found = carry(matcher, cats, matcher.encode(part.picture), "best")

    truth, shown = part.into(thing.points)[order], thing.shown[order]
    assert cats[int(found.fit.argmax())].mirrored
    off = (found.points - truth)[shown] / torch.tensor(part.picture.size) * 12
    assert off.norm(dim=-1).max() < 1
    assert order[0] == 1


def test_a_mirrored_source_shows_the_left_where_it_showed_the_right(random, creatures):
    part = cut(picture(next((creatures / "JPEGImages/cat").glob("*.jpg"))), None)
    points = torch.tensor([[20.0, 30.0], [50.0, 41.0], [0.0, 0.0]])

    own, other = labelled(random, part, points, torch.tensor([True, True, False]), "a", flip=[2, 1, 0])

    assert own.shown.tolist() == [True, True, False]
    assert other.shown.tolist() == [False, True, True]
    x, y = mirrored(part).into(points)[0].tolist()
    side = random.module.backbone.size
    scale = torch.tensor([side / part.picture.size[0], side / part.picture.size[1]])
    assert_close(other.points[2], (torch.tensor([x, y]) + 0.5) * scale - 0.5, atol=1e-2, rtol=0)


def test_the_best_of_one_source_is_the_matcher_itself(random, creatures):
    a, b = (picture(path) for path in sorted((creatures / "JPEGImages/cat").glob("*.jpg"))[:2])
    points = torch.tensor([[20.0, 30.0], [50.0, 41.0]])
    (one,) = labelled(random, cut(a, None), points, torch.tensor([True, True]), "a")
    target = random.encode(b)
    plain = Matcher(random.module, device="cpu", subcell=False).match(a, b, points)

    for use in ("best", "vote"):
        assert_close(carry(random, [one], target, use).points, plain.points, atol=1e-3, rtol=0)


def test_the_answer_moves_with_the_box(matcher, creatures, written, tmp_path):
    """Pasted into a larger picture, and its box with it."""
    content = coco(creatures, sources=2)
    content = {**content, "images": content["images"][:3], "annotations": content["annotations"][:3]}
    folder = tmp_path / "JPEGImages"
    shutil.copytree(creatures / "JPEGImages/cat", folder / "cat")
    for path in folder.rglob("*.jpg"):
        if not any(image["file_name"].endswith(path.name) for image in content["images"]):
            path.unlink()
    (plain,) = labelled_all(matcher, read_sheet(written(content), folder))
    last = content["images"][-1]
    image = ImageOps.expand(Image.open(folder / last["file_name"]), (100, 30, 55, 70), fill=(9, 99, 200))
    image.save(folder / "cat/wide.png")
    last.update(file_name="cat/wide.png", width=image.width, height=image.height)
    box = content["annotations"][-1]["bbox"]
    content["annotations"][-1]["bbox"] = [box[0] + 100, box[1] + 30, *box[2:]]
    (folder / plain.thing.photo.name).unlink()

    (moved,) = labelled_all(matcher, read_sheet(written(content), folder))

    off = (moved.points - torch.tensor([100.0, 30.0]) - plain.points)[plain.found].norm(dim=-1)
    assert off.median() < 0.5
    x, y, w, h = content["annotations"][-1]["bbox"]
    low, high = torch.tensor([x, y]), torch.tensor([x + w, y + h])
    more = 0.1 * max(w, h) + 1
    assert ((moved.points >= low - more) & (moved.points <= high + more)).all()


def test_place_decides_where_looks_do_not_and_counts_between_boxes_only(random, creatures):
    """A chequered picture, of whose cells every fourth looks the same."""
    tile = np.kron([[0, 255], [255, 0]], np.ones((8, 8))).astype(np.uint8)
    plain = cut(picture(np.tile(tile, (8, 8))), None)
    points = torch.tensor([[40.0, 88.0]])
    target = random.encode(plain.picture)
    boxed, whole = (
        labelled(random, plain, points, torch.tensor([True]), "a", boxed=boxed)[0] for boxed in (True, False)
    )

    without, with_box, with_none = (
        carry(random, [source], target, place=place).points
        for source, place in ((boxed, 0.0), (boxed, 1e3), (whole, 1e3))
    )

    assert (with_box - points).norm() < 5
    assert torch.equal(with_none, without)
    assert (without - points).norm() > 5


def test_place_is_not_asked_of_targets_without_a_box(random, creatures, written, tmp_path):
    content, folder = coco(creatures), alone(creatures, tmp_path)
    boxed = [list(labelled_all(random, read_sheet(written(content), folder), place=by)) for by in (0.0, 9.0)]
    for one in content["annotations"]:
        if "keypoints" not in one:
            del one["bbox"]
    whole = [list(labelled_all(random, read_sheet(written(content), folder), place=by)) for by in (0.0, 9.0)]

    assert all(torch.equal(one.points, other.points) for one, other in zip(*whole, strict=True))
    assert not any(torch.equal(one.points, other.points) for one, other in zip(*boxed, strict=True))


@pytest.mark.parametrize("use", ["vote", "best"])
def test_a_score_is_the_similarity_times_the_share_that_stands_behind_it(random, creatures, use):
    """One source agrees with itself; a match that does not come back has half of its similarity."""
    a, b = (picture(path) for path in sorted((creatures / "JPEGImages/cat").glob("*.jpg"))[:2])
    points = torch.rand(40, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor(a.size) - 0.5
    (one,) = labelled(random, cut(a, None), points, torch.ones(40, dtype=torch.bool), "a")
    match = Matcher(random.module, device="cpu", subcell=False).match(a, b, points)

    found = carry(random, [one], random.encode(b), use)

    assert 0 < match.consistent.sum() < 40
    assert_close(found.scores, match.scores.clamp(0, 1) * (1 + match.consistent.float()) / 2, atol=1e-4, rtol=0)


def test_a_source_whose_box_is_too_small_shows_all_its_keypoints(random, creatures, written, tmp_path):
    content = coco(creatures, sources=1)
    content["annotations"][0]["bbox"] = [*content["annotations"][0]["keypoints"][:2], 2, 2]
    sheet = read_sheet(written(content), alone(creatures, tmp_path))

    for one in source(random, sheet.sources[1][0], sheet.categories[0], flip=True):
        points = one.points[one.shown]
        assert (points >= -0.5).all()
        assert (points <= random.module.backbone.size - 0.5).all()


def test_every_picture_is_encoded_once_and_sources_also_mirrored(random, sheet, monkeypatch):
    seen = encodings(random, monkeypatch)

    labels = list(labelled_all(random, sheet))

    assert len(labels) == len(sheet.targets) == 5
    assert sum(seen) == 5 + 2 * 3
    seen.clear()
    assert list(labelled_all(random, sheet, flip=False))
    assert sum(seen) == 5 + 3


def test_targets_are_opened_as_they_are_labelled(random, sheet, monkeypatch):
    opened: list[str] = []
    own = Image.open
    monkeypatch.setattr(Image, "open", lambda path, *rest: (opened.append(str(path)), own(path, *rest))[1])

    next(labelled_all(random, sheet))

    assert len(opened) == 3 + 1  # sources, and one target


# -- files --


def test_coco_comes_out_as_coco(creatures, written, tmp_path):
    content = coco(creatures, ("cat", "dog"))
    annotations, out = written(content), tmp_path / "labels.json"

    code, said = typed(
        annotations, creatures / "JPEGImages", "--out", out, "--draw", tmp_path / "drawn", "--category=cat"
    )

    assert code == 0, said
    assert "dog: 6 labelled by 2, also mirrored" in said
    labels = json.loads(out.read_text())
    assert labels["categories"] == content["categories"]
    given = [one["id"] for one in content["annotations"] if "keypoints" not in one]
    assert set(given) <= {one["id"] for one in labels["annotations"]}
    assert not {one["id"] for one in content["annotations"] if "keypoints" in one} & {
        one["id"] for one in labels["annotations"]
    }
    sizes = {image["id"]: (image["width"], image["height"]) for image in labels["images"]}
    for one in labels["annotations"]:
        count = len(content["categories"][one["category_id"] - 1]["keypoints"])
        rows = np.array(one["keypoints"]).reshape(count, 3)
        assert set(rows[:, 2]) <= {0, 2}
        assert one["num_keypoints"] == (rows[:, 2] > 0).sum() > 0
        assert len(one["scores"]) == count
        assert all(
            0 <= score <= 1 and (score > 0) == (v > 0) for score, v in zip(one["scores"], rows[:, 2], strict=True)
        )
        assert not rows[rows[:, 2] == 0].any()
        assert (rows[:, :2] <= np.array(sizes[one["image_id"]]) - 0.5).all()
        assert sum(each["weight"] for each in one["sources"]) == pytest.approx(1, abs=1e-3)
    images, names = read_images(tmp_path, "labels.json", str(creatures / "JPEGImages"), "xywh")
    assert len(images["dog"]) == 6
    assert names["cat"] == content["categories"][0]["keypoints"]
    assert len(list((tmp_path / "drawn").glob("*.png"))) == len(labels["annotations"])


def test_labels_label_again_what_is_left(creatures, written, tmp_path):
    """What comes out is read by the command that wrote it."""
    annotations = written(coco(creatures, sources=1))
    folder = alone(creatures, tmp_path)
    assert typed(annotations, folder, "--out", tmp_path / "first.json")[0] == 0

    code, said = typed(tmp_path / "first.json", folder, "--out", tmp_path / "second.json")

    assert code == 0, said
    (one,) = json.loads((tmp_path / "second.json").read_text())["annotations"]  # the source of before
    assert len({each["annotation_id"] for each in one["sources"]}) == 7


def test_images_that_only_the_folder_has_are_labelled_whole(creatures, written, tmp_path):
    content = coco(creatures, sources=1)
    content = {**content, "images": content["images"][:2], "annotations": content["annotations"][:1]}

    code, said = typed(written(content), creatures / "JPEGImages", "--out", tmp_path / "o.json")

    assert code == 0, said
    labels = json.loads((tmp_path / "o.json").read_text())
    files = {path.relative_to(creatures / "JPEGImages").as_posix() for path in creatures.glob("JPEGImages/*/*.jpg")}
    assert {image["file_name"] for image in labels["images"]} == files - {content["images"][0]["file_name"]}
    ids = [image["id"] for image in labels["images"]]
    assert len(set(ids)) == len(ids)
    assert content["images"][1]["id"] in ids
    every = [one["id"] for one in labels["annotations"]]
    assert len(set(every)) == len(every)
    assert content["annotations"][0]["id"] not in every


def test_animal_poses_dialect_is_read(creatures, written):
    content = coco(creatures)
    plain = read_sheet(written(content), creatures / "JPEGImages")
    content["images"] = {str(image["id"]): image["file_name"] for image in content["images"]}
    for one in content["annotations"]:
        x, y, w, h = one["bbox"]
        one["bbox"] = [x, y, x + w, y + h]
        if "keypoints" in one:
            one["keypoints"] = [one["keypoints"][i : i + 3] for i in range(0, len(one["keypoints"]), 3)]

    dialect = read_sheet(written(content), creatures / "JPEGImages", "xyxy")

    assert [thing.box for thing in dialect.targets] == [thing.box for thing in plain.targets]
    for one, other in zip(dialect.sources[1], plain.sources[1], strict=True):
        assert torch.equal(one.points, other.points)
        assert one.photo.id == other.photo.id


def test_a_crowd_neither_labels_nor_is_labelled(creatures, written):
    content = coco(creatures)
    content["annotations"][0]["iscrowd"] = content["annotations"][-1]["iscrowd"] = 1

    sheet = read_sheet(written(content), creatures / "JPEGImages", category="cat")

    assert len(sheet.sources[1]) == 1
    assert content["images"][-1]["file_name"] not in [thing.photo.name for thing in sheet.targets]


def test_a_skeleton_counts_from_one_or_from_zero():
    names = {"keypoints": ["a", "b", "c"]}
    assert bones({**names, "skeleton": [[1, 2], [2, 3]]}) == bones({**names, "skeleton": [[0, 1], [1, 2]]})


# -- mistakes --


def _orphan(content: dict) -> None:
    content["categories"].append({"id": 9, "name": "yak", "keypoints": ["a"]})
    content["annotations"][-1]["category_id"] = 9


MISTAKES = {
    "no annotated image of yak": _orphan,
    r"names image_id 77, which the file does not define": lambda c: c["annotations"][0].update(image_id=77),
    r"names category_id 77": lambda c: c["annotations"][0].update(category_id=77),
    r"gone.jpg, which is not in": lambda c: c["images"][3].update(file_name="gone.jpg"),
    r"has 43 numbers in `keypoints`; .* which are 45": lambda c: c["annotations"][0]["keypoints"].__delitem__(slice(2)),
    r"must be finite numbers": lambda c: c["annotations"][0]["keypoints"].__setitem__(0, "x"),
    r"`bbox` .* has no area. It is read as xywh": lambda c: c["annotations"][0].update(bbox=[5, 5, 0, 3]),
    r"must be four finite numbers": lambda c: c["annotations"][0].update(bbox=[5, 5]),
    r"has no `keypoints`, their names": lambda c: c["categories"][0].pop("keypoints"),
    r"two images have the id 1": lambda c: c["images"][0].update(id=1),
    r"keypoints. must be finite numbers": lambda c: c["annotations"][0].update(keypoints=7),
    r"`images` must be a list": lambda c: c.update(images=None),
    r"no field `annotations`": lambda c: c.pop("annotations"),
    r"no annotated keypoint": lambda c: [one.pop("keypoints", None) for one in c["annotations"]],
    r"none to be labelled": lambda c: [
        one.update(keypoints=c["annotations"][0]["keypoints"]) for one in c["annotations"]
    ],
    r"has keypoints outside": lambda c: c["annotations"][0]["keypoints"].__setitem__(0, 4000),
    r"annotations are of 7 x": lambda c: c["images"][0].update(width=7),
    r"the box .* lies outside": lambda c: c["annotations"][-1].update(bbox=[5000, 5, 20, 20]),
}


@pytest.mark.parametrize(("told", "spoil"), MISTAKES.items(), ids=list(MISTAKES))
def test_a_mistake_in_the_file_is_a_sentence_and_nothing_is_written(creatures, tmp_path, told, spoil):
    content = coco(creatures)
    spoil(content)
    (tmp_path / "a.json").write_text(json.dumps(content))
    folder = alone(creatures, tmp_path)

    line = (tmp_path / "a.json", folder, "--out", tmp_path / "o.json", "--draw", tmp_path / "drawn")
    code, said = typed(*line)

    assert code == 2
    assert said.startswith("Error: ") or "\nError: " in said
    assert re.search(told, said), said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "images"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--use", "all"], "--use must be vote or best"),
        (["--min-score", "1"], "--min-score must be"),
        (["--place", "-1"], "--place must be 0 or more"),
        (["--box", "cxcywh"], "--box must be one of"),
        (["--category", "yak"], "has no category 'yak'; it has cat, dog"),
        ([], "Name theirs with --category"),
        (["--category", "cat", "--out", "nowhere/o.json"], "Give the name of a JSON file"),
        (["--category", "cat", "--model", "backbone=tiny localise=bilinear_nn"], "Choose another"),
    ],
)
def test_a_mistake_on_the_line_is_a_sentence(creatures, written, options, told):
    annotations = written(coco(creatures, ("cat", "dog")))

    code, said = typed(annotations, creatures / "JPEGImages", "--out", annotations.with_name("o.json"), *options)

    assert code == 2
    assert told in said
    assert not annotations.with_name("o.json").exists()


def test_the_annotations_are_not_written_over(creatures, written):
    annotations = written(coco(creatures))
    before = annotations.read_text()

    assert typed(annotations, creatures / "JPEGImages", "--out", annotations)[0] == 2
    assert annotations.read_text() == before


def test_a_broken_picture_is_refused_or_left_out_by_name(creatures, written, tmp_path):
    content = coco(creatures)
    folder = alone(creatures, tmp_path)
    broken = folder / content["images"][-1]["file_name"]
    broken.write_bytes(broken.read_bytes()[:300])
    line = (written(content), folder, "--out", tmp_path / "o.json")

    code, said = typed(*line)
    assert code == 2
    assert broken.name in said
    assert "--skip-broken" in said
    assert not (tmp_path / "o.json").exists()

    code, said = typed(*line, "--skip-broken")
    assert code == 0
    assert f"left out: cat/{broken.name}" in said
    labels = json.loads((tmp_path / "o.json").read_text())
    assert [one["file_name"] for one in labels["skipped"]] == [f"cat/{broken.name}"]
    assert len(labels["annotations"]) == 5


def test_a_read_out_that_asks_again_cannot_vote():
    with pytest.raises(UserError, match="Choose another"):
        check_rule(Matcher.load("backbone=tiny localise=bilinear_nn", device="cpu"))


def test_help_brings_no_torch():
    code = "import sys, semcorr.transfer; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
