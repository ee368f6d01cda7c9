"""The table of held-out keypoints has the digits of metrics.json, and is there only where a run held any out."""

from tiny_runs import made, run_dir, typed

from semcorr.report.document import NONE
from semcorr.report.heldout import tabulate_heldout

ALPHAS = ("0.05", "0.1")


def halves(trained, held_out) -> dict:
    """What metrics.json has of both halves, as shares per image."""
    return {
        name: {"keypoints": count, "all": {"image": dict(zip(ALPHAS, values, strict=True))}}
        for name, count, values in (("trained", 1200, trained), ("held_out", 34, held_out))
    }


def test_rows_are_halves_and_columns_tolerances_with_the_spread_over_seeds(tmp_path):
    for seed, value in ((1, 0.5), (2, 0.7)):
        scores = halves((0.25, value), (None, 0.125))
        run_dir(tmp_path / f"{seed}", config={"seed": seed, "data": {"heldout_keypoints": "half"}},
                heldout_keypoints=scores)  # fmt: skip
    whole = run_dir(tmp_path / "whole", off=1.0, config={"backbone": {"size": 64}})

    section = tabulate_heldout(made(tmp_path / "1", tmp_path / "2", whole))

    (table,) = section.parts
    assert table.columns == ["configuration", "half", "keypoints", *ALPHAS]
    assert [row[1:] for row in table.rows] == [
        ["trained", "1,200", "25.0 ± 0.0", "60.0 ± 14.1"],
        ["held out", "34", NONE, "12.5 ± 0.0"],
    ]


def test_runs_that_held_none_out_have_no_such_section(tmp_path):
    assert tabulate_heldout(made(run_dir(tmp_path / "a"))) is None


def test_the_command_writes_the_section(tmp_path):
    run = run_dir(tmp_path / "a", heldout_keypoints=halves((0.25, 0.5), (0.1, 0.2)))

    code, output = typed(run, "--out", tmp_path / "out", "--no-maps")

    assert code == 0, output
    text = (tmp_path / "out/report.md").read_text()
    assert "## Held-out keypoints" in text
    assert text.index("## Held-out keypoints") < text.index("## Cost")
