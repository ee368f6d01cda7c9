"""Labels through a clip: known motion is followed, what is covered is hidden, and no more than a batch is in memory."""

import json
import weakref
from pathlib import Path

import numpy as np
import pytest
from drawn_clips import (
    NAMES,
    POINTS,
    SIDE,
    annotate,
    draw_frames,
    draw_world,
    moved_points,
    read_labels,
    write_clip,
)
from encoded_clips import damage_packet, encode_clip
from partly_labelled import typed
from PIL import Image

from semcorr import Matcher
from semcorr.core.errors import UserError
from semcorr.data.pictures import read_annotated
from semcorr.inference.transfer.clip import label_clip, read_clip
from semcorr.inference.transfer.frames import FrameNames, derive_names

pytestmark = pytest.mark.integration

CELL = 16  # pixels of a frame
SHIFTS = [(0, 0), (16, 0), (32, 16), (20, 28), (7, 41)]


@pytest.fixture(scope="module")
def matcher() -> Matcher:
    """With true weights: 12 cells a side."""
    return Matcher.load("efficientnet_lite0", f"backbone.size={SIDE}", device="cpu")


@pytest.fixture(scope="module")
def random() -> Matcher:
    return Matcher.load("tiny", device="cpu")


def label(matcher: Matcher, annotations: Path, folder: Path, **options: object) -> dict:
    """Labels by the number of the frame."""
    clip = read_clip(annotations, folder, folder)
    return {int(one.target.photo.name[3:7]): one for one in label_clip(matcher, clip, **options)}


# -- what is followed --


def test_points_are_followed_through_a_known_motion(matcher, tmp_path):
    folder = write_clip(tmp_path / "frames", draw_frames(SHIFTS))

    labels = label(matcher, annotate(tmp_path / "a.json", {0: [POINTS]}), folder)

    assert sorted(labels) == [1, 2, 3, 4]
    for frame, one in labels.items():
        off = np.linalg.norm(one.points.numpy() - moved_points(SHIFTS[frame]), axis=1)
        whole_cells = all(value % CELL == 0 for value in SHIFTS[frame])
        assert off.max() < (CELL / 2 if whole_cells else CELL), frame
        assert one.valid.all(), frame
        assert one.size == (SIDE, SIDE)
        assert ((one.scores > 0) & (one.scores <= 1)).all()


def test_the_clip_may_be_annotated_at_any_frame(matcher, tmp_path):
    folder = write_clip(tmp_path / "frames", draw_frames(SHIFTS))

    labels = label(matcher, annotate(tmp_path / "a.json", {2: [moved_points(SHIFTS[2]).tolist()]}), folder)

    assert sorted(labels) == [0, 1, 3, 4]
    assert np.abs(labels[0].points.numpy() - np.array(POINTS)).max() < CELL / 2


def test_a_covered_point_is_hidden_and_seen_again(matcher, tmp_path):
    frames = draw_frames([(0, 0), (4, 0), (8, 0)])
    x, y = moved_points((4, 0))[1].astype(int)
    frames[1].paste((120, 120, 120), (x - 28, y - 28, x + 28, y + 28))
    folder = write_clip(tmp_path / "frames", frames)

    labels = label(matcher, annotate(tmp_path / "a.json", {0: [POINTS]}), folder)

    assert labels[1].valid.tolist() == [True, False, True]
    assert labels[2].valid.tolist() == [True, True, True]


def test_after_a_cut_a_frame_follows_the_annotated_one_that_it_resembles(matcher, tmp_path):
    frames = [*draw_frames(SHIFTS[:3]), *draw_frames(SHIFTS[:3], seed=1)]
    other = [(100.0, 50.0), (60.0, 110.0), (130.0, 120.0)]
    folder = write_clip(tmp_path / "frames", frames)
    annotations = annotate(tmp_path / "a.json", {0: [POINTS], 3: [other]})

    for use in ("best", "vote"):
        labels = label(matcher, annotations, folder, use=use)

        assert sorted(labels) == [1, 2, 4, 5]
        for frame, one in labels.items():
            source = 1 if frame < 3 else 2
            assert one.sources[0]["annotation_id"] == source
            truth = np.array(POINTS if frame < 3 else other) + SHIFTS[frame % 3]
            assert np.linalg.norm(one.points.numpy() - truth, axis=1).max() < CELL / 2, (use, frame)


