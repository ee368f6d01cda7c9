"""Lines that name a run: what they say of it, and what is typed beside `checkpoint`."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from semcorr import evaluate, train

LINE = ["finetune.blocks=1", "data.steps=3", "data.batch_size=4", "head=bottleneck", "trainer.max_epochs=1"]


@pytest.fixture
def run(config, tiny, tmp_path_factory) -> Path:
    """A finished training, made when it is first asked for. None may change it."""
    run_dir = tmp_path_factory.getbasetemp() / "resumed_lines" / "run"
    if not (run_dir / "metrics.json").exists():
        train.train(config("train", *tiny, *LINE, "scheduler=constant", f"run_dir={run_dir}"))
    return run_dir


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """typed(train, "a=b") is `python -m semcorr.train a=b` in an empty folder; the exit code."""

    def run_line(verb, *line: str) -> int:
        monkeypatch.chdir(tmp_path)
        return verb.main(line)

    return run_line


@pytest.mark.parametrize("verb", [train, evaluate])
def test_a_line_with_a_run_begins_with_the_run_and_what_is_typed(typed, capsys, verb):
    """Groups that the run brings are not called by the names of the defaults, which it may not have."""
    name = verb.__name__.rpartition(".")[2]

    assert typed(verb, "checkpoint=nowhere", "protocol=semcorr", "trainer=cpu") == 2

    assert capsys.readouterr().out == f"{name}: checkpoint=nowhere, protocol=semcorr\n"


def test_a_directory_typed_beside_a_run_that_is_resumed_is_refused(typed, capfd, tmp_path, run):
    """The run stays in its own; an evaluation has one of its own."""
    before = (run / "metrics.json").read_bytes()

    for setting in ("run_dir=other", "hydra.run.dir=other"):
        assert typed(train, f"checkpoint={run}", setting) == 2
        message = capfd.readouterr().err
        assert "`run_dir` has no effect beside `checkpoint`: a resumed run stays in its directory" in message
        assert f"start_from={run} run_dir=NEW" in message
        assert [*tmp_path.iterdir()] == []
    assert (run / "metrics.json").read_bytes() == before

    (tmp_path / "link").symlink_to(run)
    assert typed(train, f"checkpoint={run}", "run_dir=link", "head=cosine") == 2  # the same directory by another name
    assert "`head=cosine`" in capfd.readouterr().err
    assert typed(evaluate, f"checkpoint={run}", "run_dir=other") == 0
    assert json.loads((tmp_path / "other" / "metrics.json").read_text())["pck"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["finetune=lora"], "`finetune=lora`: .*trained with finetune=blocks_1, .* with lora. Leave finetune=lora out"),
        (["head=cosine"], "`head=cosine`: .*trained with head=bottleneck, .* with cosine. Leave head=cosine out"),
        (["data.steps=null"], "`data.steps`: .*trained with data.steps=3, .* with null. Leave data.steps out"),
        (["start_from=other"], "`start_from`: .*trained with start_from=null, .* with other. Leave start_from out"),
        pytest.param(  # draws its images first
            *(["experiment=demo"], "`experiment=demo`: .*trained with .* Leave experiment=demo out"),
            marks=pytest.mark.slow,
        ),
        (
            ["protocol=geoaware", "loss.convention=centres"],
            "`data.resize`: .*trained with data.resize=squash, .*Give data.resize=squash, or",
        ),
    ],
)
def test_a_setting_that_a_run_was_not_trained_with_is_called_as_it_is_typed(typed, capfd, run, tmp_path, line, message):
    place = [f"data_root={tmp_path}", "data.root=drawn"] if line == ["experiment=demo"] else []
    assert typed(train, f"checkpoint={run}", *line, *place) == 2
    error = capfd.readouterr().err
    assert re.search(message, error), error
    assert "_target_" not in error
