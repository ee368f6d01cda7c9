"""Every published figure that the repository states is in the cell of the paper that it claims."""

import doctest
import sys

import pytest
from repository import ROOT

sys.path.append(str(ROOT / "scripts"))
import check_published
from check_published import check_json, check_page, check_repository, check_text, main
from published_claims import GEO, geo_figures, line
from published_tables import LITERATURE, UNIFIED_HEADERS, read_captioned_tables, read_unified_tables

PAPERS = ROOT.parent / "shared" / "papers"

PAPER = """\
Words. Table 3. **Of nothing.**

Table 3. **Two benchmarks.** Words.

Method	SPair-71k			AP-10K-I.S.
	0.01	0.05	0.10	0.01	0.05	0.10
U	DIFT [39]	1.1	2.2	3.3	-	-	-
	Ours[†]	<u>4.4</u>	5.5	6.6	7.7	8.8	9.9

Words.
"""
TEXT = """\
# Table 3: PCK per image at 0.01 / 0.05 / 0.1, as published:
#   dift      1.1 / 2.2 / 3.3
#   ours      4.4 / 5.5 / 6.6   7.7 / 8.8 / 9.9
"""
CLAIMS = [
    line("dift", geo_figures("3", "DIFT")),
    line("ours", geo_figures("3", "Ours"), geo_figures("3", "Ours", "AP-10K-I.S.")),
]


def find_wrong(text: str = TEXT, paper: str = PAPER) -> list[tuple[str, str | None]]:
    """The places and figures that are wrong."""
    papers = {GEO: read_captioned_tables(paper)}
    return [(check.place, check.stated) for check in check_text("a", text, CLAIMS, papers) if check.problem]


@pytest.mark.skipif(not PAPERS.is_dir(), reason="the papers' texts are not there")
def test_every_published_figure_is_in_the_cell_it_claims(monkeypatch, capsys):
    checks, uncompared = check_repository(ROOT, PAPERS)
    assert [check for check in checks if check.problem] == []
    assert len(checks) > 1000
    assert uncompared.total() < 80

    monkeypatch.setattr(sys, "argv", ["check_published.py", str(PAPERS)])
    with pytest.raises(SystemExit, match=r"^0$"):
        main()
    assert f"{len(checks):,}" in capsys.readouterr().out


def test_correct_figures_are_accepted():
    assert find_wrong() == []
    assert doctest.testmod(check_published) == (0, 1)


@pytest.mark.parametrize("figure", ["1.1", "2.2", "3.3", "4.4", "5.5", "6.6", "7.7", "8.8", "9.9"])
def test_a_changed_digit_is_found_on_either_side(figure):
    place = "a, dift" if figure < "4" else "a, ours"
    changed = figure[0] + ".0"
    assert find_wrong(TEXT.replace(figure, changed)) == [(place, changed)]
    assert find_wrong(paper=PAPER.replace(figure, changed)) == [(place, figure)]


def test_swapped_rows_are_found_on_either_side():
    def swap(text, a, b):
        return text.replace(a, "?").replace(b, a).replace("?", b)

    assert len(find_wrong(swap(TEXT, "1.1 / 2.2 / 3.3", "4.4 / 5.5 / 6.6"))) == 6
    assert len(find_wrong(paper=swap(PAPER, "DIFT", "Ours"))) == 9


def test_a_missing_row_is_found_on_either_side():
    without = "".join(each for each in TEXT.splitlines(True) if "dift" not in each)
    assert find_wrong(without) == [("a, dift", None)] * 3
    without = "".join(each for each in PAPER.splitlines(True) if "DIFT" not in each)
    assert find_wrong(paper=without) == [("a, dift", "1.1"), ("a, dift", "2.2"), ("a, dift", "3.3")]


def test_a_figure_that_claims_nothing_and_another_threshold_are_found():
    assert find_wrong(TEXT + "#   theirs 5.5") == [("a, theirs", "5.5")]
    assert find_wrong(TEXT.replace("9.9", "9.9, 10.1")) == [("a, ours", "10.1")]
    assert len(find_wrong(TEXT.replace(" / 3.3", ""))) == 2
    assert len(find_wrong(TEXT.replace("0.01 / 0.05 / 0.1", "0.05 / 0.1 / 0.15"))) == 3


def test_a_row_without_its_columns_or_with_a_twin_is_refused():
    with pytest.raises(ValueError, match="5 figures, its header 6"):
        find_wrong(paper=PAPER.replace("	9.9", ""))
    with pytest.raises(ValueError, match="two rows Ours"):
        find_wrong(paper=PAPER.replace("DIFT", "Ours"))


