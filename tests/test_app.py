"""The page: what a click makes of a session, what is shown of it, and the whole of it in a browser."""

import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from semcorr import Matcher
from semcorr.app import answers, pictures, session
from semcorr.app.answers import Models, answer, scored, told
from semcorr.app.session import Marks, Session
from semcorr.data.pictures import picture
from semcorr.errors import UserError

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def models() -> Models:
    return Models("cpu")


@pytest.fixture
def begun(creatures: Path) -> Session:
    cats = sorted((creatures / "JPEGImages/cat").glob("*.jpg"))
    return session.opened(Session("tiny"), picture(cats[0]), picture(cats[1]))


# -- clicks --


def test_undo_takes_back_points_annotations_and_clear(begun):
    steps = [begun]
    for change in (
        lambda old: session.asked(old, (5, 5)),
        lambda old: session.annotated(old, (9, 9)),
        lambda old: session.asked(old, (60, 60)),
        session.cleared,
    ):
        steps.append(change(steps[-1]))

    at = steps[-1]
    for before in steps[-2::-1]:
        at = session.undone(at)
        assert at.marks == before.marks
    assert session.undone(at) == at


def test_an_annotation_is_of_the_chosen_point_and_needs_one(begun):
    assert session.annotated(begun, (9, 9)) == begun

    two = session.asked(session.asked(begun, (5, 5)), (60, 60))
    first = session.asked(two, (5.5, 5))
    assert session.annotated(first, (9, 9)).marks.truths == ((9, 9), None)
    assert session.annotated(two, (9, 9)).marks.truths == (None, (9, 9))


def test_a_mirrored_target_takes_its_annotations_with_it_and_mirrored_twice_is_as_before(begun):
    marked = session.annotated(session.asked(begun, (5, 5)), (9, 8))
    once, twice = session.flipped(marked), session.flipped(session.flipped(marked))

    assert once.mirrored
    assert once.marks.truths == ((marked.b.size[0] - 10, 8),)
    np.testing.assert_array_equal(np.asarray(once.b.image), np.asarray(marked.b.image)[:, ::-1])
    assert twice.marks == marked.marks
    np.testing.assert_array_equal(np.asarray(twice.b.image), np.asarray(marked.b.image))
    assert session.undone(session.undone(once)).marks == Marks()


def test_another_target_keeps_the_points_and_another_source_does_not(begun):
    marked = session.annotated(session.asked(begun, (5, 5)), (9, 8))

    assert session.opened(marked, b=begun.a).marks == Marks(((5, 5),), (None,), 0)
    assert session.opened(marked, a=begun.b).marks == Marks()


def test_a_click_on_what_is_drawn_is_the_point_that_was_drawn(begun):
    width, height = begun.a.size
    for point in ((-0.5, -0.5), (12.0, 40.0), (width / 2, height - 1.0)):
        index = pictures._shown(point, begun.a.size, pictures.shown(begun.a.size))
        assert pictures.clicked(index, begun.a.size) == pytest.approx(point, abs=1e-9)


# -- answers --


def test_answers_are_the_matchers(begun, models):
    marked = session.flipped(session.asked(session.asked(begun, (20.5, 30)), (60, 50)))
    found = answer(models, marked, (40, 30))
    matcher = Matcher.load("tiny", device="cpu")

    expected = matcher.match(begun.a, marked.b, [[20.5, 30], [60, 50]])
    assert_close(found.match.points, expected.points)
    assert_close(found.heat, matcher.similarity(begun.a, marked.b, [60, 50], (40, 30)))


@pytest.mark.parametrize("count", [1, 3, 7])
def test_the_window_is_so_many_cells_around_the_best_and_ends_at_the_border(begun, count):
    models = Models("cpu")
    marked = session.asked(begun._replace(model=f"backbone=tiny localise.window={count}"), (20, 30))
    x1, y1, x2, y2 = answer(models, marked).window
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
    marked = begun._replace(marks=Marks(((1, 1), (2, 2), (3, 3)), truths, 0))

    of_image, of_box = (scored(marked, found, of) for of in ("image", "box"))
    assert of_image == (2, size, {"0.05": 0.5, "0.1": 1.0, "0.2": 1.0})
    assert of_box.extent == pytest.approx(30)
    assert of_box.pck == {"0.05": 0.5, "0.1": 0.5, "0.2": 0.5}
    alone = marked._replace(marks=marked.marks._replace(truths=(truths[0], None, None)))
    assert scored(alone, found, "box").pck is None
    assert scored(begun, found, "image").annotated == 0


def test_the_json_says_model_points_matches_truths_and_versions(begun, models):
    marked = session.annotated(session.asked(begun, (20, 30)), (31, 32))
    found = answer(models, marked)
    said = json.loads(json.dumps(told(marked, found, "image")))

    (one,) = said["matches"]
    assert one["source"] == [20, 30]
    assert one["truth"] == [31, 32]
    assert one["target"] == pytest.approx(found.match.points[0].tolist(), abs=0.01)
    assert said["model"] == "backbone=tiny"
    assert said["code"]["packages"]["torch"]
    assert said["pck"]["annotated"] == 1


