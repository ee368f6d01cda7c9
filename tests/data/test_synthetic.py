import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semcorr.core.errors import UserError
from semcorr.data import synthetic
from semcorr.data.creatures.anatomy import CATEGORIES, sample_creature, sample_pose
from semcorr.data.creatures.photograph import render_photo
from semcorr.data.creatures.raster import Angles, Camera, Creature, Raster, pose_bones, project_landmarks, rasterise
from semcorr.data.creatures.scenery import Coat, Light, shade_creature
from semcorr.data.creatures.styles import STYLES, draw_scene, find_outline
from semcorr.data.keypoints import flip_permutation, keypoint_names
from semcorr.data.synthetic import Synthetic, write_synthetic

SHAPE = (160, 200)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = {"trn": 8, "test": 3}
    return write_synthetic(tmp_path_factory.mktemp("synthetic") / "root", images=images, size=128)


def annotations(root: Path, folder: str) -> dict[str, dict]:
    return {
        str(path.relative_to(root)): json.loads(path.read_text()) for path in sorted(root.glob(f"{folder}/**/*.json"))
    }


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def camera(azimuth: float, elevation: float = 8.0) -> Camera:
    return replace(Camera.towards(azimuth, elevation), scale=70.0, centre=((SHAPE[1] - 1) / 2, 70.0))


def see(
    creature: Creature, pose: Mapping[str, Angles], azimuth: float
) -> tuple[Raster, dict[str, tuple[int, int] | None]]:
    frames, view = pose_bones(creature, pose), camera(azimuth)
    raster = rasterise(creature, frames, view, SHAPE)
    return raster, project_landmarks(creature, frames, view, raster)


def swapped(name: str) -> str:
    return name.replace("left", "LEFT").replace("right", "left").replace("LEFT", "right")


@pytest.mark.slow
def test_two_writes_are_byte_identical_whatever_else_is_written(root, tmp_path):
    other = write_synthetic(tmp_path / "other", images={"test": 2, "trn": 1}, categories=["dog", "cat"], size=128)

    files = [path.relative_to(other) for path in other.glob("[IJS]*/*/*")]
    assert len(files) == 2 * 3 * 3  # categories, images of each, files of each: annotation, image, segmentation
    assert all((other / path).read_bytes() == (root / path).read_bytes() for path in files)


def test_another_seed_gives_other_images(root, tmp_path):
    other = write_synthetic(tmp_path / "other", seed=1, images={"trn": 1}, categories=["cat"], size=128)

    image = "JPEGImages/cat/trn_000000.jpg"
    assert (other / image).read_bytes() != (root / image).read_bytes()


def test_pair_files_repeat_the_image_annotations(root):
    images = {Path(path).parent.name + Path(path).stem: a for path, a in annotations(root, "ImageAnnotation").items()}
    for path, pair in annotations(root, "PairAnnotation").items():
        number, source, target = Path(path).stem.split(":")[0].split("-")
        source, target = (images[pair["category"] + stem] for stem in (source, target))
        shared = [i for i in map(str, range(30)) if source["kps"][i] and target["kps"][i]]

        assert f"{pair['filename']}.json" == Path(path).name
        assert pair["pair_id"] == int(number)
        assert pair["kps_ids"] == shared
        assert len(shared) >= 3
        for side, image in (("src", source), ("trg", target)):
            assert pair[f"{side}_imname"] == image["filename"]
            assert pair[f"{side}_imsize"] == [image["image_width"], image["image_height"], 3]
            assert pair[f"{side}_bndbox"] == image["bndbox"]
            assert pair[f"{side}_pose"] == image["pose"]
            assert pair[f"{side}_kps"] == [image["kps"][i] for i in shared]


@pytest.mark.parametrize("split", ["trn", "test"])
def test_the_layout_lists_every_pair_file(root, split):
    lines = (root / f"Layout/large/{split}.txt").read_text().splitlines()

    assert sorted(lines) == sorted(path.stem for path in (root / f"PairAnnotation/{split}").iterdir())
    assert [int(line[:6]) for line in lines] == list(range(1, len(lines) + 1))