def test_the_columns_of_a_page_are_compared():
    papers = {GEO: read_captioned_tables(PAPER)}
    page = "PCK@0.1\n\n| table | published |\n|---|---|\n| 3 | ours 6.6 |\n\n| other | 1.2 |\n"
    claims = {"3": line("ours", geo_figures("3", "Ours", alphas=("0.1",)))}

    assert [check.problem for check in check_page(page, papers, claims)] == [None]
    assert len([1 for check in check_page(page.replace("6.6", "6.7"), papers, claims) if check.problem]) == 1
    assert [check.stated for check in check_page(page.replace("| 3 |", "| 4 |"), papers, claims)] == ["6.6", None]


def test_rows_of_the_report_are_compared_or_counted():
    where = {"preprint 3": "DIFT"}
    rows = [
        {"method": "DIFT", "values": [1.1, 2.2, 3.0], "source": GEO, "printed": where},
        {"method": "Unheard-of", "values": [1.1, 2.2, 3.3], "source": GEO, "printed": {"preprint 3": "Unheard-of"}},
        {"method": "Nowhere", "values": [1.1, None, 3.3], "source": "a blog"},
        {"method": "MARCO", "values": [1.1, 2.2, 3.3], "source": "MARCO README"},
        {"method": "Ours", "values": [4.4, None, 6.6], "source": GEO, "printed": {"preprint 3": "Ours"}},
    ]
    table = {"split": "spair test", "subset": "all", "alphas": ["0.01", "0.05", "0.1"], "rows": rows}
    checks, uncompared = check_json({"tables": [table]}, {GEO: read_captioned_tables(PAPER)})
    wrong = [check for check in checks if check.problem]

    assert [check.stated for check in checks if not check.problem] == ["1.1", "2.2", "4.4", "6.6"]
    assert [check.stated for check in wrong[:7]] == ["3.0", *["1.1", "2.2", "3.3"], "1.1", "3.3", None]
    assert "has no figure, but" in wrong[6].problem
    assert [check.problem.partition("column=")[2] for check in wrong[7:]] == [
        f"'AP-10K-I.S. {alpha}')" for alpha in ("0.01", "0.05", "0.1")
    ]
    assert dict(uncompared) == {"MARCO README": 3}


def test_tables_without_captions_are_recognised_by_their_order():
    """Sizes that the text lost are those of the block; a table that is not there shifts no other."""
    rows = {
        "VIII": "DINOv2 | - | 840, 60 | {} | \u2013 | |\nDINOv2 | ✓ | - | 840, 60 | {} | \u2013 |",
        "IX": "DINOv2 | - | {} | \u2013 | |\nDINOv2 | CATs | 448, 32 | {} | -3.4 | |",
        "A1": "DINOv2 | - | {} | \u2013 | | |\nDINOv2 | - | {} | \u2013 | | |",
    }
    blocks = []
    for number, header in UNIFIED_HEADERS.items():
        benchmarks = [each for each in header.split(", ") if each in ("SPair-71k", "PF-PASCAL", "PF-WILLOW", "AP-10K")]
        has_gain = number in ("VIII", "IX", "A1", "A2")
        thresholds = (
            "0.05 | 0.1 | 0.15 | " * (4 if number in LITERATURE else 3)
            if len(benchmarks) == 3
            else "0.01 | 0.05 | 0.1 | 0.15 | "
        )
        lines = rows.get(number, "").replace("{}", "1.1 | 2.2 | 3.3 | 4.4")
        blocks.append(f"{header.replace(', ', ' | ')} | |\n{thresholds}{'PCK@0.1 | ' * has_gain}|\n{lines}")

    tables = read_unified_tables("\nWords\n".join(blocks))

    assert list(tables["VIII"]) == ["DINOv2 frozen - 60", "DINOv2 tuned - 60"]
    assert list(tables["IX"]) == ["DINOv2 frozen - 32", "DINOv2 frozen CATs 32"]
    assert list(tables["A1"]) == ["DINOv2 frozen - 60", "DINOv2 frozen - 32"]
    assert tables["IX"]["DINOv2 frozen CATs 32"]["SPair-71k 0.15"] == "4.4"
    with pytest.raises(ValueError, match="Tables with the headers"):
        read_unified_tables("\n".join(blocks[:4] + blocks[5:]))
    with pytest.raises(ValueError, match="is no row of"):
        read_unified_tables("\n".join(blocks).replace("3.3 | ", "", 1))
