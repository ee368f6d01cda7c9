"""How a sweep ends: what is of one kind in one table, and an exit code of what failed."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from semcorr.cli.sweep.plan import JobOutcome, SweepJob
from semcorr.cli.sweep.table import group_seeds, print_summary

PCK = {"pck": {subset: {"image": {"0.1": 0.5}} for subset in ("all", "geo", "std")}, "split": "spair test"}
TRACKS = {"tracking": {"delta_avg": 0.25, "OA": 0.75, "AJ": 0.125}, "split": "tapvid_davis test"}


MASKS = {"segmentation": {"JF": 0.625, "J": 0.5, "F": 0.75, "J_recall": 0.375}, "split": "davis val"}
FLOW = {"flow": {"PCK": 0.875}, "split": "tss test"}


def outcome(root: Path, number: int, typed: str, metrics: dict | None, fault: int = 0) -> JobOutcome:
    folder = root / str(number)
    folder.mkdir()
    if metrics is not None:
        (folder / "metrics.json").write_text(json.dumps(metrics))
    return JobOutcome(
        SweepJob("evaluate", [typed], OmegaConf.create(), typed, folder), fault, "why\nand where" * bool(fault)
    )


@pytest.mark.parametrize("order", [1, -1])
def test_pairs_and_tracks_have_a_table_each(tmp_path, capfd, order):
    jobs = [outcome(tmp_path, 0, "data=spair", PCK), outcome(tmp_path, 1, "data=tapvid_davis", TRACKS)]

    assert print_summary(jobs[::order]) == 0

    output = capfd.readouterr().out
    pairs, tracks = output[output.index("spair test") :], output[output.index("tapvid_davis test") :]
    assert "50.0" in pairs.partition("tapvid_davis test")[0]
    assert all(number in tracks for number in ("25.0", "75.0", "12.5"))


def test_every_other_kind_of_scores_has_its_table(tmp_path, capfd):
    jobs = [outcome(tmp_path, 0, "data=davis", MASKS), outcome(tmp_path, 1, "data=tss", FLOW)]

    assert print_summary(jobs) == 0

    masks, _, flow = capfd.readouterr().out.partition("tss")  # of the second title
    assert all(number in masks for number in ("62.5", "50.0", "75.0"))
    assert "37.5" not in masks
    assert "87.5" in flow


@pytest.mark.parametrize(("faults", "code"), [((0, 2), 2), ((1, 2), 1), ((0, 0), 0)])
def test_the_exit_code_is_the_users_if_they_alone_are_to_blame(tmp_path, capfd, faults, code):
    jobs = [outcome(tmp_path, i, f"seed={i}", None if fault else PCK, fault) for i, fault in enumerate(faults)]

    assert print_summary(jobs) == code

    output = capfd.readouterr().err
    assert output.count("failed (seed=") == sum(map(bool, faults))
    assert (f"the same line with run_dir={tmp_path} does those alone" in output) == bool(code)


def test_a_key_that_was_taken_out_is_typed_like_any_other():
    found = group_seeds([("0", ["~store", "seed=1"], {}), ("1", ["~store", "seed=2"], {}), ("2", ["seed=1"], {})])

    assert [(row.number, row.typed) for row in found] == [("0, 1", {"~store": ""}), ("2", {})]
