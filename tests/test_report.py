"""Finished runs to a page, Markdown, CSV and LaTeX: the same digits everywhere, and nothing that cannot be compared."""

import csv
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from statistics import mean, stdev

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from random_tables import batches, table
from typer.testing import CliRunner

from semcorr.evaluate import evaluate
from semcorr.metrics.pck import ALPHAS
from semcorr.metrics.scored import right, scored
from semcorr.metrics.uncertainty import intervals
from semcorr.metrics.views import pck_of
from semcorr.report.command import app
from semcorr.report.curves import along, curves
from semcorr.report.entries import entries
from semcorr.report.leaderboard import leaderboard
from semcorr.report.pictures import different
from semcorr.report.published import published, whole
from semcorr.report.runs import read
from semcorr.similarity_map import queries

SIZES = (40, 40)


def run_dir(root: Path, off: float = 0.0, sizes=SIZES, config: dict | None = None, **metrics) -> Path:
    """A run on made-up pairs, its predictions moved by `off` pixels; `config` and `metrics` replace what is usual."""
    root.mkdir(parents=True)
    rows = table([one | {"predicted": one["predicted"] + off} for one in batches(*sizes)])
    found = scored(rows)
    usual = {
        **pck_of(found), "pooling": "image", "protocol": "semcorr", "localise": "argmax", "split": "spair test",
        "strict": False, "pairs": len(found.pairs), "images": len(found.images), "trained_parameters": 0,
        "seconds": {"encode": 1.5, "match": 0.5}, "intervals": intervals(found, right(found, [0.1]), [0.1], 100),
        "left_right": {"confused": 0.25, "asked": 100}, "classes": {},
    }  # fmt: skip
    usual["headline"] = usual["pck"]["all"]["image"]
    (root / "metrics.json").write_text(json.dumps(usual | metrics))
    pq.write_table(
        rows.append_column("protocol", pa.array([(usual | metrics)["protocol"]] * len(rows))),
        root / "predictions.parquet",
    )
    cfg = {
        "data": {"_target_": "semcorr.data.spair.SPair", "root": "nowhere", "split": "test", "resize": "squash"},
        "backbone": {"_target_": "semcorr.backbones.tiny.Tiny", "size": 96}, "finetune": {"blocks": 0},
        "head": {"_target_": "semcorr.heads.cosine.Cosine"}, "localise": {"_target_": "a", "window": 15}, "seed": 1,
        "provenance": {"backbone": "tiny", "git": "0123456789", "weights_sha256": "ab" * 32},
        "protocol": {"_target_": "semcorr.protocol.preset", "name": "semcorr", "resize": "squash"},
    }  # fmt: skip
    OmegaConf.save(OmegaConf.merge(cfg, config or {}), root / "config.yaml")
    return root


def window(root: Path, size: int, off: float = 0.0, seed: int = 1) -> Path:
    return run_dir(root / f"w{size}_{seed}", off, config={"localise": {"window": size}, "seed": seed})


