"""Names from run directories stay text: in Markdown, CSV, LaTeX, on the page and on the terminal of every verb."""

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console
from rich.table import Table as Printed
from tiny_runs import run_dir, typed

from semcorr import audit, compare
from semcorr.core.terminal import Terminal, escape_controls
from semcorr.data.download.verify import DIFFERS, VerificationCheck, VerificationReport
from semcorr.evaluation.results import print_protocols, print_scores
from semcorr.metrics.predictions import load_predictions
from semcorr.report.document import NONE, ReportSection, ReportTable
from semcorr.report.writers import (
    escape_latex,
    escape_spreadsheet_cell,
    render_csv,
    render_html,
    render_latex,
    render_markdown,
)
from semcorr.store import FeatureStore
from semcorr.store.__main__ import main as store_main

ATTACKS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "![x](http://evil.example/track.png)",
    "<javascript:alert(1)>",
    "`<b>` and ``<i>`` and ```",
    "`a``<script>alert(1)</script>`",
    "a | b || c",
    "two\n\n<script>lines</script>\n# heading",
    "&lt;script&gt; &#x3C;",
    "\\[x](javascript:alert(1))",
    "\\`<u>\\`",
    "**bold** _em_ ~~gone~~ $x$",
    "[x]: javascript:alert(1)",
    "\x1b[31mred\x1b[0m\x07\r\x9b2J\u202egnp",
]
ALLOWED = {"h1", "h2", "h3", "p", "table", "thead", "tbody", "tr", "th", "td", "code"}


def report_of(name: str) -> tuple[str, list[str], list[ReportSection]]:
    """A report with the name wherever there is text."""
    table = ReportTable("numbers", name, name, ["configuration", name], [[name, "50.0"], ["plain", "49.0"]])
    return name, [f"A split `{name}`, and {name}."], [ReportSection(name, name, [table])]


def flat(tokens: list[Token]) -> list[Token]:
    return [token for each in tokens for token in (each, *flat(each.children or []))]


def displayed_text(text: str) -> str:
    """What a reader is to see of a name, blanks aside."""
    return "".join(escape_controls(text).replace("`", "").split())


# -- files --


@pytest.mark.parametrize("name", ATTACKS)
def test_markdown_shows_a_name_as_it_is_and_makes_nothing_of_it(name):
    tokens = flat(
        MarkdownIt("commonmark", {"html": True})
        .enable(["table", "strikethrough"])
        .parse(render_markdown(*report_of(name)))
    )

    kinds = {token.type for token in tokens}
    assert not kinds & {
        "html_block",
        "html_inline",
        "link_open",
        "image",
        "fence",
        "code_block",
        "s_open",
        "strong_open",
    }
    assert {token.tag for token in tokens if token.nesting == 1} <= ALLOWED - {"em"}
    cells = [[]]
    for i, token in enumerate(tokens):
        if token.type == "tr_open":
            cells.append([])
        elif token.type in ("th_open", "td_open"):
            inside = flat([tokens[i + 1]])
            cells[-1].append(
                "".join(each.content for each in inside if each.type in ("text", "text_special", "code_inline"))
            )
    assert [["".join(cell.replace("`", "").split()) for cell in row] for row in cells[1:]] == [
        ["configuration", displayed_text(name)], [displayed_text(name), "50.0"], ["plain", "49.0"],
    ]  # fmt: skip


def test_plain_code_stays_code_in_markdown():
    assert render_markdown("a", ["The split `spair test` of last_blocks."], []) == (
        "# a\n\nThe split `spair test` of last_blocks.\n"
    )


FORMULAS = [
    "=1+1",
    "=cmd|' /C calc'!A0",
    "+1+cmd|x",
    "-2+3+cmd|x",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    " =1",
    "\uff1d1",
]
NUMBERS = ["50.0", "-1.5", "+1.5", "-1.5 ± 0.2", "-1.5 to 3.4", "1,234", "-1e-05", NONE, ""]


def test_no_cell_of_the_csv_is_a_formula_and_numbers_stay_numbers():
    rows = [[text, "50.0", text] for text in [*FORMULAS, *NUMBERS]]
    table = ReportTable("numbers", "", "", ["=A1", "value", "@other"], rows)
    read = [*csv.reader(io.StringIO(render_csv([ReportSection("", "", [table])])))]

    for row in read:
        for cell in row:
            assert not cell.lstrip().startswith(("=", "+", "-", "@", "\uff1d")) or cell in NUMBERS
            assert cell.isprintable()
    assert [row[4] for row in read[1:]][1::2] == [*(f"'{escape_controls(text)}" for text in FORMULAS), *NUMBERS]
    assert escape_spreadsheet_cell("-1.5") == "-1.5"


LATEX = {
    r"\input{/etc/passwd}": r"\textbackslash{}input\{/etc/passwd\}",
    r"\write18{rm -r x}": r"\textbackslash{}write18\{rm -r x\}",
    "50 % & $x$ #1 a_b ~ ^": r"50 \% \& \$x\$ \#1 a\_b \textasciitilde{} \textasciicircum{}",
    "[1cm] *": "{[}1cm{]} {*}",
    "^^5cinput": r"\textasciicircum{}\textasciicircum{}5cinput",
    "a\n\n\\end{document}": r"a\textbackslash{}n\textbackslash{}n\textbackslash{}end\{document\}",
    "\x00\x1b": r"\textbackslash{}x00\textbackslash{}x1b",
}


