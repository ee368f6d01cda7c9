"""The whole page, driven in a browser."""

import base64
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from served_page import served_page, write_run
from torch.testing import assert_close

from semcorr import Matcher
from semcorr.app import render as pictures

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory):
    """The URL that was printed, and a folder of runs, which is empty at the start."""
    pytest.importorskip("gradio", reason="the page needs gradio: pip install semcorr[app]")
    pytest.importorskip("playwright", reason="the page is driven by playwright: pip install playwright")
    if BROWSER is None:
        pytest.skip("the page is driven in Chromium, and there is none")
    place = tmp_path_factory.mktemp("app")
    (place / "runs").mkdir()
    with served_page(place / "log", "--runs", str(place / "runs")) as url:
        yield url, place / "runs"


@pytest.fixture
def page(served: tuple[str, Path]):
    """Fails at its end if the page asked another machine for something, or an error stood in the console."""
    from playwright.sync_api import sync_playwright

    url = served[0].partition("/?")[0]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        requested, wrong = [], []
        page.on("request", lambda request: requested.append(request.url))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(served[0])
        page.wait_for_selector("#b img")
        yield page
        browser.close()
    assert any(one.startswith(url) for one in requested)
    assert not [one for one in requested if not one.startswith((url, "data:", f"blob:{url}"))]
    assert not wrong


def click(page, which: str, x: float, y: float) -> None:
    """At a share of a picture's sides; a picture wider than its place is displayed in the middle of it."""
    box = page.locator(f"{which} img").bounding_box()
    width, height = page.locator(f"{which} img").evaluate("e => [e.naturalWidth, e.naturalHeight]")
    scale = min(box["width"] / width, box["height"] / height)
    left, top = box["x"] + (box["width"] - scale * width) / 2, box["y"] + (box["height"] - scale * height) / 2
    page.mouse.click(left + x * scale * width, top + y * scale * height)


def choose(page, model: str) -> None:
    """From the list."""
    page.locator("#model input").click()
    page.get_by_role("option", name=model, exact=True).click()


def rows(page, count: int) -> list[dict[str, list[float]]]:
    """The table, when it has so many."""
    page.wait_for_function(f"document.querySelectorAll('#table tr[data-match]').length === {count}")
    each = page.locator("#table tr[data-match]").all()
    names = ("source", "match", "score")
    return [{name: [float(v) for v in row.get_attribute(f"data-{name}").split(",")] for name in names} for row in each]