def typed(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, " ".join(result.output.split())


def made(*folders: Path):
    return entries(read(folders))


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


def test_numbers_are_those_of_metrics_json_and_seeds_are_aggregated(tmp_path):
    """Mean and sample deviation by hand; one seed has no spread."""
    runs = [window(tmp_path, 15, 9), window(tmp_path, 15, 12, seed=2), window(tmp_path, 5, 3)]
    values = [json.loads((run / "metrics.json").read_text())["pck"]["geo"]["image"]["0.1"] for run in runs]

    best, both = made(*runs)

    assert both.value("geo", "0.1").mean == pytest.approx(mean(values[:2]))
    assert both.value("geo", "0.1").spread == pytest.approx(stdev(values[:2]))
    assert best.value("geo", "0.1")[:2] == (values[2], None)
    assert (both.label, best.label) == ("tiny, window 15", "tiny, window 5")


def test_two_runs_of_one_seed_are_no_spread(tmp_path):
    runs = [window(tmp_path / "a", 5), window(tmp_path / "b", 5)]

    code, output = typed(*runs, "--out", tmp_path / "out")

    assert code == 2
    assert "same configuration with the same seed" in output


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


def test_a_curve_joins_configurations_that_differ_in_one_number(tmp_path):
    """Window 9 at another size is no point of the curve."""
    runs = [window(tmp_path, 5, 3), window(tmp_path, 15, 6)]
    odd = run_dir(tmp_path / "odd", 9, config={"localise": {"window": 9}, "backbone": {"size": 128}})

    found = along(made(*runs, odd), "localise.window")

    assert [list(curve.points) for curve in found] == [[5.0, 15.0]]
    assert along(made(*runs, odd), "backbone.size") == []


def test_a_curve_is_drawn_at_every_tolerance_and_where_its_axis_says(tmp_path):
    """Heights are read back with the help of the rules and their ticks alone."""
    runs = [window(tmp_path, 5, 3), window(tmp_path, 15, 6)]
    pck = [json.loads((run / "metrics.json").read_text())["pck"] for run in runs]

    left, right = curves(made(*runs)).parts[0].panels

    for panel, wanted in (
        (left, [[one["all"]["image"][f"{alpha:g}"] for one in pck] for alpha in ALPHAS]),
        (right, [[one[subset]["image"]["0.1"] for one in pck] for subset in ("all", "geo", "std")]),
    ):
        rules = [float(y) for y in re.findall(r'y1="([\d.]+)" x2="[\d.]+" y2="\1" class="rule"', panel)]
        ticks = [float(tick) for tick in re.findall(r'text-anchor="end">(\d+)<', panel)]
        scale = (ticks[-1] - ticks[0]) / (rules[-1] - rules[0]) / 100
        lines = [re.findall(r",([\d.]+)", line) for line in re.findall(r'<polyline points="([^"]+)"', panel)]
        assert len(rules) == len(ticks)
        assert [[(float(y) - rules[0]) * scale for y in line] for line in lines] == [
            pytest.approx(values, abs=0.002) for values in wanted
        ]
    assert left.count('class="whisker') == 2 * 3  # a stem and two ends
    assert right.count('class="whisker') == 2 * 3 * 3


def test_published_figures_stand_beside_ours_with_their_protocols(tmp_path):
    section = leaderboard(made(run_dir(tmp_path / "run")))
    tables = {part.key: part for part in section.parts}

    rows = {row[0]: row for row in tables["published_all"].rows}
    assert rows["GeoAware (S)"] == [
        "GeoAware (S)",
        "21.6",
        "72.6",
        "82.9",
        "geoaware ≠",
        "Telling Left from Right (CVPR 2024)",
    ]
    assert rows["SemAlign3D"][4] == "not stated"
    ours = [tables["published_all"].rows[i] for i in tables["published_all"].ours]
    assert [row[0] for row in ours] == ["tiny"]
    assert "80 of 12,234 pairs" in ours[0][-1]
    differ = {row[0]: row for row in tables["protocols"].rows}
    assert differ["geoaware"][tables["protocols"].columns.index("strict")] == "≠ yes"
    assert not any("≠" in cell for cell in differ["semcorr"])


def test_under_their_own_protocol_nothing_differs(tmp_path):
    run = run_dir(tmp_path / "run", protocol="geoaware", strict=True)

    rows = {row[0]: row for row in leaderboard(made(run)).parts[0].rows}

    assert rows["GeoAware (S)"][4] == "geoaware"
    assert rows["MARCO"][4] == "marco ≠"


def test_recall_over_categories_is_not_put_beside_pck_per_image():
    methods = {row.method for row in published("spair test", "all", "semcorr")}

    assert not any(name.startswith("DINOv3") for name in methods)
    assert {row.method for row in published("spair test", "all", "probe3d")} >= {"DINOv3 B/16"}
    assert published("pf_willow test", "all", "semcorr") == []
    assert whole("pf_willow test", 3) == ""


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"protocol": "dift"}, "differ in their protocol"),
        ({"split": "ap10k test"}, "differ in their benchmark"),
        ({"strict": True}, "differ in their comparison"),
        ({"pooling": "point"}, "differ in their pooling"),
    ],
)
def test_runs_that_cannot_be_compared_are_not_averaged(tmp_path, metrics, said):
    """Not even where everything but the protocol is the same and they would pass for seeds."""
    runs = run_dir(tmp_path / "a"), run_dir(tmp_path / "b", config={"seed": 2}, **metrics)

    code, output = typed(*runs, "--out", tmp_path / "out")

    assert code == 2
    assert said in output
    assert str(runs[1]) in output
    assert not (tmp_path / "out").exists()


