"""Experiments say how they are started and what they aim at, and what they say runs."""

import itertools
import re

import pytest
from omegaconf import OmegaConf

from semcorr.cli import conf_dir
from semcorr.sweep import hashed
from semcorr.train import train

FOLDER = conf_dir() / "experiment"
NAMES = sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml"))
SMALLER = {  # where an experiment names what only fits a large backbone
    "geo_aware": ["head.out=32", "head.width=8", "head.groups=4"],
    "geo_aware/released": ["loss.trained_grid=4"],
    "marco": ["finetune.blocks=2", "finetune.width=8"],
}

experiments = pytest.mark.parametrize("name", NAMES)


def head_comment(name: str) -> str:
    lines = (FOLDER / f"{name}.yaml").read_text().splitlines()
    return "\n".join(itertools.takewhile(lambda line: line.startswith("#"), lines))


def jobs(command: str) -> list[tuple[str, ...]]:
    """What a sweep makes of a line: every combination of values told by commas."""
    overrides = [word.partition("=") for word in command.split() if "=" in word]
    told = [[f"{key}={value}" for value in values.split(",")] for key, _, values in overrides]
    return list(itertools.product(*told))


@experiments
def test_the_head_comment_holds_commands_that_are_understood_and_figures(config, name):
    comment = head_comment(name)
    commands = re.findall(r"python -m semcorr\.(train|evaluate) (.*)", comment)

    assert any(f"experiment={name}" in command for _, command in commands)
    assert re.search(r"\d\d\.\d( |$)", comment, re.MULTILINE)
    for verb, command in commands:
        for overrides in jobs(command.replace("-m ", "")):
            config(verb, *overrides)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("sweep_")])
def test_every_job_of_a_sweep_composes_and_no_two_are_the_same(config, name):
    params = OmegaConf.load(FOLDER / f"{name}.yaml").hydra.sweeper.params
    lines = jobs(" ".join(f"{key}={values}" for key, values in params.items()))

    found = {hashed(config("train", f"experiment={name}", *line)) for line in lines}

    assert len(found) == len(lines) > 4


@experiments
def test_a_way_to_tune_that_is_typed_is_not_changed_by_the_experiment(config, name):
    """An experiment that sets `finetune.blocks` by itself would train two blocks of a backbone said to be frozen."""
    assert config("train", f"experiment={name}", "finetune=frozen").finetune.blocks == 0
    assert config("train", f"experiment={name}", "finetune=lora").finetune.blocks is None
    assert config("evaluate", "finetune=lora").finetune.blocks is None


@experiments
def test_it_trains_on_tiny_parts(config, tiny, name):
    smaller = [*SMALLER.get(name.split("/")[0], []), *SMALLER.get(name, [])]
    line = [*tiny, *smaller, "backbone.size=32", "data.batch_size=2", "trainer.fast_dev_run=true"]

    scores = train(config("train", f"experiment={name}", *line))

    assert scores["pairs"] == 2  # those a fast_dev_run looks at
    assert (scores["trained_parameters"] > 0) == (name != "heads/none")