def test_a_cap_keeps_that_many_pairs_per_category(tmp_path):
    root = write_synthetic(tmp_path / "r", images={"trn": 4}, pairs_per_category=5, categories=["cat", "cow"], size=96)

    lines = (root / "Layout/large/trn.txt").read_text().splitlines()
    assert [line.split(":")[1] for line in lines] == ["cat"] * 5 + ["cow"] * 5


def test_keypoints_and_boxes_lie_on_the_segmentation(root):
    for path, annotation in annotations(root, "ImageAnnotation").items():
        stem = path.removeprefix("ImageAnnotation/").removesuffix(".json")
        label, picture = pixels(root / f"Segmentation/{stem}.png"), pixels(root / f"JPEGImages/{stem}.jpg")
        rows, columns = np.nonzero(label)
        visible = [xy for xy in annotation["kps"].values() if xy]

        assert picture.shape == (*label.shape, 3) == (annotation["image_height"], annotation["image_width"], 3)
        assert annotation["bndbox"] == [columns.min(), rows.min(), columns.max(), rows.max()]
        assert len(visible) >= 5
        assert all(label[y, x] for x, y in visible)


def test_all_azimuths_and_some_truncation_occur(root):
    images = annotations(root, "ImageAnnotation").values()

    assert {image["azimuth_id"] for image in images} == set(range(8))
    assert {image["truncated"] for image in images} == {0, 1}
    assert {image["occluded"] for image in images} == {0, 1}
    assert {image["pose"] for image in images if image["azimuth_id"] == 2} == {"Left"}


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_keypoint_of_the_category_exists_on_the_creature(category):
    grown = set().union(*(sample_creature(category, np.random.default_rng(seed)).landmarks for seed in range(5)))

    assert set(keypoint_names("spair71k", category).values()) <= grown


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_side_view_shows_the_near_eye_and_hides_the_far_one(category):
    creature = sample_creature(category, np.random.default_rng(0))
    _, from_left = see(creature, {}, azimuth=90)
    _, from_right = see(creature, {}, azimuth=-90)

    assert from_left["left eye"]
    assert from_left["right eye"] is None
    assert from_right["right eye"]
    assert from_right["left eye"] is None
    assert from_left["left eye"][0] < from_left["tail-base"][0]  # at 90 degrees it faces the image's left


@pytest.mark.parametrize("category", CATEGORIES)
def test_the_front_hides_the_tail_and_the_back_hides_the_face(category):
    creature = sample_creature(category, np.random.default_rng(0))
    _, front = see(creature, {}, azimuth=0)
    _, back = see(creature, {}, azimuth=180)

    assert front["tail-base"] is None
    assert front["left eye"][0] > front["right eye"][0]  # its left is our right
    assert back["tail-base"]
    assert back["left eye"] is back["right eye"] is back["mouth"] is None


def test_points_outside_the_image_are_hidden():
    creature = sample_creature("horse", np.random.default_rng(0))
    frames, close = pose_bones(creature, {}), replace(camera(90), scale=200.0, centre=(180.0, 170.0))
    raster = rasterise(creature, frames, close, SHAPE)
    found = project_landmarks(creature, frames, close, raster)

    assert found["tail-tip"] is None
    assert found["front-left foot"] is None
    assert any(found.values())


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize("azimuth", [25, 75, 140])
def test_the_mirrored_pose_is_the_mirrored_image_with_sides_swapped(category, azimuth):
    """So nothing but the pose tells left from right."""
    rng = np.random.default_rng(azimuth)
    creature, pose, coat = sample_creature(category, rng), sample_pose(category, rng), Coat.draw(category, rng)
    mirrored = {swapped(bone): (pitch, -yaw, -roll) for bone, (pitch, yaw, roll) in pose.items()}
    raster, found = see(creature, pose, azimuth)
    mirror_raster, mirror_found = see(creature, mirrored, -azimuth)
    image, mirror_image = (shade_creature(r, coat, Light()) for r in (raster, mirror_raster))

    names = keypoint_names("spair71k", category)
    flip = flip_permutation("spair71k", category)
    assert np.abs(mirror_image[:, ::-1] - image).mean() < 1e-4
    assert (mirror_raster.mask[:, ::-1] == raster.mask).mean() > 0.9999
    for i, name in names.items():
        here, there = found.get(name), mirror_found.get(names[flip[i]])
        assert (here is None) == (there is None), name
        if here and there:
            np.testing.assert_allclose((SHAPE[1] - 1 - there[0], there[1]), here, atol=1)