@pytest.mark.slow
def test_a_click_on_the_left_shows_the_match_where_the_matcher_says(page):
    a, b = next(iter(pictures.draw_examples().values()))
    matcher = Matcher.load(device="cpu")
    places = [(0.45, 0.4), (0.3, 0.6)]
    for count, place in enumerate(places, 1):
        click(page, "#a", *place)
        displayed = rows(page, count)
    for place, row in zip(places, displayed, strict=True):
        share = (np.array(row["source"]) + 0.5) / a.size
        assert np.abs(share - place).max() < 2 / 500  # a pixel or two of the screen
        found = matcher.match(a, b, [row["source"]])
        assert_close(torch.tensor([row["match"]]), found.points, atol=0.05, rtol=0)
        assert row["score"][0] == pytest.approx(float(found.scores[0]), abs=1e-3)

    page.get_by_role("button", name="Mirror right").click()
    mirrored = b._replace(image=b.image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    expected = matcher.match(a, mirrored, [row["source"] for row in displayed]).points
    page.wait_for_function(f"!document.querySelector('#table').innerHTML.includes('{displayed[0]['match'][0]}')")
    assert_close(torch.tensor([row["match"] for row in rows(page, 2)]), expected, atol=0.05, rtol=0)

    click(page, "#b", 0.5, 0.5)
    page.wait_for_selector("#pck b")
    assert len(re.findall(r"PCK@0\.(?:05|1|2)", page.locator("#pck").inner_text())) == 3
    with page.expect_download() as download:
        page.get_by_role("button", name="Save JSON").click()
    saved = json.loads(Path(download.value.path()).read_text())
    assert saved["target"]["mirrored"]
    assert [one["truth"] is None for one in saved["matches"]] == [True, False]
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
def drop(page, which: str, *paths: Path) -> None:
    """Files from the desktop, on a picture."""
    given = [[path.name, base64.b64encode(path.read_bytes()).decode()] for path in paths]
    page.locator(f"{which} img").evaluate(
        """(picture, given) => {
            const dataTransfer = new DataTransfer();
            for (const [name, bytes] of given)
                dataTransfer.items.add(new File([Uint8Array.from(atob(bytes), c => c.charCodeAt(0))], name));
            for (const kind of ['dragover', 'drop'])
                picture.dispatchEvent(new DragEvent(kind, { bubbles: true, cancelable: true, dataTransfer }));
        }""",
        given,
    )


def test_a_picture_dropped_on_a_side_is_opened_there(page, tmp_path):
    path = tmp_path / "own.png"
    Image.new("RGB", (600, 200), "teal").save(path)
    displayed = {side: page.locator(f"{side} img").get_attribute("src") for side in ("#a", "#b")}

    drop(page, "#b", path)

    picture = "document.querySelector('#b img')"
    page.wait_for_function(f"{picture}.naturalWidth == 3 * {picture}.naturalHeight")
    assert page.locator("#a img").get_attribute("src") == displayed["#a"]
    assert page.locator("#b img").get_attribute("src") != displayed["#b"]


def test_two_dropped_pictures_are_refused_with_a_message(page, tmp_path):
    paths = [tmp_path / name for name in ("a.png", "b.png")]
    for path in paths:
        Image.new("RGB", (60, 20)).save(path)
    message: list[str] = []
    page.on("dialog", lambda dialog: (message.append(dialog.message), dialog.accept()))
    before = page.locator("#a img").get_attribute("src")

    drop(page, "#a", *paths)
    drop(page, "#a")  # a text, for instance

    assert message == ["Drop one picture at a time.", "Drop a picture file on the left or right picture."]
    assert page.locator("#a img").get_attribute("src") == before


@pytest.mark.parametrize("size", [(1280, 800), (390, 844)], ids=["desk", "phone"])
def test_pictures_are_of_one_height_and_the_tools_are_seen_without_scrolling(page, size):
    page.set_viewport_size({"width": size[0], "height": size[1]})

    left, right, tools = (page.locator(which).bounding_box() for which in ("#a img", "#b img", "#tools"))

    assert left["height"] == pytest.approx(right["height"], abs=1)
    assert tools["y"] + tools["height"] <= size[1]
    assert max(left["x"] + left["width"], right["x"] + right["width"]) <= size[0]


def test_bad_pictures_and_models_become_messages_and_change_nothing(page, served, tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    click(page, "#a", 0.45, 0.4)
    before = rows(page, 1)
    with page.expect_file_chooser() as chooser:
        page.get_by_text("Open left").click()
    chooser.value.set_files(tmp_path / "text.jpg")
    page.wait_for_selector("text=text.jpg is damaged or not an image: it seems to be a text")
    run = write_run(served[1] / "gone", "backbone=tiny")
    page.reload()
    page.wait_for_selector("#b img")
    (run / "config.yaml").unlink()
    click(page, "#a", 0.45, 0.4)
    before = rows(page, 1)
    choose(page, "run: gone")
    page.wait_for_selector("text=The model is not in the list (any more).")
    assert rows(page, 1) == before
    page.wait_for_function("document.querySelector('#model input').value === 'efficientnet_lite0'")


@pytest.mark.slow
def test_a_run_that_was_made_meanwhile_is_chosen_from_the_list_and_its_matches_are_shown(page, served):
    run = write_run(served[1] / "mine", "backbone=tiny", "localise=argmax")
    page.reload()
    page.wait_for_selector("#b img")
    choose(page, "run: mine")
    page.wait_for_function("document.querySelector('#hint').innerText === 'Click a point in the left picture.'")
    click(page, "#a", 0.45, 0.4)
    page.wait_for_selector("text=read by argmax")
    (displayed,) = rows(page, 1)
    a, b = next(iter(pictures.draw_examples().values()))
    found = Matcher.load(run, device="cpu").match(a, b, [displayed["source"]])
    assert_close(torch.tensor([displayed["match"]]), found.points, atol=0.05, rtol=0)


@pytest.mark.slow
def test_a_large_picture_is_reduced_and_its_points_are_in_its_own_pixels(page, tmp_path):
    Image.effect_noise((6000, 3000), 60).convert("RGB").save(tmp_path / "<i>large.jpg")
    with page.expect_file_chooser() as chooser:
        page.get_by_text("Open left").click()
    chooser.value.set_files(tmp_path / "<i>large.jpg")
    page.wait_for_selector("text=The left picture is kept reduced; points are in its own 6000 x 3000 pixels.")
    click(page, "#a", 0.75, 0.5)
    (displayed,) = rows(page, 1)
    assert displayed["source"] == pytest.approx([4500, 1500], abs=30)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save JSON").click()
    saved = json.loads(Path(download.value.path()).read_text())
    assert saved["source"]["size"] == [6000, 3000]
    assert saved["matches"][0]["source"] == pytest.approx(displayed["source"], abs=0.01)