def test_frames_may_have_any_size(matcher, tmp_path):
    first, second = draw_frames([(0, 0), (16, 0)])
    folder = write_clip(tmp_path / "frames", [first, second.resize((2 * SIDE, SIDE)), second])

    labels = label(matcher, annotate(tmp_path / "a.json", {0: [POINTS]}), folder)

    truth = moved_points((16, 0))
    assert labels[1].size == (2 * SIDE, SIDE)
    wide = (truth + 0.5) * [2, 1] - 0.5
    assert (np.abs(labels[1].points.numpy() - wide) < [CELL, CELL / 2]).all()
    assert np.abs(labels[2].points.numpy() - truth).max() < CELL / 2


def test_several_objects_of_one_frame_are_followed_each(matcher, tmp_path):
    folder = write_clip(tmp_path / "frames", draw_frames(SHIFTS[:3]))
    other = np.add(POINTS, (-20, 20))
    annotations = annotate(tmp_path / "a.json", {0: [POINTS, other.tolist()]})

    code, output = typed(
        annotations, folder, "--video", folder, "--out", tmp_path / "o.json",
        "--model", f"backbone=efficientnet_lite0 backbone.size={SIDE}",
    )  # fmt: skip

    assert code == 0, output
    for frame, objects in read_labels(tmp_path / "o.json").items():
        for rows, start in zip(objects, (np.array(POINTS), other), strict=True):
            assert np.abs(rows[:, :2] - start - SHIFTS[frame]).max() < CELL / 2
    ids = [one["id"] for one in json.loads((tmp_path / "o.json").read_text())["annotations"]]
    assert len(set(ids)) == 4
    assert not {1, 2} & set(ids)  # those of the annotations


def test_an_object_is_labelled_where_another_is_annotated(random, tmp_path):
    folder = write_clip(tmp_path / "frames", draw_frames(SHIFTS[:3]))
    content = json.loads(annotate(tmp_path / "a.json", {0: [POINTS, POINTS]}, categories=("cat", "dog")).read_text())
    content["images"].append({"id": 11, "file_name": "img0001.png", "width": SIDE, "height": SIDE})
    content["annotations"].append({**content["annotations"][1], "id": 3, "image_id": 11})  # the dog, once more
    (tmp_path / "a.json").write_text(json.dumps(content))
    clip = read_clip(tmp_path / "a.json", folder, folder)

    labels = [(one.target.category, one.target.photo.name) for one in label_clip(random, clip)]

    assert labels == [(1, "img0001.png"), (1, "img0002.png"), (2, "img0002.png")]


def test_objects_that_cannot_be_told_apart_are_refused(tmp_path):
    folder = write_clip(tmp_path / "frames", draw_frames(SHIFTS[:3]))
    annotations = annotate(tmp_path / "a.json", {0: [POINTS, POINTS], 1: [POINTS, POINTS]})

    with pytest.raises(UserError, match="several objects of cat are annotated in several frames"):
        read_clip(annotations, folder, folder)


# -- one batch at a time --


def test_no_more_than_a_batch_of_frames_is_in_memory(tmp_path, monkeypatch):
    matcher = Matcher.load("tiny", device="cpu", batch=2)
    folder = write_clip(tmp_path / "frames", draw_frames(SHIFTS * 6))
    opened: list[weakref.ref] = []
    most = 0

    def watched(path, size):
        nonlocal most
        most = max(most, 1 + sum(one() is not None for one in opened))
        picture, upright = read_annotated(path, size)
        opened.append(weakref.ref(picture.image))
        return picture, upright

    monkeypatch.setattr("semcorr.inference.transfer.frames.read_annotated", watched)

    labels = label(matcher, annotate(tmp_path / "a.json", {0: [POINTS]}), folder)

    assert len(labels) == 29
    assert len(opened) == 30
    assert most <= 2 * 2  # a batch that is read while the last one is given up


# -- files of videos --