@pytest.mark.parametrize("category", CATEGORIES)
def test_front_and_back_feet_look_alike(category):
    creature = sample_creature(category, np.random.default_rng(0))
    feet = [part for part in creature.parts if part.bone.endswith("foot")]

    assert len(feet) == 4
    assert all(str(foot._replace(bone="")) == str(feet[0]._replace(bone="")) for foot in feet)
    assert len({str(creature.bones[foot.bone].coat) for foot in feet}) == 1


def test_a_writer_that_fails_half_way_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "_write_pairs", fail)
    with pytest.raises(KeyboardInterrupt):
        write_synthetic(tmp_path / "root", images={"trn": 1}, categories=["cat"], size=96)

    assert not list(tmp_path.iterdir())


def test_the_slower_of_two_writers_keeps_the_faster_one_s_files(tmp_path, monkeypatch):
    write, arguments = synthetic._write, {"images": {"trn": 2}, "categories": ["cat"], "size": 96}

    def overtaken(staging: Path, manifest: Mapping) -> None:
        write(staging, manifest)
        write(tmp_path / "root", manifest)

    monkeypatch.setattr(synthetic, "_write", overtaken)
    write_synthetic(tmp_path / "root", **arguments)

    assert [path.name for path in tmp_path.iterdir()] == ["root"]
    assert (tmp_path / "root/synthetic.json").is_file()


def test_the_same_arguments_return_at_once(root, monkeypatch):
    monkeypatch.setattr(synthetic, "_write", None)

    assert write_synthetic(root, images={"trn": 8, "test": 3}, size=128) == root


def test_another_benchmark_in_the_root_is_an_error_that_says_what_differs(root):
    with pytest.raises(ValueError, match=r"seed is 0, asked for 7.*delete it or choose another"):
        write_synthetic(root, seed=7, images={"trn": 8, "test": 3}, size=128)


def test_someone_else_s_files_in_the_root_are_an_error(tmp_path):
    (tmp_path / "photo.jpg").touch()

    with pytest.raises(ValueError, match="not a synthetic benchmark"):
        write_synthetic(tmp_path)


@pytest.mark.parametrize("wrong", [{"images": {"train": 1}}, {"categories": ["bird"]}])
def test_unknown_splits_and_categories_are_errors(tmp_path, wrong):
    with pytest.raises(ValueError, match=r"train|bird"):
        write_synthetic(tmp_path / "root", **wrong)


@pytest.fixture(scope="module")
def styled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("styled") / "root"
    return write_synthetic(folder, images={"test": 3}, categories=["cat", "cow"], size=96, styles=STYLES)


def test_photographs_are_the_same_whatever_other_styles_there_are(styled, tmp_path):
    plain = write_synthetic(tmp_path / "plain", images={"test": 3}, categories=["cat", "cow"], size=96)

    assert "styles" not in json.loads((plain / "synthetic.json").read_text())  # found complete as before there were any
    for path in sorted((plain / "JPEGImages").rglob("*.jpg")):
        assert path.read_bytes() == (styled / path.relative_to(plain)).read_bytes()


def test_a_style_is_the_same_whatever_other_styles_there_are(styled, tmp_path):
    alone = write_synthetic(tmp_path / "alone", images={"test": 1}, categories=["cow"], size=96, styles=["cartoon"])

    path = "JPEGImages/cow/test_000000_cartoon.jpg"
    assert (alone / path).read_bytes() == (styled / path).read_bytes()


