"""A run replaces and removes no file that is not of a run: run_dir is refused where it would, before any work."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from semcorr.core.errors import UserError
from semcorr.engine.foreign_files import FOLDERS, UNFINISHED, mark_while_unfinished, refuse_foreign_files
from semcorr.engine.run_dir import RESULTS
from semcorr.evaluate import evaluate, main
from semcorr.train import train

CFG = OmegaConf.create({"data": {"root": "elsewhere"}})


def content(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write(path: Path, text: str = "of the user's") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    "name",
    [
        *(name for name in RESULTS if name != "metrics.json"),
        "my-profile1.txt",
        "tensorboard/events.1",
        "wandb/id.txt",
        "checkpoints/best.ckpt",
    ],
)
def test_a_file_with_the_name_of_an_output_is_kept_and_named(tmp_path, name):
    write(tmp_path / name)

    with pytest.raises(UserError, match=f"`run_dir`: .+ holds {re.escape(name)}, which is of no run .+Choose another"):
        refuse_foreign_files(tmp_path, CFG)


@pytest.mark.parametrize("command", [evaluate, train])
@pytest.mark.parametrize("name", ["matches.png", "metrics.csv", "own-profile.txt", "config.yaml"])
def test_commands_leave_a_folder_of_the_users_as_it_was(config, tiny, tmp_path, command, name):
    run = tmp_path / "run"
    write(run / name, "mine: 1" if name == "config.yaml" else "mine")
    write(run / "notes.txt")
    before = content(run)

    with pytest.raises(UserError, match=r"`run_dir`: "):
        command(config(command.__name__, *tiny))

    assert content(run) == before


def test_a_typed_line_ends_in_a_user_error_and_exit_code_2(tiny, tmp_path, capsys):
    write(tmp_path / "own" / "matches.png")

    assert main([*tiny, f"run_dir={tmp_path / 'own'}"]) == 2

    assert "holds matches.png" in capsys.readouterr().err
    assert content(tmp_path / "own") == {"matches.png": "of the user's"}


@pytest.mark.parametrize("key", ["data", "test"])
@pytest.mark.parametrize("place", ["", *FOLDERS])
def test_a_run_among_the_files_of_a_benchmark_is_refused(tmp_path, key, place):
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / "link").symlink_to(tmp_path)
    cfg = OmegaConf.create({key: {"root": str(tmp_path / "link" / place)}})

    with pytest.raises(UserError, match=rf"would write into {key}\.root=.+Choose another run_dir"):
        refuse_foreign_files(tmp_path, cfg)


def test_a_run_below_or_beside_the_files_of_a_benchmark_is_allowed(tmp_path):
    for run_dir, root in (("data/runs/1", "data"), ("run", "data"), (".", "data"), ("run", "run-data")):
        refuse_foreign_files(tmp_path / run_dir, OmegaConf.create({"data": {"root": str(tmp_path / root)}}))
    refuse_foreign_files(tmp_path, OmegaConf.create({"data": {"root": None}, "test": None}))


@pytest.mark.parametrize("mark", [UNFINISHED, "job.json", "config.yaml"])
def test_what_a_run_left_may_be_replaced(tmp_path, mark):
    write(tmp_path / mark, "data: {}\nbackbone: {}\n")
    for name in ("matches.png", "tensorboard/events.1", "checkpoints/last.ckpt"):
        write(tmp_path / name)

    refuse_foreign_files(tmp_path, CFG)


def test_what_a_sweep_or_a_refused_job_left_is_no_output(tmp_path):
    for name in ("multirun.yaml", ".lock", "error.txt", "0/matches.png", "0/config.yaml"):
        write(tmp_path / name)

    refuse_foreign_files(tmp_path, CFG)


def test_an_interrupted_evaluation_with_logs_is_done_by_the_same_line(config, tiny, tmp_path, monkeypatch):
    """Its config.yaml is written with its scores: until then a mark says that the logs are of a run."""
    run, line = tmp_path / "run", [*tiny, "logger=tensorboard"]

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("semcorr.engine.scoring.write_results", interrupt)
    with pytest.raises(KeyboardInterrupt):
        evaluate(config("evaluate", *line))
    assert {path.name for path in run.iterdir()} == {UNFINISHED, "tensorboard"}
    monkeypatch.undo()

    for _ in range(2):
        assert evaluate(config("evaluate", *line))["pck"]
        assert not (run / UNFINISHED).exists()


def test_an_evaluation_that_fails_without_logs_leaves_no_mark(tmp_path):
    def fail() -> None:
        with mark_while_unfinished(tmp_path):
            assert (tmp_path / UNFINISHED).is_file()
            raise UserError("a mistake")

    with pytest.raises(UserError, match="a mistake"):
        fail()
    assert list(tmp_path.iterdir()) == []