def write_gif(path: Path, frames: list[Image.Image]) -> Path:
    frames[0].save(path, "GIF", save_all=True, append_images=frames[1:], duration=40)
    return path


def test_frames_of_a_file_are_named_as_the_annotated_ones(tmp_path):
    frames = draw_frames(SHIFTS)
    folder = write_clip(tmp_path / "labelled", frames[2:3])
    (folder / "img0000.png").rename(folder / "img0002.png")
    annotations = annotate(tmp_path / "a.json", {2: [POINTS]})

    code, output = typed(
        annotations, folder, "--video", write_gif(tmp_path / "clip.gif", frames), "--out", tmp_path / "o.json",
        "--draw", tmp_path / "drawn",
    )  # fmt: skip

    assert code == 0, output
    assert "cat: 4 labelled by 1" in output
    content = json.loads((tmp_path / "o.json").read_text())
    assert [image["file_name"] for image in content["images"]] == [f"img{i:04}.png" for i in (0, 1, 3, 4)]
    assert [path.name for path in (tmp_path / "drawn").iterdir()] == ["overview.png"]


def test_frames_that_are_counted_from_one_are_reported(tmp_path):
    frames = draw_frames([(0, 0), (30, 0), (60, 0)])
    folder = write_clip(tmp_path / "labelled", [])
    frames[0].save(folder / "img0001.png")  # as ffmpeg numbers them
    annotations = annotate(tmp_path / "a.json", {1: [POINTS]})
    line = annotations, folder, "--video", write_gif(tmp_path / "clip.gif", frames), "--out", tmp_path / "o.json"

    code, output = typed(*line)
    assert code == 2
    assert "Give --first 1" in output
    assert not (tmp_path / "o.json").exists()

    code, output = typed(*line, "--first", "1")
    assert code == 0, output
    assert sorted(read_labels(tmp_path / "o.json")) == [2, 3]


def test_a_first_number_that_is_too_large_is_reported(tmp_path):
    frames = draw_frames([(0, 0), (30, 0), (60, 0)])
    folder = write_clip(tmp_path / "labelled", [])
    frames[1].save(folder / "img0001.png")
    annotations = annotate(tmp_path / "a.json", {1: [POINTS]})
    line = annotations, folder, "--video", write_gif(tmp_path / "clip.gif", frames), "--out", tmp_path / "o.json"

    code, output = typed(*line, "--first", "1")
    assert code == 2
    assert "img0001.png is the frame after" in output
    assert "Give --first 0" in output
    assert not (tmp_path / "o.json").exists()

    code, output = typed(*line)
    assert code == 0, output


def test_a_table_of_deeplabcut_comes_back_with_all_frames(tmp_path):
    frames = draw_frames(SHIFTS)
    folder = write_clip(tmp_path / "labeled-data/clip", frames[:1])
    cells = [str(value) for point in POINTS for value in point]
    lines = [
        ["scorer", "", "", *["me"] * 6],
        ["bodyparts", "", "", *(name for name in NAMES for _ in "xy")],
        ["coords", "", "", *"xyxyxy"],
        ["labeled-data", "clip", "img0000.png", *cells],
    ]
    table = folder / "CollectedData_me.csv"
    table.write_text("".join(",".join(line) + "\n" for line in lines))

    code, output = typed(
        table, folder, "--video", write_gif(tmp_path / "clip.gif", frames), "--out", tmp_path / "o.csv"
    )

    assert code == 0, output
    rows = [line.split(",") for line in (tmp_path / "o.csv").read_text().splitlines()][3:]
    assert [row[:3] for row in rows] == [["labeled-data", "clip", f"img{i:04}.png"] for i in (1, 2, 3, 4)]
    assert all(0 <= float(row[5]) <= 1 for row in rows)  # likelihood


def write_individuals(folder: Path, rows: dict[str, dict[str, list[tuple[float, float]]]]) -> Path:
    """A table of DeepLabCut of the individuals a, b and c."""
    header = {
        "scorer": ["me"] * 18,
        "individuals": [name for name in "abc" for _ in range(6)],
        "bodyparts": [part for _ in "abc" for part in NAMES for _ in "xy"],
        "coords": ["x", "y"] * 9,
    }
    lines = [[name, "", "", *values] for name, values in header.items()]
    for file, points in rows.items():
        cells = [str(value) for name in "abc" for point in points.get(name, [("", "")] * 3) for value in point]
        lines.append(["labeled-data", folder.name, file, *cells])
    table = folder / "CollectedData_me.csv"
    table.write_text("".join(",".join(line) + "\n" for line in lines))
    return table


