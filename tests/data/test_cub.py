"""CUB-200-2011 in its official layout, and what it does that others do not."""

import pytest
import torch
from PIL import Image
from random_damage import damage, refusal
from tiny_benchmarks import picture

from semcorr.core.errors import UserError
from semcorr.data.cub import CUB
from semcorr.data.views import make_view

PARTS = ["back", "beak", "belly", "breast", "crown", "forehead", "left eye", "left leg", "left wing", "nape",
         "right eye", "right leg", "right wing", "tail", "throat"]  # fmt: skip
# Which part takes a part's place in a mirror, as GANgealing's code has it for these 15.
MIRRORED = (0, 1, 2, 3, 4, 5, 10, 11, 12, 9, 6, 7, 8, 13, 14)
SPECIES = ["001.Black_footed_Albatross", "002.Laysan_Albatross"]
TABLES = ["images", "classes", "image_class_labels", "train_test_split", "bounding_boxes", "parts/parts",
          "parts/part_locs"]  # fmt: skip


def write_cub(root, birds: int = 5):
    """Of each of two species the first three birds train and the others test; bird k has part p at (k + p, 2 p).

    Part 7 is seen on no bird, and part 1 on the odd ones alone.
    """
    rows = {table: [] for table in TABLES}
    rows["classes"] = [f"{i} {name}" for i, name in enumerate(SPECIES, start=1)]
    rows["parts/parts"] = [f"{i} {name}" for i, name in enumerate(PARTS, start=1)]
    for image in range(1, 2 * birds + 1):
        species = (image - 1) // birds
        file = f"{SPECIES[species]}/Bird_{image:04d}_{796111 + image}.jpg"
        picture(root / "images" / file, (40, 36))
        rows["images"].append(f"{image} {file}")
        rows["image_class_labels"].append(f"{image} {species + 1}")
        rows["train_test_split"].append(f"{image} {int((image - 1) % birds < 3)}")
        rows["bounding_boxes"].append(f"{image} 0.0 1.0 {20 + image}.0 30.0")
        for part in range(1, 16):
            visible = part != 7 and (part != 1 or image % 2)
            place = f"{image + part}.0 {2 * part}.0 1" if visible else "0.0 0.0 0"
            rows["parts/part_locs"].append(f"{image} {part} {place}")
    for table, lines in rows.items():
        (root / table).parent.mkdir(exist_ok=True, parents=True)
        (root / f"{table}.txt").write_text("".join(f"{line}\n" for line in lines))
    return root


def cub(root, **options) -> CUB:
    return CUB(root=str(root), size=32, workers=0, **options)


def change(root, table: str, old: str, new: str) -> None:
    path = root / f"{table}.txt"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def write_uses(root, images: int) -> None:
    """All images train."""
    (root / "train_test_split.txt").write_text("".join(f"{image} 1\n" for image in range(1, images + 1)))


def test_the_test_pairs_are_all_ordered_pairs_of_the_test_images_of_a_species(tmp_path):
    pairs = cub(write_cub(tmp_path)).pairs("test")

    ends = [(pair.category, pair.source.name[-11:-7], pair.target.name[-11:-7]) for pair in pairs]
    assert ends == [(SPECIES[0], "0004", "0005"), (SPECIES[0], "0005", "0004"),
                    (SPECIES[1], "0009", "0010"), (SPECIES[1], "0010", "0009")]  # fmt: skip
    assert pairs[0].source.name == f"{SPECIES[0]}/Bird_0004_796115"
    assert pairs[0].source.keypoints[1].tolist() == [4 + 2, 4]
    assert pairs[0].target.box == (0, 1, 25, 31)
    assert pairs[0].extent == 30


def test_rows_are_the_parts_in_their_order_and_what_is_invisible_is_none(tmp_path):
    pair = cub(write_cub(tmp_path)).pairs("test")[0]
    assert len(pair.source.visible) == 15
    assert (~pair.source.visible).nonzero().flatten().tolist() == [0, 6]
    assert (~pair.target.visible).nonzero().flatten().tolist() == [6]


def test_an_invisible_part_has_no_place_even_if_its_line_has_one(tmp_path):
    root = write_cub(tmp_path)
    change(root, "parts/part_locs", "4 7 0.0 0.0 0", "4 7 12.0 9.0 0")
    assert not cub(root).pairs("test")[0].source.visible[6]


def test_legs_and_wings_may_be_confused_and_a_mirror_exchanges_all_sides(tmp_path):
    pair = cub(write_cub(tmp_path)).pairs("test")[0]
    assert [[PARTS[i] for i in group] for group in pair.groups] == [
        ["left leg", "right leg"],
        ["left wing", "right wing"],
    ]
    assert pair.flip == MIRRORED


