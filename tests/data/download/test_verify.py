"""The report: every count and every quirk is found, and what is published is compared."""

import json
import pickle
from types import MappingProxyType

import pytest
from PIL import Image
from rich.console import Console
from tiny_ap10k import write_ap10k
from tiny_benchmarks import edit, write_spair, write_willow
from tiny_pascal import write_pascal
from tiny_tapvid import moving_square

from semcorr.core.errors import UserError
from semcorr.data.ap10k import AP10K
from semcorr.data.ap10k_pairs import write_pairs
from semcorr.data.download.verify import VerificationCheck, VerificationReport, check_lists, verify_benchmark
from semcorr.data.proposal_flow import PFPascal, PFWillow
from semcorr.data.spair import SPair
from semcorr.data.tapvid import TapVid

pytestmark = pytest.mark.integration


def only_test(root, **official) -> SPair:
    """A whole SPair-71k would have three splits and 12,234 test pairs."""

    class Tiny(SPair):
        splits = ("test",)

    Tiny.official = MappingProxyType(official)
    return Tiny(root=str(root), size=32)


def found(report: VerificationReport, what: str, where: str = "test") -> VerificationCheck:
    (check,) = [check for check in report.checks if (check.what, check.where) == (what, where)]
    return check


def test_a_tree_as_published_passes_and_says_so_in_json(tmp_path):
    data = only_test(
        write_spair(tmp_path), pairs={"test": 2}, images={"all": 3}, pairs_per_category={"test": {"cat": 2}}
    )

    report = verify_benchmark(data)

    assert not report.failed
    content = json.loads(json.dumps(report.as_json()))
    assert content["failed"] is False
    assert content["pairs_per_category"] == {"test": {"cat": 2}}
    assert {check["verdict"] for check in content["checks"]} <= {"ok", "note"}


WRONG = {
    "pairs": {"pairs": {"test": 3}},
    "images": {"images": {"test": 4}},
    "categories as published": {"pairs_per_category": {"test": {"cat": 2, "dog": 1}}},
    "exact duplicates": {"duplicates": {"test": 1}},
}


@pytest.mark.parametrize(("what", "official"), WRONG.items(), ids=WRONG)
def test_another_number_than_the_published_one_differs(tmp_path, what, official):
    report = verify_benchmark(only_test(write_spair(tmp_path), **official))

    assert report.failed
    assert [check.what for check in report.checks if check.verdict == "differs"] == [what]


def test_a_tolerance_covers_benchmarks_nobody_can_rebuild_exactly(tmp_path):
    root = write_spair(tmp_path)
    assert not verify_benchmark(only_test(root, pairs={"test": 3}, tolerance=0.4)).failed
    assert verify_benchmark(only_test(root, pairs={"test": 3}, tolerance=0.3)).failed


def test_the_real_spair_has_more_pairs_than_this_one(tmp_path):
    report = verify_benchmark(SPair(root=str(write_spair(tmp_path)), size=32))

    assert report.failed
    assert found(report, "pairs").official == 12_234
    assert found(report, "pair list", "train").found == "unreadable"
    assert "aeroplane: 0 pairs, official 690" in found(report, "categories as published").examples


def test_pairs_whose_two_annotations_disagree_are_counted_and_named(tmp_path):
    root = write_spair(tmp_path)
    edit(root / "PairAnnotation" / "test" / "000001-one-two:cat.json", lambda e: e["trg_kps"][0].__setitem__(0, 9))

    report = verify_benchmark(only_test(root))

    check = found(report, "pair and image annotations agree")
    assert (check.found, check.official, check.verdict) == (1, 2, "differs")
    assert "000001-one-two:cat.json: field `trg_kps` differs" in check.examples[0]
    assert found(report, "annotations").found == "unreadable"  # training would refuse it too


def test_a_file_of_another_size_than_annotated_differs(tmp_path):
    root = write_spair(tmp_path)
    Image.new("RGB", (30, 40)).save(root / "JPEGImages" / "cat" / "two.jpg")

    check = found(verify_benchmark(only_test(root)), "file sizes as annotated", "all")

    assert (check.found, check.official, check.verdict) == (2, 3, "differs")
    assert check.examples == ("cat/two: file 30 x 40, annotation 40 x 30",)


def test_an_image_that_exif_would_turn_is_noted(tmp_path):
    root = write_spair(tmp_path)
    path = root / "JPEGImages" / "cat" / "two.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)

    report = verify_benchmark(only_test(root))

    assert found(report, "images that EXIF would turn (it is not applied)", "all").examples == (
        "cat/two: orientation 6",
    )
    assert not report.failed
    assert found(report, "file sizes as annotated", "all").verdict == "ok"  # the annotation is of the unturned one


