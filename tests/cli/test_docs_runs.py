"""The blocks of the pages run, in the order of a page and in an empty folder, and print what the page shows."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from pages import PAGES, blocks, name_of, prose, split_block
from partly_labelled import coco, write
from PIL import Image
from repository import ROOT

from semcorr.data.synthetic import write_synthetic

pytestmark = pytest.mark.integration

RUN = {  # pages whose blocks are run, and a pattern of the lines that cannot be
    "README.md": r"^(?!python -m semcorr\.(match|transfer) )",  # examples of what other pages run
    "docs/quickstart.md": r"^(make|pip) |semcorr\.prepare|dinov2",  # installs, downloads, needs weights by name
    "docs/metrics.md": r"dinov2|RUN_A",
    "docs/evaluating.md": r"semcorr\.prepare|dinov2",
    "docs/report.md": r"runs/windows",  # a sweep over weights by name
    "docs/matching.md": r"dinov2",
    "docs/transfer.md": r"dinov2|keypoints\.json|annotations\.xml|scripts",  # files of other tools: test_tool_files.py
    "docs/video.md": r"davis|video\.mp4|scripts",  # a file to be decoded: tests/data/test_video.py
    "docs/pose.md": r"dinov2|predict_poses\.py$",
}
NOT_RUN = {  # the other pages with such blocks, and why
    "CONTRIBUTING.md": "the suite itself",
    "docs/adding/backbone.md": "test_adding.py runs it",
    "docs/adding/benchmark.md": "test_adding.py runs it",
    "docs/adding/head.md": "test_adding.py runs it",
    "docs/adding/your_package.md": "test_own_package.py runs it",
    "docs/app.md": "it runs until it is stopped: tests/app",
    "docs/backbones.md": "weights by name",
    "docs/data.md": "downloads",
    "docs/domains.md": "minutes of drawing: tests/report/test_report_domains.py runs a small one",
    "docs/finetuning.md": "AnimalPose, hours; exports: tests/engine/test_export.py",
    "docs/heads.md": "weights by name, hours",
    "docs/losses.md": "weights by name",
    "docs/own_data.md": "weights by name; the quickstart runs a table of pairs",
    "docs/performance.md": "times of one machine",
    "docs/protocols.md": "weights by name",
    "docs/robustness.md": "71 jobs, weights by name: test_corrupted_runs.py, test_report_robustness.py",
    "docs/reproduce.md": "benchmarks, weights by name, a GPU",
    "docs/sharing.md": "a hub: tests/engine/test_shared_run.py",
    "docs/sweeps.md": "weights by name: test_sweep.py, test_search.py",
    "examples/my_backbone/README.md": "test_own_package.py runs it",
}
BY_ITSELF = ["README.md", "docs/evaluating.md", "docs/matching.md", "docs/transfer.md", "docs/video.md"]
Story = Callable[..., dict[str, str]]


def furnish(folder: Path, pages: tuple[str, ...]) -> None:
    """Put into a folder what the pages take for granted: pictures, some of them annotated, frames, a table of pairs."""
    drawn = write_synthetic(folder / "drawn", images={"trn": 0, "val": 0, "test": 5}, categories=["cat"])
    pictures = sorted((drawn / "JPEGImages/cat").glob("*.jpg"))
    shutil.copytree(drawn / "JPEGImages", folder / "images")
    write(folder, coco(drawn))
    for name, picture in zip(("a.jpg", "b.jpg"), pictures, strict=False):
        shutil.copy(picture, folder / name)
    (folder / "frames").mkdir()
    for i, picture in enumerate(pictures[:3]):
        Image.open(picture).save(folder / f"frames/{i:05}.png")
    for table in (text for page in pages for text in blocks(ROOT / page, "csv")):
        (folder / "DIR/cups").mkdir(parents=True)
        (folder / "DIR/pairs.csv").write_text(table)
        for name, picture in zip(("1.jpg", "2.jpg"), pictures, strict=False):
            shutil.copy(picture, folder / "DIR/cups" / name)


@pytest.fixture
def story(tmp_path: Path) -> Story:
    """story("docs/pose.md") runs its lines for a shell, then its Python as one program; what each printed."""

    def tell(*pages: str) -> dict[str, str]:
        furnish(tmp_path, pages)
        printed = {}
        for page in pages:
            lines = [words for text in blocks(ROOT / page, "sh") for words in split_block(text)]
            for words in lines:
                if not re.search(RUN[page], " ".join(words)):
                    printed[" ".join(words)] = run(words[1:])
            if program := "\n".join(blocks(ROOT / page, "python")):
                printed[program] = run(("-c", program))
        return printed

    def run(words: Sequence[str]) -> str:
        words = [str(ROOT / word) if word.startswith("scripts/") else word for word in words]
        environment = {**os.environ, "COLUMNS": "200", "PYTHONPATH": str(ROOT / "src")}
        environment.pop("SEMCORR_DATA", None)
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    return tell


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"(?<![\w.])[+-]?\d+(?:\.\d+)?", text.replace(",", ""))]


def read_page_row(page: str, start: str) -> list[float]:
    """The numbers of the row of a page that begins with a text."""
    (row,) = re.findall(rf"^\| {re.escape(start)}(.*)$", (ROOT / page).read_text(), re.MULTILINE)
    return numbers(row)


def read_row(output: str, *cells: str) -> list[float]:
    """The numbers of the first row of a printed table that begins with these cells."""
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in output.splitlines() if "│" in line]
    return next(numbers(" ".join(row[len(cells) :])) for row in rows if row[: len(cells)] == [*cells])


def near(values: list[float]) -> object:
    """A tenth may be printed otherwise where a product is rounded otherwise."""
    return pytest.approx(values, abs=0.15)


def test_every_page_with_blocks_is_run_or_says_why_not():
    pages = {name_of(page) for page in PAGES if blocks(page, "sh") or blocks(page, "python")}

    assert pages == {*RUN, *NOT_RUN}
    assert not {*RUN} & {*NOT_RUN}


@pytest.mark.slow
def test_the_quickstart_prints_what_it_shows(story):
    page = "docs/quickstart.md"
    printed = story(page, "docs/metrics.md")

    first = next(text for line, text in printed.items() if line.endswith("run_dir=runs/first"))
    for subset in ("all", "geo", "std"):
        assert read_row(first, "per image", subset) == near(read_page_row(page, f"per image, {subset}"))
    tuned = next(text for line, text in printed.items() if "experiment=demo" in line)
    (after,) = re.findall(r"from 25\.1 to ([\d.]+)", (ROOT / page).read_text())
    assert read_row(tuned, "per image", "all")[2] == pytest.approx(float(after), abs=0.15)


@pytest.mark.slow
def test_comparing_prints_what_it_shows(story):
    page = "docs/report.md"
    (table,) = (text for line, text in story(page).items() if "semcorr.compare" in line)

    for subset in ("all", "geo", "std"):
        assert read_row(table, "per image", subset, "0.1") == near(read_page_row(page, f"per image, {subset}"))


@pytest.mark.slow
def test_alignment_of_poses_prints_what_it_shows(story):
    page = "docs/pose.md"
    printed = story(page)
    (gain,) = (text for line, text in printed.items() if "measure_pose_gain" in line)
    (poses,) = (text for line, text in printed.items() if "predict_poses" in line)

    for kind, start in (("mirror", "azimuths mirrored"), ("same", "same azimuth"), ("other", "others")):
        pairs, plain, _, _, adaptive, _, mirrored = read_row(gain, kind)
        assert [pairs, plain, adaptive, mirrored] == near(read_page_row(page, f"synthetic, {start}"))
    (sentence,) = re.findall(
        r"templates from three training images per pose: .*?front or\s+back", prose(ROOT / page), re.S
    )
    accuracies = [read_row(poses, among)[1] for among in ("all four", "left or right", "front or back")]
    assert accuracies == near([float(number) for number in re.findall(r"([\d.]+)%", sentence)])


@pytest.mark.slow
@pytest.mark.parametrize("page", BY_ITSELF)
def test_the_blocks_of_a_page_run(story, page):
    assert story(page)
