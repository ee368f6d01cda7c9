"""What Matcher is asked wrongly is a sentence, and loading it leaves no trace."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matched_pictures import drawn_cats, size_of
from saved_runs import save_run

from semcorr import Matcher
from semcorr.core.errors import UserError

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def random() -> Matcher:
    return Matcher.load("tiny", device="cpu")


@pytest.fixture(scope="module")
def cats(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return drawn_cats(tmp_path_factory.mktemp("cats") / "drawn")


@pytest.mark.parametrize("points", [[[1000, 3]], [[3, -1]], [[np.nan, 2]]])
def test_a_point_outside_is_told_the_size_of_the_picture(random, cats, points):
    width, height = size_of(cats[0])
    with pytest.raises(UserError, match=f"outside .*{cats[0].name}, which is {width} x {height} pixels"):
        random.match(cats[0], cats[1], points)


@pytest.mark.parametrize("points", [[1, 2, 3], "here", [[1, 2, 3]], [["a", "b"]]])
def test_what_are_no_points_is_a_sentence(random, cats, points):
    with pytest.raises(UserError, match="must be rows of x and y"):
        random.match(cats[0], cats[1], points)


def test_no_points_have_no_matches(random, cats):
    match = random.match(cats[0], cats[1], [])

    assert match.points.shape == match.returned.shape == (0, 2)
    assert match.scores.shape == match.consistent.shape == (0,)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("dinov", "Did you mean .*dinov2"),
        ("runs/none", "no run's directory"),
        ("backbone=tiny localise.windw=3", "localise.window"),
        ("backbone=nothing", "nothing"),
        ("checkpoint=nowhere", "nowhere"),
        ("bob's", "bob's is no directory, and no line of words"),
    ],
)
def test_a_model_that_there_is_not_is_a_sentence(line, told):
    with pytest.raises(UserError, match=told):
        Matcher.load(line)


@pytest.mark.parametrize("options", [{"device": "toaster"}, {"precision": "8"}, {"cycle": 0}, {"batch": 0}])
def test_options_that_there_are_not_are_a_sentence(options):
    with pytest.raises(UserError, match=f"`{next(iter(options))}`"):
        Matcher.load("tiny", **options)


def test_loading_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    Matcher.load("tiny", device="cpu")

    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("before", [None, "7"])
def test_loading_leaves_the_environment_alone(monkeypatch, before):
    """Loaders of the caller's own training take their seeds from there."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.delenv(name, raising=False)
        if before is not None:
            monkeypatch.setenv(name, before)
    expected = dict(os.environ)
    Matcher.load("tiny", device="cpu")

    assert dict(os.environ) == expected


@pytest.mark.sampled(8)
@pytest.mark.parametrize(
    "name", ["plain", "a b", "lr=1,x=2", "run(1)", "it's", "x{1}", "~x", "ümlaut", "$x", "${x}", "end\\", "mid\\'dle"]
)
@pytest.mark.parametrize("kind", [str, Path])
def test_a_run_is_loaded_whatever_its_directory_is_called(config, tmp_path, name, kind):
    save_run(config("evaluate", "backbone=tiny", "data.resize=corner"), tmp_path / name)

    assert Matcher.load(kind(tmp_path / name), device="cpu").resize == "corner"


def test_importing_semcorr_brings_no_torch():
    subprocess.run([sys.executable, "-c", "import sys, semcorr; assert 'torch' not in sys.modules"], check=True)
