"""A photograph stored in any way is the same photograph: to benchmarks of one's own, to match, transfer and Matcher."""

import csv
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stored_ways import LOSSY, WAYS, exif_chunk, photograph, turned, write_png

from semcorr import Matcher
from semcorr.core.errors import UserError
from semcorr.data.image_variants import ImageVariant, content_hash
from semcorr.data.pairs_csv import PairsCSV
from semcorr.data.pictures import load_picture, measure_picture, read_whole, warn_about_frames
from semcorr.data.record import ImageRecord
from semcorr.data.views import render_view
from semcorr.evaluate import evaluate

pytestmark = pytest.mark.integration

SIZE, MOVED = (120, 90), (12, 6)


def scene() -> tuple[np.ndarray, np.ndarray]:
    """A photograph, and another of the same, taken from further right and below."""
    whole = photograph(SIZE[0] + MOVED[0], SIZE[1] + MOVED[1])
    return whole[: SIZE[1], : SIZE[0]], whole[MOVED[1] :, MOVED[0] :]


Ways = Mapping[str, Callable[[np.ndarray, Path], Path]]


def write_pairs(root: Path, ways: Ways) -> Path:
    """A benchmark of one's own: of each way a pair with 400 points, in upright pixels; the way is its category."""
    points = np.random.default_rng(1).uniform([MOVED[0], MOVED[1]], [SIZE[0] - 1, SIZE[1] - 1], (400, 2)).round(2)
    columns = [";".join(map(str, values)) for values in (*points.T, *(points - MOVED).round(2).T)]
    rows = [["source_image", "target_image", "XA", "YA", "XB", "YB", "category"]]
    for i, (way, save) in enumerate(ways.items()):
        (root / str(i)).mkdir(parents=True, exist_ok=True)
        paths = [save(pixels, root / str(i) / name) for pixels, name in zip(scene(), "ab", strict=True)]
        rows.append([*(path.relative_to(root).as_posix() for path in paths), *columns, way])
    with (root / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return root


def test_a_photograph_stored_in_many_ways_has_the_same_pck(config, tmp_path):
    """To the last digit where its pixels are the same, and within half a point where the encoding loses."""
    root = write_pairs(tmp_path / "pairs", WAYS | LOSSY)
    line = ["data=pairs_csv", f"data.root={root}", "data.workers=0", "backbone=tiny", "trainer=cpu"]

    scores = evaluate(config("evaluate", *line))["category"]
    found = {way: score["all"]["image"] for way, score in scores.items()}

    expected = found["upright"]
    assert found.keys() == {*WAYS, *LOSSY}
    assert 0.05 < expected["0.1"] < 0.99, "or it proves nothing"
    assert all(found[way] == expected for way in WAYS)
    assert all(abs(found[way][alpha] - expected[alpha]) <= 0.005 for way in LOSSY for alpha in expected)


@pytest.mark.parametrize("way", [*WAYS, *LOSSY])
def test_a_record_of_ones_own_has_the_pixels_of_the_upright_picture(tmp_path, way):
    pixels = photograph()
    path = (WAYS | LOSSY)[way](pixels, tmp_path / "a")
    size, upright = measure_picture(path)
    record = ImageRecord("a", path, size, torch.zeros(0, 2), torch.zeros(0).bool(), (0.0, 0.0, 9.0, 9.0))

    square = render_view(record._replace(upright=upright), 120, "letterbox")

    assert (size, upright) == (SIZE, True)
    off = (square[:, 15:105].permute(1, 2, 0).int() - torch.from_numpy(pixels.astype(np.int32))).abs()
    assert off.float().mean() < (4 if way in LOSSY else 1e-9)


def test_matches_are_the_same_whichever_way_it_is_stored(tmp_path):
    matcher = Matcher.load("tiny", device="cpu")
    one, other = scene()
    points = [(30, 20), (60, 45), (99, 70)]
    expected = matcher.match(one, other, points)

    assert not torch.equal(expected.points, torch.tensor(points, dtype=torch.float32))
    for way, save in WAYS.items():
        found = matcher.match(save(one, tmp_path / "a"), save(other, tmp_path / "b"), points)
        assert torch.equal(found.points, expected.points), way
        assert torch.equal(found.scores, expected.scores), way


# -- which way round annotations are of --


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "webp"])
def test_the_size_is_known_without_decoding_either_way_round(tmp_path, monkeypatch, kind, orientation):
    path = turned(photograph(), tmp_path / f"a.{kind}", orientation)
    swapped = orientation >= 5
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))

    assert measure_picture(path) == (SIZE, True)
    assert measure_picture(path, SIZE) == (SIZE, True)
    if swapped:
        assert measure_picture(path, SIZE[::-1]) == (SIZE[::-1], False)
    else:
        with pytest.raises(UserError, match=r"a\.\w+ is 120 x 90 pixels, and its annotations are of 90 x 120\. Give"):
            measure_picture(path, SIZE[::-1])


