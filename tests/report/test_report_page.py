"""The page, Markdown, CSV and LaTeX show the same digits, whatever the order of the runs, and nothing breaks them."""

import csv
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from tiny_runs import run_dir, typed, window

pytestmark = pytest.mark.integration


class Cells(HTMLParser):
    """The tables of a page: key to rows of cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.cell = self.key = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self.key = dict(attrs)["data-key"]
            self.tables[self.key] = []
        elif tag == "tr":
            self.tables[self.key].append([])
        elif tag in ("td", "th"):
            self.tables[self.key][-1].append("")
            self.cell = tag

    def handle_endtag(self, tag):
        if tag == self.cell:
            self.cell = None

    def handle_data(self, data):
        if self.cell:
            self.tables[self.key][-1][-1] += data


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A report of three windows, one of them with two seeds."""
    root = tmp_path_factory.mktemp("report")
    runs = [window(root, 5, 3), window(root, 9, 6), window(root, 15, 9), window(root, 15, 12, seed=2)]
    code, output = typed(*runs, "--out", root / "out")
    assert code == 0, output
    assert "4 runs, 3 configurations" in output
    return root / "out"


def test_page_markdown_and_csv_hold_the_same_cells(out):
    page = Cells((out / "report.html").read_text()).tables
    markdown = [
        [cell.strip() for cell in line.strip("| \n").split(" | ")]
        for line in (out / "report.md").read_text().splitlines()
        if line.startswith("| ") and "---" not in line
    ]
    with (out / "report.csv").open(newline="") as file:
        long = list(csv.DictReader(file))

    assert [row for rows in page.values() for row in rows] == markdown
    assert {row["table"] for row in long} <= set(page)
    for row in long:
        head, *body = page[row["table"]]
        assert body[int(row["row"]) - 1][head.index(row["column"])] == row["value"]
    numbers = sum(bool(re.match(r"\d+\.\d", cell)) for rows in page.values() for row in rows[1:] for cell in row)
    assert numbers > 100
    assert sum(bool(re.match(r"\d+\.\d", row["value"])) for row in long) == numbers


def test_latex_holds_the_digits_of_the_page(out):
    text = (out / "report.tex").read_text()

    for rows in Cells((out / "report.html").read_text()).tables.values():
        for row in rows[1:]:
            digits = [cell for cell in row if re.fullmatch(r"\d+\.\d", cell)]
            assert re.search(".*?& ".join(map(re.escape, digits)), text)
    assert "?" not in text


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here: apt install texlive-latex-recommended")
def test_latex_compiles(out, tmp_path):
    shutil.copy(out / "report.tex", tmp_path)

    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "report.tex"], cwd=tmp_path, capture_output=True,
        text=True, errors="replace",
    )  # fmt: skip

    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "report.pdf").stat().st_size > 10_000


def test_the_page_asks_for_nothing_and_runs_nothing(out):
    text = (out / "report.html").read_text()

    assert not re.findall(r"<script|@import|url\(|srcset|<iframe|<object", text)
    addresses = re.findall(r'\b(?:src|href)="([^"]*)"', text)
    assert addresses
    assert all(address.startswith(("#", "data:")) for address in addresses)
    names = set(re.findall(r'id="([^"]*)"', text))
    assert {address[1:] for address in addresses if address.startswith("#")} <= names


def test_every_figure_says_what_it_shows(out):
    figures = re.findall(r"<figure>.*?</figure>", (out / "report.html").read_text(), re.S)

    assert len(figures) >= 8
    for figure in figures:
        assert len(re.search(r"<figcaption>(.*?)</figcaption>", figure, re.S)[1]) > 80


def test_a_report_does_not_depend_on_the_order_of_the_runs(tmp_path):
    runs = [window(tmp_path, 5, 3), window(tmp_path, 9, 6), window(tmp_path, 9, 9, seed=2)]

    for name, order in (("a", runs), ("b", runs[::-1])):
        assert typed(*order, "--out", tmp_path / name)[0] == 0

    for kind in ("html", "md", "csv", "tex"):
        assert (tmp_path / f"a/report.{kind}").read_text() == (tmp_path / f"b/report.{kind}").read_text()


def test_without_seconds_a_slower_machine_makes_the_same_report(tmp_path):
    for name, took in (("a", 1.0), ("b", 99.0)):
        run_dir(tmp_path / name / "run", seconds={"encode": took, "match": took})
        run_dir(tmp_path / name / "other", 9, config={"seed": 2, "localise": {"window": 5}}, seconds={"encode": took})
        assert typed(tmp_path / name, "--out", tmp_path / f"{name}_out", "--no-seconds")[0] == 0

    texts = [(tmp_path / f"{name}_out/report.csv").read_text() for name in "ab"]
    assert texts[0] == texts[1]


def test_where_the_benchmark_is_gone_the_report_says_what_it_leaves_out(tmp_path):
    code, output = typed(run_dir(tmp_path / "a"), "--out", tmp_path / "out")

    assert code == 0
    assert "Without confusion matrices and pictures" in output
    assert "not at nowhere" in output
    text = (tmp_path / "out/report.md").read_text()
    assert "They are left out" in text
    assert "nowhere" not in text  # a page is the same wherever the files lay


def test_labels_and_names_cannot_break_the_page(tmp_path):
    run = run_dir(tmp_path / "a", config={"provenance": {"backbone": "<b>&_|%"}})

    typed(run, "--out", tmp_path / "out")

    text = (tmp_path / "out/report.html").read_text()
    assert "<b>" not in text
    assert "&lt;b&gt;&amp;_|%" in text
    assert r"\textless{}b\textgreater{}\&\_\textbar{}\%" in (tmp_path / "out/report.tex").read_text()