def test_every_tenth_training_image_of_a_species_validates(tmp_path):
    data = cub(write_cub(tmp_path, birds=16), pairs_per_category=1000)
    write_uses(data.root, 32)
    images = {split: {pair.source.name[-11:-7] for pair in data.pairs(split)} for split in ("train", "val")}
    assert images["val"] == {"0001", "0011", "0017", "0027"}
    assert len(images["train"]) == 28
    assert not images["train"] & images["val"]


def test_points_and_boxes_beyond_the_image_stay_and_are_counted(tmp_path, caplog):
    root = write_cub(tmp_path)
    change(root, "parts/part_locs", "4 2 6.0 4.0 1", "4 2 40.0 36.0 1")
    change(root, "bounding_boxes", "5 0.0 1.0 25.0 30.0", "5 20.5 1.0 25.0 30.0")
    pair = cub(root).pairs("test")[0]
    assert pair.source.keypoints[1].tolist() == [40, 36]
    assert (pair.target.box[2], pair.extent) == (45.5, 30)
    assert "1 keypoints lie outside" in caplog.text


def test_a_grey_image_is_read_as_a_colour_one(tmp_path):
    root = write_cub(tmp_path)
    path = root / "images" / SPECIES[0] / "Bird_0004_796115.jpg"
    Image.linear_gradient("L").resize((40, 36)).save(path)
    with Image.open(path) as stored:
        assert stored.mode == "L"
    pixels = make_view(cub(root).pairs("test")[0].source, 32, "squash").image
    assert torch.equal(pixels[0], pixels[2])


def test_the_choice_of_pairs_is_the_same_each_time_and_another_with_another_seed(tmp_path):
    root = write_cub(tmp_path, birds=8)  # five of a species test: 20 ordered pairs
    names = [
        [pair.name for pair in cub(root, pairs_per_category=7, pairs_seed=seed).pairs("test")] for seed in (0, 0, 1)
    ]
    assert len(names[0]) == len(set(names[0])) == 14
    assert names[0] == names[1] != names[2]


def test_across_species_each_has_its_share_of_sources_and_all_are_birds(tmp_path):
    root = write_cub(tmp_path, birds=8)
    pairs = cub(root, pairs="cross", pairs_per_category=6).pairs("test")
    ends = [(pair.source.name.split("/")[0], pair.target.name.split("/")[0]) for pair in pairs]
    assert ends == [(SPECIES[0], SPECIES[1])] * 6 + [(SPECIES[1], SPECIES[0])] * 6
    assert {pair.category for pair in pairs} == {"bird"}
    again = cub(root, pairs="cross", pairs_per_category=6).pairs("test")
    assert [pair.name for pair in pairs] == [pair.name for pair in again]


def test_across_species_few_images_give_all_pairs_that_share_enough(tmp_path):
    root = write_cub(tmp_path)
    lines = (root / "parts/part_locs.txt").read_text().splitlines()
    blind = [f"{line.rsplit(' ', 1)[0]} 0" if line.startswith("4 ") else line for line in lines]
    (root / "parts/part_locs.txt").write_text("\n".join(blind))  # image 4 shows nothing
    pairs = cub(root, pairs="cross").pairs("test")
    assert len(pairs) == 4  # 5 with 9 and 10, both ways
    assert all("0004" not in pair.name for pair in pairs)