def read_individuals(path: Path) -> dict[str, str]:
    """By image, the individuals that are labelled, in order; all columns are there."""
    lines = [line.split(",") for line in path.read_text().splitlines()]
    assert lines[1][3:] == [name for name in "abc" for _ in range(9)]
    labelled = {line[2]: zip(lines[1][3:], line[3:], strict=True) for line in lines[4:]}
    return {file: "".join(dict.fromkeys(name for name, cell in cells if cell)) for file, cells in labelled.items()}


@pytest.mark.parametrize(
    ("rows", "labelled"),
    [
        ({"img0000.png": "ac"}, {"img0001.png": "ac", "img0002.png": "ac"}),
        ({"img0000.png": "c", "img0001.png": "b"}, {"img0000.png": "b", "img0001.png": "c", "img0002.png": "bc"}),
        ({"img0000.png": "abc", "img0001.png": "cb"}, {"img0001.png": "a", "img0002.png": "abc"}),
    ],
)
def test_individuals_of_deeplabcut_stay_what_they_are_through_a_clip(random, tmp_path, rows, labelled):
    folder = write_clip(tmp_path / "labeled-data/clip", draw_frames(SHIFTS[:3]))
    table = write_individuals(folder, {file: dict.fromkeys(names, POINTS) for file, names in rows.items()})

    code, output = typed(table, folder, "--video", folder, "--out", tmp_path / "o.csv")

    assert code == 0, output
    assert read_individuals(tmp_path / "o.csv") == labelled


def test_an_individual_of_deeplabcut_is_followed_from_where_it_is(matcher, tmp_path):
    """With c where b is not annotated, its labels were those of b."""
    folder = write_clip(tmp_path / "labeled-data/clip", draw_frames(SHIFTS[:3]))
    other = np.add(POINTS, (-20, 20)).tolist()
    table = write_individuals(folder, {"img0000.png": {"c": other}, "img0001.png": {"a": moved_points(SHIFTS[1])}})
    clip = read_clip(table, folder, folder)

    labels = {(one.target.individual, one.target.photo.name): one for one in label_clip(matcher, clip)}

    assert sorted(labels) == [(name, f"img{i:04}.png") for name, i in (("a", 0), ("a", 2), ("c", 1), ("c", 2))]
    for (name, file), one in labels.items():
        start = np.array(POINTS if name == "a" else other)
        assert np.abs(one.points.numpy() - start - SHIFTS[int(file[3:7])]).max() < CELL / 2


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["img0012.png"], FrameNames("img", 4, ".png")),
        (["frame_000012"], FrameNames("frame_", 6, "")),
        (["clip/7.jpg", "clip/8.jpg"], FrameNames("clip/", 1, ".jpg")),
        (["v2.cover.png", "a/f_3.webp"], FrameNames("a/f_", 1, ".webp")),
        (["cover.png"], FrameNames("", 6, ".png")),
    ],
)
def test_names_of_frames_are_derived_from_the_annotated_ones(names, message):
    assert derive_names(names) == message
    assert all(message.find_index(message.name(i)) == i for i in (0, 5, 1234567))
    assert message.find_index("other.png") is None


# -- mistakes --


def test_a_broken_frame_is_refused_or_left_out_by_name(tmp_path):
    folder = write_clip(tmp_path / "frames", draw_frames(SHIFTS))
    (folder / "img0002.png").write_bytes((folder / "img0002.png").read_bytes()[:300])
    annotations = annotate(tmp_path / "a.json", {0: [POINTS]})
    line = annotations, folder, "--video", folder, "--out", tmp_path / "o.json", "--draw", tmp_path / "drawn"

    code, output = typed(*line)
    assert code == 2
    assert "img0002.png is damaged" in output
    assert "--skip-broken" in output
    assert not (tmp_path / "o.json").exists()
    assert not (tmp_path / "drawn").exists()

    code, output = typed(*line, "--skip-broken")
    assert code == 0, output
    assert "left out: img0002.png" in output
    assert sorted(read_labels(tmp_path / "o.json")) == [1, 3, 4]


