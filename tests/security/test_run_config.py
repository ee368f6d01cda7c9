"""A run directory from anybody: whatever its config.yaml says, nothing of it runs, by any command that reads it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import yaml
from hostile_configs import ATTACKS, CODE, MARKER, damaged, write_tools
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_yaml_loader
from PIL import Image
from saved_runs import save_run
from tiny_runs import run_dir

from semcorr import Matcher, audit, compare, evaluate, export, match, train, transfer
from semcorr.cli import compose as cli
from semcorr.cli.compose import merge_checkpoint_config
from semcorr.cli.errors import report_user_errors
from semcorr.core.errors import UserError
from semcorr.engine.saved_config import read_run_config
from semcorr.report import command as report

SECRET = "hunter2"
LABELS = (
    '{"images": [{"id": 1, "file_name": "a.png"}], "categories": [{"id": 1, "name": "cat", "keypoints": ["nose"]}], '
    '"annotations": [{"id": 1, "image_id": 1, "category_id": 1, "keypoints": [9, 9, 2], "bbox": [0, 0, 32, 32]}]}'
)
LINES = {  # of the commands, about the run that is named last
    "match": "a.png b.png --device cpu --model",
    "transfer": "some.json pictures --device cpu --model",
    "report": "",
    "export": "",
    "audit": "",
}


OTHERS = ["report", "evaluate", "match", "transfer", "export", "audit"]


@cache
def composed(verb: str, *line: str) -> DictConfig:
    """Hydra composes a line once: what a run brings comes after."""
    with initialize_config_dir(str(cli.conf_dir()), version_base="1.3"):
        return compose(verb, [*line])


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A training run RUN, and an evaluation EVAL of it."""
    root = tmp_path_factory.mktemp("runs")
    line = ["data=synthetic", "data.root=drawn", "backbone=tiny", "trainer=cpu", "run_dir=OUT"]
    for run, cfg in {"RUN": composed("train", *line), "EVAL": composed("evaluate", *line, "checkpoint=RUN")}.items():
        (save_run(cfg, root / run) / "metrics.json").write_text("{}")
    return root


@pytest.fixture
def place(tmp_path, monkeypatch, runs) -> Path:
    """Both runs, what attacks go through, and pictures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET", SECRET)
    shutil.copytree(runs, ".", dirs_exist_ok=True)
    for folder in (".", "pictures"):
        Path(folder).mkdir(exist_ok=True)
        for name in "ab":
            Image.new("RGB", (32, 32), "grey").save(Path(folder) / f"{name}.png")
    Path("some.json").write_text(LABELS)
    write_tools(tmp_path)
    return tmp_path


@pytest.fixture
def composed_once(monkeypatch) -> None:
    """For Matcher, too."""
    monkeypatch.setattr(cli, "compose", lambda name, line: deepcopy(composed(name, *line)))
    monkeypatch.setattr(cli, "initialize_config_dir", lambda *_, **__: nullcontext())


def by_checkpoint(verb: str, task: Callable) -> Callable[[str], None]:
    """As the command does it, without Hydra's own part."""

    def run(name: str) -> None:
        with report_user_errors(verb):
            cfg = deepcopy(composed(verb, f"checkpoint={name}", "run_dir=OUT"))
            task(merge_checkpoint_config(cfg, [f"checkpoint={name}"]))

    return run


def by_line(main: Callable[[list[str]], int], line: str) -> Callable[[str], None]:
    def run(name: str) -> None:
        sys.exit(main([*line.split(), name]))

    return run


def in_python(name: str) -> None:
    try:
        Matcher.load(name, device="cpu")
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)


@pytest.fixture
def verbs() -> dict[str, Callable[[str], None]]:
    """verbs["audit"]("RUN") is `python -m semcorr.audit RUN`."""
    mains = {
        "match": match.main,
        "transfer": transfer.main,
        "report": report.app,
        "export": export.main,
        "audit": audit.main,
    }
    return {
        "train": by_checkpoint("train", train.train),
        "evaluate": by_checkpoint("evaluate", evaluate.evaluate),
        "Matcher.load": in_python,
        **{verb: by_line(main, LINES[verb]) for verb, main in mains.items()},
    }


def written(content: str | bytes, path: Path) -> None:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.mark.sampled(6)
@pytest.mark.parametrize(
    ("attack", "run"),
    [
        *((attack, "RUN") for attack in ATTACKS),
        *((attack, "EVAL") for attack in list(CODE)[::4]),
        *(pytest.param(attack, "EVAL", marks=pytest.mark.slow) for attack in ATTACKS if attack not in list(CODE)[::4]),
    ],
)
def test_every_command_refuses_a_hostile_configuration(place, verbs, composed_once, capfd, attack, run):
    """In the run that is given, and in the run whose checkpoint that one scored."""
    hostile = place / "RUN" / "config.yaml"
    written(ATTACKS[attack](yaml.safe_load(hostile.read_text())), hostile)
    before = files(place)
    for verb, typed in verbs.items():
        with pytest.raises(SystemExit) as stop:
            typed(run)
        error = capfd.readouterr().err

        assert (verb, stop.value.code) == (verb, 2), error
        assert error.startswith("Error: "), error
        assert error.count("\n") == 1, error
        assert "RUN/config.yaml" in error, error
        assert SECRET not in error
        assert not (place / MARKER).exists()
    assert files(place) == before


@pytest.mark.parametrize("verb", ["train", *(pytest.param(v, marks=pytest.mark.slow) for v in OTHERS)])
def test_the_program_itself_refuses(place, verb):
    hostile = place / "RUN" / "config.yaml"
    written(CODE["a shell by collect_env"](yaml.safe_load(hostile.read_text())), hostile)
    before = files(place)
    line = (
        [*LINES[verb].split(), "RUN"]
        if verb in LINES
        else ["checkpoint=RUN", "run_dir=OUT"][: 1 + (verb == "evaluate")]
    )

    done = subprocess.run(
        [sys.executable, "-m", f"semcorr.{verb}", *line], capture_output=True, text=True, env=os.environ
    )

    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: RUN/config.yaml, line "), done.stderr
    assert "`head._target_` is 'torch.utils.collect_env.run'" in done.stderr
    assert "Traceback" not in done.stderr
    assert files(place) == before


def test_compare_reads_no_configuration(place, capfd):
    """Nothing of it is asked for, so that nothing of it can run."""
    runs = [run_dir(place / name, off) for name, off in (("A", 0), ("B", 3))]
    for run in runs:
        written(CODE["os.system"](yaml.safe_load((run / "config.yaml").read_text())), run / "config.yaml")

    compare.compare_runs(*runs, alphas="0.1", draws=100, seed=0)

    assert "B - A" in capfd.readouterr().out
    assert not (place / MARKER).exists()


def check_damage(run: Path, seed: int) -> None:
    """It is refused, or read for what it says."""
    content = (run / "config.yaml").read_text()
    written(damaged(content, seed), run / "config.yaml")
    try:
        cfg = read_run_config(run)
    except UserError:
        return
    output = yaml.load((run / "config.yaml").read_text(), get_yaml_loader())
    assert OmegaConf.to_container(cfg, resolve=True) == output


@pytest.mark.parametrize("seed", range(60))
def test_damage_is_refused_or_read_for_what_it_says(place, seed):
    check_damage(place / "RUN", seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60, 560))
def test_more_damage_is_refused_or_read_for_what_it_says(place, seed):
    check_damage(place / "RUN", seed)