def test_runs_on_other_pairs_are_refused(tmp_path):
    runs = run_dir(tmp_path / "a"), run_dir(tmp_path / "b", sizes=(40, 30))

    code, output = typed(*runs, "--out", tmp_path / "out")

    assert code == 2
    assert "scored 80 pairs" in output


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda run: shutil.rmtree(run), "is not a folder"),
        (lambda run: (run / "metrics.json").unlink(), "has not finished: no metrics.json"),
        (lambda run: (run / "predictions.parquet").unlink(), "has no predictions.parquet"),
        (lambda run: (run / "config.yaml").write_text("a: 1"), "is not of semcorr"),
        (lambda run: (run / "metrics.json").write_text('{"tracking": {"AJ": 0.5}}'), "holds no run on pairs"),
        (lambda run: (run / "metrics.json").write_text('{"protocol":"semcorr","localise":"argmax"}'), "has no `pck`"),
        (lambda run: (run / "metrics.csv").write_text("step,a\n0,b\n"), "is no table of numbers"),
        (lambda run: [file.unlink() for file in run.iterdir()], "holds no run"),
    ],
)  # fmt: skip
def test_a_run_that_is_none_is_named(tmp_path, spoil, said):
    good, bad = run_dir(tmp_path / "good"), run_dir(tmp_path / "bad", 3, config={"seed": 2})
    spoil(bad)

    code, output = typed(good, bad, "--out", tmp_path / "out")

    assert code == 2
    assert said in output
    assert str(bad) in output
    assert not (tmp_path / "out").exists()


def test_every_unfinished_run_of_a_sweep_is_named_at_once(tmp_path):
    for i in range(3):
        run = window(tmp_path / "sweep", 5, seed=i)
        if i:
            (run / "metrics.json").unlink()

    code, output = typed(tmp_path / "sweep", "--out", tmp_path / "out")

    assert code == 2
    assert output.count("has not finished") == 2


def test_a_run_given_twice_is_refused(tmp_path):
    run = run_dir(tmp_path / "a")

    assert "given twice" in typed(run, run, "--out", tmp_path / "out")[1]


def test_an_out_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")

    code, _ = typed(run_dir(tmp_path / "a"), "--out", tmp_path / "out")

    assert code == 2
    assert (tmp_path / "out").read_text() == "mine"


def test_where_the_benchmark_is_gone_the_report_says_what_it_leaves_out(tmp_path):
    code, output = typed(run_dir(tmp_path / "a"), "--out", tmp_path / "out")

    assert code == 0
    assert "Without confusion matrices and pictures" in output
    assert "They are left out" in (tmp_path / "out/report.md").read_text()


def test_labels_and_names_cannot_break_the_page(tmp_path):
    run = run_dir(tmp_path / "a", config={"provenance": {"backbone": "<b>&_|%"}})

    typed(run, "--out", tmp_path / "out")

    text = (tmp_path / "out/report.html").read_text()
    assert "<b>" not in text
    assert "&lt;b&gt;&amp;_|%" in text
    assert r"\textless{}b\textgreater{}\&\_\textbar{}\%" in (tmp_path / "out/report.tex").read_text()


def test_pictures_do_not_show_a_target_twice():
    rows = scored(table(batches(60)))
    order = rows.pair[::-1].copy()

    chosen = different(rows, order, 5)

    assert chosen[0] == order[0]
    assert len({rows.target_image[p] for p in chosen}) == len(chosen) == 5


def test_maps_are_of_the_farthest_ambiguous_and_the_nearest_other_keypoints():
    rows = scored(table(batches(60)))

    chosen = queries(rows)

    assert rows.error[chosen[0][0]] == rows.error[rows.ambiguous].max()
    assert rows.error[chosen[2][0]] <= rows.error[~rows.ambiguous].min() + 0.05
    assert [kind for _, kind in chosen] == ["far off", "far off", "found", "found"]
    assert len({rows.target_image[rows.pair[row]] for row, _ in chosen}) == 4


def test_what_evaluate_leaves_becomes_a_report_with_pictures(config, tiny, tmp_path):
    for name, rule in (("a", "argmax"), ("b", "soft_argmax")):
        evaluate(config("evaluate", *tiny, f"localise={rule}", f"run_dir={tmp_path / name}"))

    code, output = typed(tmp_path / "a", tmp_path / "b", "--out", tmp_path / "out")

    assert code == 0, output
    text = (tmp_path / "out/report.html").read_text()
    for title in ("The worst pairs", "What changes most", "Similarity maps", "What each keypoint is taken for"):
        assert f"<h3>{title}</h3>" in text
    assert text.count("data:image/jpeg;base64,") > 10
    assert "left out" not in text