def test_keypoints_outside_image_or_box_are_noted(tmp_path):
    root = write_spair(tmp_path)
    edit(root / "ImageAnnotation" / "cat" / "three.json", lambda e: e["kps"].update({"5": [45, 3], "6": [20, 3]}))

    report = verify_benchmark(only_test(root))

    assert found(report, "images with keypoints outside", "all").examples == ("cat/three: 1",)
    outside_box = found(report, "images with keypoints outside the box", "all")
    assert outside_box.verdict == "note"
    assert "cat/three: 2" in outside_box.examples  # box 0 4 18 28: both new points
    assert not report.failed


def test_pairs_with_a_single_keypoint_are_noted(tmp_path):
    root = write_spair(tmp_path)
    edit(root / "ImageAnnotation" / "cat" / "three.json", lambda e: e["kps"].update({"3": None}))
    pair = root / "PairAnnotation" / "test" / "000002-three-one:cat.json"
    edit(pair, lambda e: e.update(kps_ids=["2"], src_kps=e["src_kps"][:1], trg_kps=e["trg_kps"][:1]))

    assert found(verify_benchmark(only_test(root)), "pairs with one keypoint").examples == ("000002-three-one:cat",)


def test_duplicates_and_images_in_two_splits_are_counted_from_pascals_lists_alone(tmp_path):
    data = PFPascal(root=str(write_pascal(tmp_path)), size=32)

    report = verify_benchmark(data)

    assert found(report, "exact duplicates", "train").found == 1  # of four rows; one differs in `flip` only
    assert found(report, "images in both", "train & test").examples == ("2008_000001", "2008_000002")
    for path in tmp_path.rglob("*.jpg"):
        path.unlink()
    without = verify_benchmark(data)
    assert found(without, "exact duplicates", "train").found == 1
    assert found(without, "annotations", "test").found == "unreadable"


def test_unpublished_counts_that_are_odd_are_a_note(tmp_path):
    data = PFPascal(root=str(write_pascal(tmp_path)), size=32)
    rows = {split: data.pair_list(split) for split in ("train", "test")}
    verdicts = {(c.what, c.where): c.verdict for c in check_lists(rows, {}, {})}
    assert verdicts["exact duplicates", "train"] == "note"
    assert verdicts["exact duplicates", "test"] == "ok"
    assert verdicts["images in both", "train & test"] == "note"


def test_willow_and_ap10k_are_compared_with_their_counts(tmp_path):
    willow = verify_benchmark(PFWillow(root=str(write_willow(tmp_path / "willow")), size=32))
    assert (found(willow, "pairs").found, found(willow, "pairs").official) == (2, 900)
    root = write_ap10k(tmp_path / "ap10k", usual=3, pictures=True)
    write_pairs(root)

    report = verify_benchmark(AP10K(root=str(root), size=32))

    assert found(report, "pairs", "test_cross_family").official == 6300
    assert found(report, "file sizes as annotated", "all").verdict == "ok"
    assert not any("_cross_" in check.where for check in report.checks if check.what == "images in both")


def test_tapvid_is_counted_in_videos(tmp_path):
    video = moving_square()
    video["points"][0, 1] = 1.5
    video["occluded"][3] = True
    (tmp_path / "tapvid_davis.pkl").write_bytes(pickle.dumps({"one": video, "two": moving_square()}))

    report = verify_benchmark(TapVid(root=str(tmp_path), size=32))

    assert report.failed  # there should be thirty
    assert (found(report, "videos").found, found(report, "videos").official) == (2, 30)
    assert found(report, "tracks").found == 8
    assert found(report, "videos with tracks that are never visible").examples == ("one: 1",)
    assert found(report, "videos with visible points outside the frame").examples == ("one: 1",)


def test_nothing_readable_at_all_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"Layout/large/test\.txt does not exist"):
        verify_benchmark(only_test(tmp_path))


def test_the_table_shows_numbers_verdicts_and_three_examples_of_many(tmp_path):
    checks = (
        VerificationCheck("pairs", "test", 12234, 12234, "ok"),
        VerificationCheck("odd [things]", "all", 5, None, "note", tuple(f"thing [{i}]" for i in range(5))),
    )
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(VerificationReport("spair", "somewhere", checks).table())
    text = console.export_text()
    console.file.close()

    assert "12,234" in text
    assert "thing [2]" in text
    assert "thing [3]" not in text
    assert "and 2 more" in text