def test_a_broken_annotated_frame_is_left_out_while_another_remains(tmp_path):
    folder = write_clip(tmp_path / "frames", draw_frames(SHIFTS[:4]))
    annotations = annotate(tmp_path / "a.json", {0: [POINTS], 2: [moved_points(SHIFTS[2]).tolist()]})
    line = annotations, folder, "--video", folder, "--out", tmp_path / "o.json"
    (folder / "img0000.png").write_bytes((folder / "img0000.png").read_bytes()[:300])

    code, output = typed(*line)
    assert code == 2
    assert "img0000.png is damaged" in output
    assert "--skip-broken" in output

    code, output = typed(*line, "--skip-broken")
    assert code == 0, output
    assert output.count("left out: img0000.png") == 1
    assert sorted(read_labels(tmp_path / "o.json")) == [1, 3]

    (folder / "img0002.png").write_bytes(b"")
    code, output = typed(*line, "--skip-broken")
    assert code == 2
    assert "None of the annotated images of cat can be read" in output


def test_a_broken_annotated_picture_of_a_frame_of_a_file_is_left_out_while_another_remains(tmp_path):
    frames = draw_frames(SHIFTS[:4])
    folder, clip = write_clip(tmp_path / "labelled", frames), write_gif(tmp_path / "clip.gif", frames)
    annotations = annotate(tmp_path / "a.json", {0: [POINTS], 2: [moved_points(SHIFTS[2]).tolist()]})
    line = annotations, folder, "--video", clip, "--out", tmp_path / "o.json"
    (folder / "img0002.png").write_bytes((folder / "img0002.png").read_bytes()[:300])

    code, output = typed(*line)
    assert code == 2
    assert "img0002.png is damaged" in output

    code, output = typed(*line, "--skip-broken")
    assert code == 0, output
    assert output.count("left out: img0002.png") == 1
    assert sorted(read_labels(tmp_path / "o.json")) == [1, 3]


def test_a_damaged_frame_of_a_file_is_refused_or_left_out_by_name(tmp_path):
    frames = draw_frames([(4 * i, 0) for i in range(8)])
    folder = write_clip(tmp_path / "labelled", frames[:1])
    video = encode_clip(tmp_path / "clip.mkv", frames, codec="mjpeg", pixels="yuvj420p")
    damage_packet(video, 5)
    line = annotate(tmp_path / "a.json", {0: [POINTS]}), folder, "--video", video, "--out", tmp_path / "o.json"

    code, said = typed(*line)
    assert code == 2
    assert "clip.mkv, after frame 4 is damaged or no video" in said
    assert "With --skip-broken it is left out" in said
    assert not (tmp_path / "o.json").exists()

    code, said = typed(*line, "--skip-broken")
    assert code == 0, said
    assert said.count("left out: img0005.png: ") == said.count("left out") == 1
    assert sorted(read_labels(tmp_path / "o.json")) == [1, 2, 3, 4, 6, 7]


def test_a_damaged_frame_of_a_file_that_is_annotated_is_a_source_all_the_same(tmp_path):
    frames = draw_frames([(4 * i, 0) for i in range(8)])
    folder = write_clip(tmp_path / "labelled", frames)
    video = encode_clip(tmp_path / "clip.mkv", frames, codec="mjpeg", pixels="yuvj420p")
    damage_packet(video, 5)
    annotations = annotate(tmp_path / "a.json", {5: [POINTS]})

    code, said = typed(annotations, folder, "--video", video, "--out", tmp_path / "o.json", "--skip-broken")

    assert code == 0, said
    assert "cat: 7 labelled by 1;" in said
    assert "left out: clip.mkv: img0005.png: " in said