@pytest.mark.parametrize(
    ("table", "old", "new", "message"),
    [
        ("images", "4 001", "4 ../001", r"images\.txt, line 4, names"),
        ("images", "Bird_0004", "Bird_0044", r"Bird_0044_796115\.jpg, which does not exist"),
        ("images", "5 001", "4 001", r"images\.txt, line 5: '4 001.* is of an id that line 4 has already"),
        ("images", "Bird_0005_796116", "Bird_0004_796115", r"images\.txt, line 5 gives a second id to .* after line 4"),
        (
            "images",
            "10 002.Laysan_Albatross/Bird_0010_796121.jpg\n",
            "",
            r"labels\.txt, line 10: '10' is not defined by images\.txt",
        ),
        ("classes", "002.Laysan_Albatross", "001.Black_footed_Albatross", r"classes\.txt, line 2 gives a second id to"),
        ("parts/parts", "15 throat\n", "", r"part_locs\.txt, line 15: '1 15' is not defined by images\.txt and p"),
        ("parts/parts", "15 throat", "15 beak", r"parts\.txt, line 15 gives a second id to 'beak', after line 2"),
        ("image_class_labels", "4 1\n", "4 3\n", r"labels\.txt, line 4: '3' is not defined by classes\.txt"),
        ("image_class_labels", "4 1\n", "", r"class_labels\.txt has no line for '4', defined by images\.txt"),
        ("train_test_split", "4 0\n", "", r"train_test_split\.txt has no line for '4', defined by images\.txt"),
        ("train_test_split", "4 0\n", "4 0\n99 0\n", r"split\.txt, line 5: '99' is not defined by images\.txt"),
        ("train_test_split", "4 0\n", "4 2\n", r"split\.txt, line 4: '2' says whether the image trains, and must be"),
        ("bounding_boxes", "4 0.0 1.0 24.0 30.0", "4 0.0 1.0 24.0", r"line 4: '4 0.0 1.0 24.0' has fewer than 5"),
        (
            "bounding_boxes",
            "4 0.0 1.0 24.0 30.0",
            "4 0.0 1.0 24.0 0.0",
            r"boxes\.txt, line 4: the box '0.0 .* 0.0' must",
        ),
        ("bounding_boxes", "4 0.0 1.0 24.0 30.0", "4 0.0 1.0 24.0 1e12", r"boxes\.txt, line 4: '1e12' must be a"),
        ("parts/part_locs", "4 2 6.0 4.0 1", "4 2 6,0 4.0 1", r"locs\.txt, line 47: '6,0' must be a finite"),
        ("parts/part_locs", "4 2 6.0 4.0 1", "4 2 1_0 4.0 1", r"locs\.txt, line 47: '1_0' must be a finite"),
        ("parts/part_locs", "4 2 6.0 4.0 1", "4 2 \uff15 4.0 1", r"locs\.txt, line 47: '\uff15' must be a finite"),
        ("parts/part_locs", "4 2 6.0 4.0 1", "4 2 6.0 4.0 1\n99 1 3 3 1", r"line 48: '99 1' is not defined"),
        ("parts/part_locs", "4 2 6.0 4.0 1", "4 2 6.0 4.0 1\n4 16 3 3 1", r"line 48: '4 16' is not defined"),
        ("parts/part_locs", "4 2 6.0 4.0 1", "4 2 nan 4.0 1", r"locs\.txt, line 47: 'nan' must be a finite"),
        (
            "parts/part_locs",
            "4 2 6.0 4.0 1",
            "4 2 6.0 4.0 2",
            r"locs\.txt, line 47: '2' says whether the part is visible",
        ),
        (
            "parts/part_locs",
            "4 2 6.0 4.0 1\n",
            "",
            r"part_locs\.txt has no line for '4 2', defined by images\.txt and parts",
        ),
    ],
)
def test_the_error_names_the_problem_in_a_table(tmp_path, table, old, new, message):
    root = write_cub(tmp_path)
    change(root, table, old, new)
    with pytest.raises(UserError, match=message) as error:
        cub(root).pairs("test")
    assert str(root) in str(error.value)


def test_what_is_not_there_is_named_with_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"semcorr\.prepare cub"):
        cub(tmp_path / "nowhere").pairs("test")
    root = write_cub(tmp_path)
    (root / "classes.txt").unlink()
    with pytest.raises(UserError, match=r"classes\.txt does not exist\. Unpack CUB_200_2011\.tgz"):
        cub(root).pairs("test")
    with pytest.raises(UserError, match=r"`data\.pairs` must be .*within.*cross"):
        cub(root, pairs="species")


@pytest.mark.parametrize("table", TABLES)
def test_a_table_without_a_line_is_named(tmp_path, table):
    root = write_cub(tmp_path)
    (root / f"{table}.txt").write_text("\n")
    with pytest.raises(UserError, match=rf"{table}\.txt has no line\. Unpack"):
        cub(root).pairs("test")


def test_a_split_without_a_pair_says_how_many_images_it_has(tmp_path):
    root = write_cub(tmp_path)
    write_uses(root, 10)
    with pytest.raises(UserError, match=r"data\.split=test has 0 images, and no two of one species"):
        cub(root).pairs("test")
    with pytest.raises(UserError, match=r"data\.split=val has 2 images, and no two of one species share"):
        cub(root).pairs("val")


@pytest.mark.parametrize("count", [8, pytest.param(150, marks=pytest.mark.slow)])
def test_random_damage_is_read_or_refused_with_a_message(tmp_path, count):
    root = write_cub(tmp_path)
    refused = 0
    for table in TABLES:
        path = root / f"{table}.txt"
        content = path.read_bytes()
        for seed in range(count):
            path.write_bytes(damage(content.ljust(130, b"\n"), seed))
            refused += bool(refusal(lambda: cub(root).pairs("test")))
        path.write_bytes(content)
    assert refused > count * len(TABLES) // 3
