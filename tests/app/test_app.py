"""The page: what a click makes of a session, and what is shown of it."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from semcorr import Matcher
from semcorr.app import inference as answers
from semcorr.app import render as pictures
from semcorr.app import session
from semcorr.app.inference import LoadedModel, match_session, score_points, session_to_dict
from semcorr.app.session import Session, SessionPoints
from semcorr.core.errors import UserError
from semcorr.data.pictures import load_picture

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def models() -> LoadedModel:
    return LoadedModel("cpu")


@pytest.fixture
def begun(creatures: Path) -> Session:
    cats = sorted((creatures / "JPEGImages/cat").glob("*.jpg"))
    return session.open_pictures(Session("tiny"), load_picture(cats[0]), load_picture(cats[1]))


# -- clicks --


def test_undo_takes_back_points_annotations_and_clear(begun):
    steps = [begun]
    for change in (
        lambda old: session.add_point(old, (5, 5)),
        lambda old: session.annotate_point(old, (9, 9)),
        lambda old: session.add_point(old, (60, 60)),
        session.clear_points,
    ):
        steps.append(change(steps[-1]))

    at = steps[-1]
    for before in steps[-2::-1]:
        at = session.undo(at)
        assert at.marks == before.marks
    assert session.undo(at) == at


def test_an_annotation_is_of_the_chosen_point_and_needs_one(begun):
    assert session.annotate_point(begun, (9, 9)) == begun

    two = session.add_point(session.add_point(begun, (5, 5)), (60, 60))
    first = session.add_point(two, (5.5, 5))
    assert session.annotate_point(first, (9, 9)).marks.truths == ((9, 9), None)
    assert session.annotate_point(two, (9, 9)).marks.truths == (None, (9, 9))


def test_a_mirrored_target_takes_its_annotations_with_it_and_mirrored_twice_is_as_before(begun):
    marked = session.annotate_point(session.add_point(begun, (5, 5)), (9, 8))
    once, twice = session.flip_target(marked), session.flip_target(session.flip_target(marked))

    assert once.mirrored
    assert once.marks.truths == ((marked.b.size[0] - 10, 8),)
    np.testing.assert_array_equal(np.asarray(once.b.image), np.asarray(marked.b.image)[:, ::-1])
    assert twice.marks == marked.marks
    np.testing.assert_array_equal(np.asarray(twice.b.image), np.asarray(marked.b.image))
    assert session.undo(session.undo(once)).marks == SessionPoints()


def test_another_target_keeps_the_points_and_another_source_does_not(begun):
    marked = session.annotate_point(session.add_point(begun, (5, 5)), (9, 8))

    assert session.open_pictures(marked, b=begun.a).marks == SessionPoints(((5, 5),), (None,), 0)
    assert session.open_pictures(marked, a=begun.b).marks == SessionPoints()


def test_a_click_on_what_is_drawn_is_the_point_that_was_drawn(begun):
    width, height = begun.a.size
    for point in ((-0.5, -0.5), (12.0, 40.0), (width / 2, height - 1.0)):
        index = pictures._to_displayed_point(point, begun.a.size, pictures.page_image_size(begun.a.size))
        assert pictures.click_to_pixel(index, begun.a.size) == pytest.approx(point, abs=1e-9)


# -- answers --


def test_the_page_gives_the_matches_of_the_matcher(begun, models):
    marked = session.flip_target(session.add_point(session.add_point(begun, (20.5, 30)), (60, 50)))
    found = match_session(models, marked, (40, 30))
    matcher = Matcher.load("tiny", device="cpu")

    expected = matcher.match(begun.a, marked.b, [[20.5, 30], [60, 50]])
    assert_close(found.match.points, expected.points)
    assert_close(found.heat, matcher.similarity(begun.a, marked.b, [60, 50], (40, 30)))


@pytest.mark.parametrize("count", [1, 3, 7])
def test_the_window_is_so_many_cells_around_the_best_and_ends_at_the_border(begun, count):
    models = LoadedModel("cpu")
    marked = session.add_point(begun._replace(model=f"backbone=tiny localise.window={count}"), (20, 30))
    x1, y1, x2, y2 = match_session(models, marked).window
    matcher = models.matcher(marked.model)
    cells = matcher.similarity(begun.a, begun.b, [20, 30])
    h, w = cells.shape
    y, x = divmod(int(cells.argmax()), w)
    side = torch.tensor(begun.b.size) / matcher.module.backbone.size * matcher.module.backbone.stride
    inside = cells[max(0, math.ceil(y1)) : math.floor(y2) + 1, max(0, math.ceil(x1)) : math.floor(x2) + 1]

    assert x1 - 0.5 <= x <= x2 + 0.5
    assert y1 - 0.5 <= y <= y2 + 0.5
    assert inside.max() == cells.max()
    assert x1 >= -0.5
    assert y2 <= h - 0.5 + 1e-3
    wide, high = (x2 - x1) / side[0], (y2 - y1) / side[1]
    assert wide == pytest.approx(round(float(wide)), abs=1e-3)
    assert 1 <= round(float(wide)) <= count
    assert 1 <= round(float(high)) <= count


def test_pck_is_of_the_annotated_points_and_of_the_extent_that_was_chosen(begun):
    size = max(begun.b.size)
    found = answers.Match(*[torch.tensor([[10.0, 10.0], [40.0, 10.0], [50.0, 50.0]])] * 2, torch.ones(3),
                          torch.ones(3, dtype=torch.bool), torch.zeros(3, 2))  # fmt: skip
    truths = ((10.0, 10.0), (40.0, 10.0 + 0.08 * size), None)
    marked = begun._replace(marks=SessionPoints(((1, 1), (2, 2), (3, 3)), truths, 0))

    of_image, of_box = (score_points(marked, found, of) for of in ("image", "box"))
    assert of_image == (2, size, {"0.05": 0.5, "0.1": 1.0, "0.2": 1.0})
    assert of_box.extent == pytest.approx(30)
    assert of_box.pck == {"0.05": 0.5, "0.1": 0.5, "0.2": 0.5}
    alone = marked._replace(marks=marked.marks._replace(truths=(truths[0], None, None)))
    assert score_points(alone, found, "box").pck is None
    assert score_points(begun, found, "image").annotated == 0


def test_the_json_says_model_points_matches_truths_and_versions(begun, models):
    marked = session.annotate_point(session.add_point(begun, (20, 30)), (31, 32))
    found = match_session(models, marked)
    saved = json.loads(json.dumps(session_to_dict(marked, found, "image")))

    (one,) = saved["matches"]
    assert one["source"] == [20, 30]
    assert one["truth"] == [31, 32]
    assert one["target"] == pytest.approx(found.match.points[0].tolist(), abs=0.01)
    assert saved["model"] == "backbone=tiny"
    assert saved["code"]["packages"]["torch"]
    assert saved["pck"]["annotated"] == 1


@pytest.mark.parametrize(
    ("model", "message"), [("dinosaur", "neither a backbone nor"), ("bob's", "nor a line of words")]
)
def test_a_model_that_cannot_be_loaded_leaves_the_next_one_loadable(begun, models, model, message):
    clicked = session.add_point(begun, (5, 5))
    before = match_session(models, clicked).match
    with pytest.raises(UserError, match=message):
        match_session(models, begun._replace(model=model))
    assert_close(match_session(models, clicked).match.points, before.points)


def test_names_from_outside_are_text_in_the_page(begun, models):
    named = session.add_point(begun._replace(b=begun.b._replace(name="<script>")), (5, 5))
    found = match_session(models, named)
    assert "<script" not in pictures.format_point_table(named, found) + pictures.format_hint(named, found)


def test_without_gradio_a_sentence_says_what_to_install(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nown = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'gradio' else own(name, *rest)\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", "semcorr.app"], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == "Error: The page needs gradio, which is not installed: pip install 'semcorr[app]'\n"