def test_a_model_that_cannot_be_loaded_leaves_the_next_one_loadable(begun, models):
    clicked = session.asked(begun, (5, 5))
    before = answer(models, clicked).match
    with pytest.raises(UserError, match="is no backbone"):
        answer(models, begun._replace(model="dinosaur"))
    assert_close(answer(models, clicked).match.points, before.points)


def test_names_from_outside_are_text_in_the_page(begun, models):
    named = session.asked(begun._replace(b=begun.b._replace(name="<script>")), (5, 5))
    found = answer(models, named)
    assert "<script" not in pictures.table(named, found) + pictures.hint(named, found)


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


# -- in a browser --


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory):
    pytest.importorskip("gradio", reason="the page needs gradio: pip install semcorr[app]")
    pytest.importorskip("playwright", reason="the page is driven by playwright: pip install playwright")
    if BROWSER is None:
        pytest.skip("the page is driven in Chromium, and there is none")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("app") / "log"
    path = os.pathsep.join([str(Path(__file__).parents[1] / "src"), *sys.path])
    command = [sys.executable, "-m", "semcorr.app", "--port", str(port), "--device", "cpu"]
    with log.open("w") as out:
        server = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stdout=out, stderr=out)
    try:
        until = time.monotonic() + 120
        while "Open http" not in log.read_text():
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def page(url: str):
    """Fails at its end if the page asked another machine for something, or an error stood in the console."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        asked, wrong = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(url)
        page.wait_for_selector("#b img")
        yield page
        browser.close()
    assert any(one.startswith(url) for one in asked)
    assert not [one for one in asked if not one.startswith((url, "data:", f"blob:{url}"))]
    assert not wrong


def click(page, which: str, x: float, y: float) -> None:
    """At a share of a picture's sides."""
    box = page.locator(f"{which} img").bounding_box()
    page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])


def rows(page, count: int) -> list[dict[str, list[float]]]:
    """The table, when it has so many."""
    page.wait_for_function(f"document.querySelectorAll('#table tr[data-match]').length === {count}")
    each = page.locator("#table tr[data-match]").all()
    names = ("source", "match", "score")
    return [{name: [float(v) for v in row.get_attribute(f"data-{name}").split(",")] for name in names} for row in each]


@pytest.mark.slow
def test_a_click_on_the_left_shows_the_match_where_the_matcher_says(page):
    a, b = next(iter(pictures.examples().values()))
    matcher = Matcher.load(device="cpu")
    places = [(0.45, 0.4), (0.3, 0.6)]
    for count, place in enumerate(places, 1):
        click(page, "#a", *place)
        shown = rows(page, count)
    for place, row in zip(places, shown, strict=True):
        share = (np.array(row["source"]) + 0.5) / a.size
        assert np.abs(share - place).max() < 2 / 500  # a pixel or two of the screen
        found = matcher.match(a, b, [row["source"]])
        assert_close(torch.tensor([row["match"]]), found.points, atol=0.05, rtol=0)
        assert row["score"][0] == pytest.approx(float(found.scores[0]), abs=1e-3)

    page.get_by_role("button", name="Mirror right").click()
    mirrored = b._replace(image=b.image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    expected = matcher.match(a, mirrored, [row["source"] for row in shown]).points
    page.wait_for_function(f"!document.querySelector('#table').innerHTML.includes('{shown[0]['match'][0]}')")
    assert_close(torch.tensor([row["match"] for row in rows(page, 2)]), expected, atol=0.05, rtol=0)

    click(page, "#b", 0.5, 0.5)
    page.wait_for_selector("#pck b")
    assert len(re.findall(r"PCK@0\.(?:05|1|2)", page.locator("#pck").inner_text())) == 3
    with page.expect_download() as download:
        page.get_by_role("button", name="Save JSON").click()
    said = json.loads(Path(download.value.path()).read_text())
    assert said["target"]["mirrored"]
    assert [one["truth"] is None for one in said["matches"]] == [True, False]
    with page.expect_download() as download:
        page.get_by_role("button", name="Save PNG").click()
    with Image.open(download.value.path()) as image:
        assert image.format == "PNG"

    page.get_by_role("button", name="Undo").click()
    page.get_by_role("button", name="Undo").click()
    assert len(rows(page, 1)) == 1
    page.get_by_role("button", name="Clear").click()
    assert rows(page, 0) == []


@pytest.mark.slow
def test_bad_pictures_and_models_become_messages_and_change_nothing(page, tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    click(page, "#a", 0.45, 0.4)
    before = rows(page, 1)
    with page.expect_file_chooser() as chooser:
        page.get_by_text("Open left").click()
    chooser.value.set_files(tmp_path / "text.jpg")
    page.wait_for_selector("text=text.jpg is damaged or not an image")
    box = page.locator("#model input")
    box.fill("dinosaur")
    box.press("Enter")
    page.wait_for_selector("text=dinosaur is no backbone")
    assert rows(page, 1) == before
    page.wait_for_function("document.querySelector('#model input').value === 'efficientnet_lite0'")