@pytest.mark.parametrize("name", LATEX)
def test_latex_takes_no_name_for_a_command(name):
    title, _, sections = report_of(name)
    assert escape_latex(name) == LATEX[name]
    text = render_latex(title, sections)
    assert text.count(LATEX[name]) == 6
    assert text.count(r"\end{document}") == 1


class Tags(HTMLParser):
    """Elements with their attributes, and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [str(value) for key, value in attrs if key in ("href", "src") or key.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("name", ATTACKS)
def test_the_page_makes_nothing_of_a_name(name):
    page_of = Tags(render_html(*report_of(name)))
    assert not {"script", "img", "b", "i", "u", "a"} & {*page_of.tags} - {"a"}
    assert all(link.startswith(("#", "data:")) for link in page_of.links)


def test_a_report_of_hostile_run_directories_holds_their_names_as_text(tmp_path):
    split = "spair <script>alert(1)</script> [x](javascript:alert(1)) \x1b[2J | [red]"
    run = run_dir(tmp_path / "run", split=split, config={"provenance": {"backbone": "=cmd|'x'!A0 <b>bold</b>"}})
    code, output = typed(run, "--out", tmp_path / "out")

    assert code == 0, output
    assert "\x1b" not in output
    out = tmp_path / "out"
    tokens = flat(MarkdownIt("commonmark").enable("table").parse((out / "report.md").read_text()))
    assert not {"html_block", "html_inline", "link_open"} & {token.type for token in tokens}
    assert "script" not in Tags((out / "report.html").read_text()).tags
    with (out / "report.csv").open(newline="") as file:
        rows = [*csv.reader(file)]
    assert any(cell.startswith("'=cmd") for row in rows for cell in row)
    assert not any(cell.startswith(("=", "@")) for row in rows for cell in row)
    assert not any("\x1b" in path.read_text() for path in out.iterdir())


# -- the terminal --

NAME = "[red]cat[/red] [link=http://evil.example]x[/link] :smile: \x1b]8;;http://evil.example\x07\x1b[2J\r\x9b2K\u202e"
PRINTED = (
    r"[red]cat[/red] [link=http://evil.example]x[/link] :smile: \x1b]8;;http://evil.example\x07\x1b[2J\r\x9b2K\u202e"
)
SCORES = {subset: {by: {"0.1": 0.5} for by in ("image", "point")} for subset in ("all", "geo", "std")}
METRICS = {"pck": SCORES, "pairs": 3, "localise": NAME, "intervals": {s: {"image": {"0.1": None}} for s in SCORES}}


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "500")


def test_a_terminal_takes_every_string_for_text(capfd):
    table = Printed(title=NAME, caption=NAME)
    table.add_column(NAME)
    table.add_row(NAME)
    Terminal().print(table)
    Terminal().print(NAME, soft_wrap=True)
    out = capfd.readouterr().out
    assert out.count(PRINTED) == 5
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", out)


def times_printed(out: str) -> int:
    """How often the name stands there; titles are broken into lines."""
    return "".join(out.split()).count("".join(PRINTED.split()))


def test_every_verb_prints_the_names_it_has_from_files_as_text(tmp_path, capfd, monkeypatch):
    runs = [run_dir(tmp_path / name, localise=NAME) for name in "ab"]
    rows = load_predictions(pq.read_table(runs[0] / "predictions.parquet"))
    both = [compare.EvaluatedRun(NAME, {"localise": NAME, "protocol": NAME}, rows)] * 2
    compare.print_comparison([], (both[0], both[1]), {})
    assert times_printed(capfd.readouterr().out) == 6

    found = {"start": {"headline": {"0.1": 0.5}, "localise": NAME}, "split": NAME, "backbone": NAME}
    message = {"most": NAME, "steps": [{"axis": NAME, "to": NAME, "headline": {"0.1": 0.5}, "moved": {"0.1": 0}}]}
    walked = {NAME: message | {"moved": {"0.1": 0.0}}}
    audit.print_steps(found | {"protocols": walked, "elsewhere": {NAME: NAME}})
    assert times_printed(capfd.readouterr().out) == 9

    print_scores(METRICS, NAME)
    print_protocols({NAME: {NAME: {"headline": {"0.1": 0.5}, "pooling": NAME}}}, 3)
    assert times_printed(capfd.readouterr().out) == 5

    Terminal().print(VerificationReport(NAME, NAME, (VerificationCheck(NAME, NAME, 3, 4, DIFFERS, (NAME,)),)).table())
    assert times_printed(capfd.readouterr().out) == 5

    FeatureStore(tmp_path / "store", {"backbone": NAME, "depth": NAME})
    assert store_main(["ls", "--root", str(tmp_path / "store")]) == 0
    assert times_printed(capfd.readouterr().out) == 2


def test_an_error_quotes_names_without_their_control_characters(tmp_path, capfd, monkeypatch):
    runs = [run_dir(tmp_path / name, protocol=name * 3 + "\x1b[2J") for name in "ab"]
    code = compare.main([*map(str, runs)])
    output = capfd.readouterr().err
    assert code == 2
    assert r"aaa\x1b[2J" in output
    assert "\x1b" not in output


def test_only_the_terminal_of_ours_prints_what_may_be_foreign():
    """A plain Console takes [red] for markup: it is left to progress bars and status lines."""
    root = Path(compare.__file__).parent
    plain = [path.name for path in sorted(root.rglob("*.py")) if "Console().print" in path.read_text()]
    assert plain == []
    assert issubclass(Terminal, Console)
    assert json.loads(json.dumps(PRINTED)) == escape_controls(NAME)