def test_a_damaged_frame_of_an_animation_is_the_last(tmp_path):
    frames = draw_frames(SHIFTS)
    folder, clip = write_clip(tmp_path / "labelled", frames[:1]), write_gif(tmp_path / "clip.gif", frames)
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    line = annotate(tmp_path / "a.json", {0: [POINTS]}), folder, "--video", clip, "--out", tmp_path / "o.json"

    code, said = typed(*line)
    assert code == 2
    assert "No frame after number" in said
    assert "With --skip-broken it is left out" in said

    code, said = typed(*line, "--skip-broken")
    assert code == 0, said
    assert said.count("left out") == 1
    assert 1 in read_labels(tmp_path / "o.json")


def test_copies_of_annotated_frames_are_those_frames_and_others_of_their_name_are_not(random, tmp_path):
    frames = draw_frames(SHIFTS[:3])
    images = write_clip(tmp_path / "images", frames[:2])
    annotations = annotate(tmp_path / "a.json", {0: [POINTS], 1: [moved_points(SHIFTS[1]).tolist()]})
    folder = write_clip(tmp_path / "frames", [frames[0], frames[2], frames[1]])

    clip = read_clip(annotations, images, folder)
    labels = [one.target.photo.path for one in label_clip(random, clip)]

    assert labels == [folder / "img0001.png", folder / "img0002.png"]


def test_annotated_pictures_that_are_named_otherwise_than_the_frames_of_a_file_are_reported(tmp_path, caplog):
    frames = draw_frames(SHIFTS[:3])
    folder = write_clip(tmp_path / "labelled", frames)
    (folder / "img0001.png").rename(folder / "other_7.png")
    annotations = annotate(tmp_path / "a.json", {0: [POINTS], 1: [POINTS]})
    annotations.write_text(annotations.read_text().replace("img0001.png", "other_7.png"))

    read_clip(annotations, folder, write_gif(tmp_path / "clip.gif", frames))

    assert (
        "clip.gif: its frames are named img0000.png, img0001.png, ...; 1 annotated pictures (other_7.png)"
        in caplog.text
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "img0000.png").unlink(), "img0000.png, which is not in"),
        (lambda folder: [path.unlink() for path in folder.glob("img000[1-9].png")], "there is none to be labelled"),
        (lambda folder: (folder.parent / "clip.mp4").write_bytes(b"\0\0\0\x18ftypisom"), r"semcorr\[video\]"),
        (lambda folder: write_gif(folder.parent / "clip.mp4", [draw_world(0)]), "at the size of the video"),
        (lambda folder: (folder.parent / "clip.mp4").mkdir(), "has no images"),
        (lambda folder: None, "clip.mp4 does not exist. Give a video file, or a folder of frames"),
    ],
)
def test_a_wrong_clip_is_a_user_error(tmp_path, monkeypatch, change, message):
    folder = write_clip(tmp_path / "frames", draw_frames(SHIFTS[:3]))
    annotations = annotate(tmp_path / "a.json", {0: [POINTS]})
    change(folder)
    clip = tmp_path / "clip.mp4" if "video" in message or "no images" in message else folder
    monkeypatch.setattr("semcorr.data.video.require_extra", refuse_extra)

    code, output = typed(annotations, folder, "--video", clip, "--out", tmp_path / "o.json")

    assert code == 2
    assert len([line for line in output.splitlines() if line.startswith("Error")]) <= 1
    assert message.replace("\\", "") in output
    assert not (tmp_path / "o.json").exists()


def refuse_extra(purpose: str, extra: str, *packages: str) -> None:
    raise UserError(f"{purpose} needs {packages[0]}, which is not installed: pip install 'semcorr[{extra}]'")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--first", "1"], "--first numbers the frames of a video file"),
        (["--draw", "FRAMES/drawn"], "lies in"),
    ],
)
def test_a_mistake_on_the_line_of_a_clip_is_a_user_error(tmp_path, options, message):
    folder = write_clip(tmp_path / "frames", draw_frames(SHIFTS[:2]))
    annotations = annotate(tmp_path / "a.json", {0: [POINTS]})
    options = [option.replace("FRAMES", str(folder)) for option in options]

    code, output = typed(annotations, folder, "--video", folder, "--out", tmp_path / "o.json", *options)

    assert code == 2
    assert message in output
    assert not (tmp_path / "o.json").exists()
