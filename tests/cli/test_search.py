"""`hydra/sweeper=optuna`: which jobs a search runs, by which number, and what it says."""

import json
import re
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from semcorr import evaluate, train
from semcorr.cli.sweep.objective import OF_PAIRS, check_objective, select_number
from semcorr.cli.sweep.space import build_space, fill_values, list_corners
from semcorr.core.errors import UserError
from semcorr.engine.module import CorrespondenceModule

SEARCH = "hydra/sweeper=optuna"
SOFT = ["localise=window_soft_argmax"]
TEMPERATURE = "localise.temperature=tag(log, interval(1e-3,1))"
RATE = "optimizer.backbone_lr=tag(log, interval(1e-4,1e-2))"
QUICK = ["data.steps=2", "data.batch_size=2", "trainer.max_epochs=1", "finetune.blocks=1", "data.split=val"]


@pytest.fixture
def typed(monkeypatch, tmp_path):
    """typed(train, "-m", "a=b,c") is that command line in an empty folder; the exit code."""

    def run(verb, *line: str) -> int:
        monkeypatch.chdir(tmp_path)
        return verb.main(line)

    return run


def parse(*line: str) -> list:
    return OverridesParser.create().parse_overrides([*line])


def read_scores(folder: Path) -> dict[str, float]:
    files = sorted(folder.glob("*/metrics.json"))
    return {path.parent.name: json.loads(path.read_text())["pck"]["all"]["point"]["0.1"] for path in files}


def read_temperatures(folder: Path) -> dict[str, float]:
    notes = {path.parent.name: json.loads(path.read_text())["overrides"] for path in folder.glob("*/job.json")}
    return {name: float(overrides[0].partition("=")[2]) for name, overrides in notes.items()}


def test_thresholds_have_dots_of_their_own():
    metrics = {"pck": {"all": {"image": {"0.1": 0.25, "0.15": None}}}, "intervals": {"a": [0, 1]}, "strict": False}

    assert select_number(metrics, "pck.all.image.0.1") == 0.25
    assert select_number(metrics, "pck.all.image.0.15") is None
    for absent in ("pck.all.image.0.2", "pck.all.image", "intervals.a", "strict", ""):
        with pytest.raises(UserError, match=r"no number .*(Did you mean pck\.all\.image\.0\.1|There are pck\.SUBSET)"):
            select_number(metrics, absent)


@pytest.mark.parametrize("name", ["pck.all.image.0.3", "pck.all.0.1", "seed", "tracking.aj"])
def test_a_name_that_no_run_writes_is_refused(name):
    with pytest.raises(UserError, match=r"`objective`: metrics\.json has no number"):
        check_objective(name)


def test_every_name_that_is_offered_is_written(tmp_path, tiny, config):
    metrics = evaluate.evaluate(config("evaluate", *tiny))

    for name in OF_PAIRS:
        select_number(metrics, name)


def test_what_is_typed_is_what_is_searched():
    pytest.importorskip("optuna")
    line = [
        "seed=3",
        "finetune.blocks=int(interval(1,4))",
        "head=cosine,cats",
        "localise.window=range(9,1,-2)",
        "loss.sigma=range(0.5,2,0.5)",
        RATE,
        "++x.y=interval(0,0.5)",
    ]
    space = build_space(parse(*line))

    assert {key: type(values).__name__.removesuffix("Distribution") for key, values in space.items()} == {
        "finetune.blocks": "Int",
        "head": "Categorical",
        "localise.window": "Int",
        "loss.sigma": "Float",
        "optimizer.backbone_lr": "Float",
        "++x.y": "Float",
    }
    assert (space["localise.window"].low, space["localise.window"].high, space["localise.window"].step) == (3, 9, 2)
    assert (space["loss.sigma"].low, space["loss.sigma"].high) == (0.5, 1.5)  # as a sweep's, without the end
    assert [space[key].log for key in ("optimizer.backbone_lr", "++x.y")] == [True, False]

    corners = [*list_corners(space)]
    assert len(corners) == 7
    assert {key for corner in corners[1:] for key in space if corner[key] != corners[0][key]} == {*space}
    assert fill_values(parse(*line), corners[0])[:4] == [
        "seed=3",
        "finetune.blocks=1",
        "head=cosine",
        "localise.window=3",
    ]


def test_the_last_value_of_a_range_is_searched_whatever_its_steps_sum_to():
    pytest.importorskip("optuna")
    (values,) = build_space(parse("optimizer.backbone_lr=range(0.7,0.9999999990,0.1)")).values()

    assert (values.low, values.high, values.step) == (0.7, 0.9, 0.1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed=1", "nothing is searched"),
        ("seed=tag(wide,interval(0,1))", "of tags a search knows log"),
        ("seed=tag(log,interval(0,1.5))", "cannot be searched: .*low.*> 0"),
        ("seed=interval(3,1)", "cannot be searched"),
    ],
)
def test_what_cannot_be_searched_is_reported(text, message):
    pytest.importorskip("optuna")
    with pytest.raises(UserError, match=message):
        build_space(parse(text))