def test_a_style_changes_pixels_and_no_annotation(styled):
    photos = {path: one for path, one in annotations(styled, "ImageAnnotation").items() if one["domain"] == "photo"}
    assert len(photos) == 6
    for path, photo in photos.items():
        photo_pixels = pixels(styled / path.replace("ImageAnnotation", "JPEGImages").replace(".json", ".jpg"))
        for style in STYLES[1:]:
            stem = path.removeprefix("ImageAnnotation/").removesuffix(".json") + f"_{style}"
            other = json.loads((styled / f"ImageAnnotation/{stem}.json").read_text())
            assert other == {**photo, "domain": style, "filename": f"{Path(stem).name}.jpg"}
            image = pixels(styled / f"JPEGImages/{stem}.jpg")
            assert image.shape == photo_pixels.shape
            assert np.abs(image.astype(int) - photo_pixels).mean() > 8
            mask = Path(path).with_suffix(".png").name
            assert (styled / f"Segmentation/{stem}.png").read_bytes() == (
                styled / "Segmentation" / Path(path).parent.name / mask
            ).read_bytes()


def test_a_drawing_is_grey_and_a_cartoon_has_few_colours(styled):
    scene = render_photo("cow", 2, 128, np.random.default_rng(0)).scene
    drawing, cartoon, photo = (
        np.asarray(draw_scene(scene, style, np.random.default_rng(0))) for style in ("drawing", "cartoon", "photo")
    )

    assert (drawing == drawing[..., :1]).all()
    colours = [len(np.unique(image.reshape(-1, 3), axis=0)) for image in (cartoon, photo)]
    assert colours[0] < colours[1] / 4


def test_each_pair_is_there_from_every_style_to_every_style(styled):
    ways: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for pair in annotations(styled, "PairAnnotation").values():
        sides = [Path(pair[f"{side}_imname"]).stem for side in ("src", "trg")]
        styles = [stem.split("_")[2] if stem.count("_") == 2 else "photo" for stem in sides]
        assert styles == [pair["src_domain"], pair["trg_domain"]]
        individuals = tuple(stem[:11] for stem in sides)
        assert individuals[0] != individuals[1]
        ways.setdefault((pair["category"], *individuals), set()).add(tuple(styles))

    assert ways
    assert all(len(styles) == 16 for styles in ways.values())


def test_a_cap_counts_pairs_of_creatures_not_of_styles(tmp_path):
    styles = ["photo", "drawing"]
    root = write_synthetic(
        tmp_path / "r", images={"test": 4}, pairs_per_category=5, categories=["cat"], size=96, styles=styles
    )

    assert len((root / "Layout/large/test.txt").read_text().splitlines()) == 5 * 4


def test_the_reader_knows_the_domains(styled):
    data = Synthetic(root=str(styled), size=32)
    data.drawing = {"images": {"test": 3}, "size": 96, "styles": STYLES, "categories": ["cat", "cow"]}

    for pair in data.pairs("test"):
        for side, image in (("source", pair.source), ("target", pair.target)):
            style = next((style for style in STYLES if image.name.endswith(f"_{style}")), "photo")
            assert style == pair.details[f"{side}_domain"]
    assert {pair.details["target_domain"] for pair in data.pairs("test")} == set(STYLES)


def test_other_styles_in_the_root_are_an_error(styled):
    with pytest.raises(
        UserError, match=r"styles is \['photo', 'painting', 'drawing', 'cartoon'\], asked for \['photo'\]"
    ):
        write_synthetic(styled, images={"test": 3}, categories=["cat", "cow"], size=96)


@pytest.mark.parametrize("styles", [[], ["photo", "photo"]])
def test_styles_that_there_are_not_are_an_error(tmp_path, styles):
    with pytest.raises(UserError, match=r"`data.styles` must name one or more of photo, painting, drawing, cartoon"):
        write_synthetic(tmp_path / "root", styles=styles)


def test_an_outline_lies_on_jumps_of_depth_alone():
    depth = np.full((5, 6), -np.inf)
    depth[1:4, 1:5] = np.linspace(0.0, 0.2, 4)  # a slope is no edge
    depth[1:4, 4] = 1.0

    wanted = np.zeros((5, 6), bool)
    for row in range(5):
        for column in range(6):
            for i, j in ((row, column + 1), (row + 1, column)):
                if i < 5 and j < 6:
                    here, there = (max(depth[place], -1e3) for place in ((row, column), (i, j)))
                    wanted[row, column] |= abs(here - there) > 0.1
    assert (find_outline(depth) == wanted).all()
    assert wanted.any()
    assert not wanted[2, 2]