@pytest.mark.parametrize("kind", ["jpg", "png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_stored_pixels_are_as_they_are_stored(tmp_path, kind, orientation):
    path = turned(photograph(), tmp_path / f"a.{kind}", orientation)

    stored = read_whole(path, upright=False)

    assert stored.size == (SIZE[::-1] if orientation >= 5 else SIZE)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "again.png", exif=exif)
    assert np.array_equal(np.asarray(load_picture(tmp_path / "again.png").image), np.asarray(load_picture(path).image))


def test_a_picture_of_neither_size_is_refused_with_all_of_them(tmp_path):
    path = turned(photograph(), tmp_path / "a.jpg", 6)
    with pytest.raises(UserError, match=r"a\.jpg is 120 x 90 pixels \(stored as 90 x 120\), .* of 640 x 480"):
        measure_picture(path, (640, 480))


# -- features kept by a file's content --


def record(path: Path, upright: bool) -> ImageRecord:
    return ImageRecord("a", path, SIZE, torch.zeros(0, 2), torch.zeros(0).bool(), (0.0, 0.0, 9.0, 9.0), upright=upright)


@pytest.mark.parametrize("orientation", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("kind", ["jpg", "png", "tif"])
def test_both_readings_of_a_file_that_differ_are_kept_apart(tmp_path, kind, orientation):
    path = turned(photograph(), tmp_path / f"a.{kind}", orientation)

    assert content_hash(ImageVariant(record(path, True))) != content_hash(ImageVariant(record(path, False)))


def test_ordinary_files_have_one_entry_and_the_one_that_they_always_had(tmp_path):
    for name, mode in (("a.jpg", "RGB"), ("b.png", "L"), ("c.png", "P"), ("d.tif", "CMYK"), ("e.bmp", "RGB")):
        Image.fromarray(photograph()).convert(mode).save(tmp_path / name)
        digest = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        before = hashlib.sha256(f"{digest} 0 0".encode()).hexdigest()[:32]  # as it was computed ever since

        assert content_hash(ImageVariant(record(tmp_path / name, True))) == before, name
        assert content_hash(ImageVariant(record(tmp_path / name, False))) == before, name


def test_entries_of_before_are_not_served_for_what_is_read_otherwise_now(tmp_path):
    grey = photograph()[..., 0].astype(np.uint16)
    files = [
        write_png(tmp_path / "deep.png", grey * 257, 0, 16),
        write_png(tmp_path / "clear.png", np.dstack([grey, grey]), 4),
        write_png(tmp_path / "key.png", photograph(), 2, before=[(b"tRNS", bytes(6))]),
    ]
    for path in files:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert (
            content_hash(ImageVariant(record(path, False))) != hashlib.sha256(f"{digest} 0 0".encode()).hexdigest()[:32]
        )


# -- messages --


ANIMATED = ["animated PNG", "animated WebP", "pages"]


def test_animations_are_reported_each_once_or_counted_together(tmp_path, caplog):
    paths = [WAYS[way](photograph(), tmp_path / f"{way[:8]}{i}") for i in range(2) for way in ANIMATED]
    for path in [*paths, *paths]:
        load_picture(path)
    assert caplog.messages == [f"{path} holds several frames or pages, of which the first is read" for path in paths]

    caplog.clear()
    with warn_about_frames(tmp_path):
        for path in [*paths, *paths]:
            measure_picture(path)
            load_picture(path)
    names = ", ".join(path.name for path in paths[:3])
    assert caplog.messages == [
        f"{tmp_path}: 6 images ({names} and 3 more) hold several frames or pages, of which the first is read"
    ]


def test_a_benchmark_of_ones_own_counts_its_animations(tmp_path, caplog):
    root = write_pairs(tmp_path, {way: WAYS[way] for way in ANIMATED})

    PairsCSV(root=str(root), size=32).pairs("test")

    warnings = [message for message in caplog.messages if "several frames" in message]
    assert len(warnings) == 1
    assert warnings[0].startswith(
        f"{root / 'pairs.csv'}: 6 images (a.apng, b.apng, a.webp and 3 more) hold several frames"
    )


def test_pairs_of_ones_own_are_sized_and_read_upright(tmp_path):
    root = write_pairs(tmp_path / "pairs", {"left": lambda x, to: turned(x, to.with_suffix(".jpg"), 8)})

    pair = PairsCSV(root=str(root), size=32).pairs("test")[0]

    assert pair.source.size == pair.target.size == SIZE
    assert pair.source.upright
    assert pair.extent == 120


def test_transfer_reads_labels_of_stored_pixels_as_such_and_counts_them(tmp_path, caplog):
    from semcorr.inference.transfer.annotations import read_annotations
    from semcorr.inference.transfer.pipeline import label_folder

    one, other = scene()
    turned(one, tmp_path / "a.jpg", 6)
    turned(other, tmp_path / "b.png", 1)
    width, height = SIZE[::-1]
    row = {"id": 1, "image_id": 1, "category_id": 1, "keypoints": [40.0, 100.0, 2]}  # outside the upright picture
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": width, "height": height}, {"id": 2, "file_name": "b.png"}],
        "categories": [{"id": 1, "name": "thing", "keypoints": ["nose"]}], "annotations": [row],
    }  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(content))

    labels = list(label_folder(Matcher.load("tiny", device="cpu"), read_annotations(tmp_path / "a.json", tmp_path)))

    assert [label.size for label in labels] == [SIZE]
    assert "height of 1 images (a.jpg) fit their pixels as stored" in caplog.text


def test_an_orientation_of_no_known_value_turns_nothing(tmp_path):
    for value in (0, 9, 65535):
        path = write_png(tmp_path / f"{value}.png", photograph(), 2, before=[(b"eXIf", exif_chunk(value))])
        assert np.array_equal(np.asarray(load_picture(path).image), photograph())