@pytest.mark.integration
def test_four_trials_end_with_the_best_and_the_table_and_grow(typed, tmp_path, tiny, capfd, caplog):
    """One job of the first four fails, and the search goes on; the same line with more trials adds those alone."""
    pytest.importorskip("optuna")
    step = CorrespondenceModule.test_step
    line = ["-m", SEARCH, TEMPERATURE, "objective=pck.all.point.0.1", *SOFT, "data.split=val", *tiny, "run_dir=S"]

    def broken(self, batch):
        if self.trainer.default_root_dir.endswith("S/1"):
            raise UserError("no luck")
        return step(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CorrespondenceModule, "test_step", broken)
        assert typed(evaluate, *line, "hydra.sweeper.n_trials=4", "hydra.sweeper.direction=maximize") == 2

    output = capfd.readouterr()
    scores = read_scores(tmp_path / "S")
    assert {*scores} == {"0", "2", "3"}
    best = max(scores, key=lambda name: scores[name])
    assert "Trial 2 of 4, job 1: failed; the search goes on without it" in output.out
    assert re.search(
        rf"Best of 4 trials, 1 of them without a number: job {best} with pck.all.point.0.1 = "
        rf"{scores[best]:.6g}, by localise.temperature=\d",
        output.out,
    )
    assert output.out.index("Best of 4") < output.out.index("3 jobs, scored on synthetic val")
    assert "Error: job S/1 failed" in output.err
    assert "The search is by" not in caplog.text  # it is by validation pairs
    temperatures = read_temperatures(tmp_path / "S")
    assert len({*temperatures.values()}) == 4
    assert all(1e-3 <= temperature <= 1 for temperature in temperatures.values())

    assert typed(evaluate, *line, "hydra.sweeper.n_trials=5") == 0

    output = capfd.readouterr().out
    assert re.findall(r"^Job (\d):", output, re.MULTILINE) == ["1", "4"]
    assert {name: value for name, value in read_temperatures(tmp_path / "S").items() if name != "4"} == temperatures
    assert {name: score for name, score in read_scores(tmp_path / "S").items() if name in scores} == scores


@pytest.mark.integration
def test_choices_that_are_made_twice_are_run_once(typed, tmp_path, tiny, capfd, caplog):
    pytest.importorskip("optuna")
    line = ["-m", SEARCH, "localise=argmax,window_5", "hydra.sweeper.n_trials=5", "hydra.sweeper.n_jobs=2"]
    line += ["finetune.blocks=1", "data.steps=1", "data.batch_size=2", "trainer.max_epochs=1"]

    assert typed(train, *line, *tiny, "run_dir=S") == 0

    output = capfd.readouterr()
    assert len(read_scores(tmp_path / "S")) == 2
    assert "Trial 5 of 5" in output.out
    assert "2 jobs, scored on synthetic test" in output.out
    assert "The search is by the test split of `data`" in caplog.text


@pytest.mark.integration
@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["objective=pck.all.images.0.1"], "Did you mean pck.all.image.0.1"),
        (["objective=tracking.AJ"], "metrics.json has no number tracking.AJ"),
        (["optimizer.backbone_lr=interval(1e-4,100)"], "`optimizer.backbone_lr` must be between 0 and 10, got 100.0"),
        (["hydra.sweeper.direction=up"], "`hydra.sweeper.direction` must be one of maximize, minimize"),
        (["hydra.sweeper.n_trials=0"], "`hydra.sweeper.n_trials` must be at least 1"),
    ],
)
def test_a_user_error_is_reported_before_the_first_job(typed, tmp_path, tiny, capfd, line, message):
    pytest.importorskip("optuna")
    assert typed(train, "-m", SEARCH, RATE, *QUICK, *tiny, *line, "run_dir=S") == 2
    assert message in capfd.readouterr().err
    assert not (tmp_path / "S").exists()


@pytest.mark.integration
@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["-m", SEARCH, RATE], "`hydra/sweeper` needs optuna, which is not installed: pip install 'semcorr[sweep]'"),
        ([SEARCH], "Add -m, or leave it out"),
        (["-m", RATE], "an interval is searched, by hydra/sweeper=optuna"),
        (["objective=pck"], "`objective`: metrics.json has no number pck. There are pck.SUBSET"),
    ],
)
def test_without_optuna_or_without_a_search(typed, tmp_path, tiny, capfd, monkeypatch, line, message):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert typed(train, *line, *tiny, "run_dir=S") == 2
    err = capfd.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "S").exists()


@pytest.mark.integration
def test_a_number_that_only_the_scores_can_name_is_reported_after_the_first_job(typed, tmp_path, tiny, capfd):
    pytest.importorskip("optuna")
    line = ["-m", SEARCH, "localise=argmax,window_5", "objective=category.unicorn.all.image.0.1", *tiny, "run_dir=S"]
    assert typed(evaluate, *line) == 2
    assert "metrics.json has no number category.unicorn.all.image.0.1. Did you mean" in capfd.readouterr().err
    assert len(read_scores(tmp_path / "S")) == 1
