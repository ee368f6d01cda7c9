"""A sweep ends as it would undisturbed, whatever happens on the way; and no job does what another one did."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from omegaconf import OmegaConf

from hydra_plugins.semcorr_launchers import Here, Slurm
from semcorr import evaluate, train
from semcorr.cli.sweep.plan import JobOutcome
from semcorr.core.errors import UserError
from semcorr.engine.build import build_datamodule_and_module
from semcorr.engine.module import CorrespondenceModule
from semcorr.store.frozen import FrozenPrefix

pytestmark = pytest.mark.integration

QUICK = ["data.steps=2", "data.batch_size=2", "trainer.max_epochs=2"]
DIES = """
import os, signal, sys
from semcorr import train
from semcorr.engine.module import CorrespondenceModule
step = CorrespondenceModule.training_step
def training_step(self, batch):
    if self.seed == 2 and self.global_step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch)
CorrespondenceModule.training_step = training_step
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.fixture
def typed(monkeypatch, tmp_path):
    """typed(train, "-m", "a=b,c") is that command line in an empty folder; the exit code."""

    def run(verb, *line: str) -> int:
        monkeypatch.chdir(tmp_path)
        return verb.main(line)

    return run


@pytest.fixture
def encoded(monkeypatch):
    """How many images each call of frozen blocks was about."""
    counts: list[int] = []
    compute = FrozenPrefix.compute

    def counted(self, image):
        counts.append(len(image))
        return compute(self, image)

    monkeypatch.setattr(FrozenPrefix, "compute", counted)
    return counts


def scores(folder: Path) -> dict[str, dict]:
    """metrics.json of every job, less how long it took."""
    found = {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("*/metrics.json"))}
    for metrics in found.values():
        del metrics["seconds"]
    return found


def times(sweep: Path) -> tuple[list[float], list[float]]:
    """When each job began to write, and when it was done."""
    folders = [path.parent for path in sorted(sweep.glob("*/metrics.json"))]
    began = [(folder / ".lock").stat().st_mtime for folder in folders]
    return began, [(folder / "metrics.json").stat().st_mtime for folder in folders]


@pytest.mark.slow
def test_a_killed_sweep_does_only_what_is_missing_and_ends_like_an_undisturbed_one(
    typed, tmp_path, tiny, monkeypatch, capfd
):
    """Killed in the fourth step of the second of three jobs, which had saved two."""
    line = ["-m", "finetune.blocks=1", "seed=1,2,3", *QUICK, *tiny]
    assert typed(train, *line, "run_dir=whole") == 0
    killed = subprocess.run([sys.executable, "-c", DIES, *line, "run_dir=killed"], cwd=tmp_path, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert set(scores(tmp_path / "killed")) == {"0"}
    first = (tmp_path / "killed" / "0" / "metrics.json").stat()

    steps, step = [], CorrespondenceModule.training_step
    monkeypatch.setattr(
        CorrespondenceModule,
        "training_step",
        lambda self, b: (steps.append((self.seed, self.global_step)), step(self, b))[1],
    )
    capfd.readouterr()
    assert typed(train, *line, "run_dir=killed") == 0

    assert "3 jobs in killed: 1 done before, 1 half done, 1 to do" in capfd.readouterr().out
    assert steps == [(2, 2), (2, 3), (3, 0), (3, 1), (3, 2), (3, 3)]
    assert (tmp_path / "killed" / "0" / "metrics.json").stat().st_mtime_ns == first.st_mtime_ns
    assert scores(tmp_path / "killed") == scores(tmp_path / "whole")
    for number in "012":
        saved = [OmegaConf.load(tmp_path / run / number / "config.yaml") for run in ("killed", "whole")]
        assert [each.pop("run_dir") for each in saved] == [f"killed/{number}", f"whole/{number}"]
        assert saved[0] == saved[1]


@pytest.mark.slow
def test_jobs_that_differ_in_readouts_encode_once_and_score_as_by_themselves(typed, tmp_path, tiny, encoded):
    """Fifteen images for each of two seeds, though jobs of one seed are not typed side by side."""
    readouts = ["window_5", "argmax", "kernel_2"]
    assert typed(evaluate, "-m", f"localise={','.join(readouts)}", "seed=1,2", *tiny, "run_dir=S") == 0
    assert sum(encoded) == 30

    together = scores(tmp_path / "S")
    for i, readout in enumerate(readouts):
        assert typed(evaluate, f"localise={readout}", "seed=2", *tiny, f"run_dir=one_{readout}") == 0
        alone = json.loads((tmp_path / f"one_{readout}" / "metrics.json").read_text())
        assert together[str(2 * i + 1)]["pck"] == alone["pck"]
    assert sum(encoded) == 30 + 45  # a run by itself keeps nothing for the next


@pytest.mark.slow
def test_a_trained_run_is_read_by_many_readouts_from_one_encoding(typed, tmp_path, tiny, monkeypatch):
    """And weights that were trained meanwhile are scored again."""
    assert typed(train, "finetune.blocks=1", "scheduler=constant", *QUICK, *tiny, "run_dir=RUN") == 0
    images, backbone = [], type(build_backbone(tmp_path / "RUN"))
    forward = backbone.forward
    monkeypatch.setattr(backbone, "forward", lambda self, image: (images.append(len(image)), forward(self, image))[1])
    line = ["-m", "checkpoint=RUN", "localise=window_3,window_5", "run_dir=S"]

    assert typed(evaluate, *line) == 0
    assert sum(images) == 15
    assert typed(evaluate, *line) == 0
    assert sum(images) == 15

    assert typed(train, "checkpoint=RUN", "trainer.max_epochs=3") == 0
    images.clear()
    assert typed(evaluate, *line) == 0
    assert sum(images) == 15
    assert len(scores(tmp_path / "S")) == 4


def build_backbone(run: Path):
    return build_datamodule_and_module(OmegaConf.create(OmegaConf.load(run / "config.yaml")))[0].backbone


@pytest.mark.slow
def test_readouts_are_swept_by_their_short_names(typed, tmp_path, tiny):
    assert typed(evaluate, "-m", "localise=window_3,soft,kernel_2,argmax", *tiny, "run_dir=S") == 0
    readouts = [scores(tmp_path / "S")[number]["localise"] for number in "0123"]
    assert readouts == ["window_soft_argmax(window=3)", "soft_argmax", "kernel_soft_argmax(sigma=2.0)", "argmax"]


def test_a_job_that_fails_stops_no_other_and_is_named_at_the_end(typed, tmp_path, tiny, capfd):
    """The user's mistake: exit code 2. Mended, the same directory is gone on with."""
    line = ["-m", "finetune.blocks=99,1", *QUICK, *tiny, "data.steps=1", "trainer.max_epochs=1", "run_dir=S"]
    assert typed(train, *line) == 2

    output = capfd.readouterr()
    assert set(scores(tmp_path / "S")) == {"1"}
    assert "1 job, scored on synthetic test" in output.out
    assert "Error: job S/0 failed (finetune.blocks=99" in output.err
    assert "1 of 2 jobs failed; the same line with run_dir=S does those alone" in output.err
    assert "99" in (tmp_path / "S" / "0" / "error.txt").read_text()

    assert typed(train, *line) == 2
    assert "1 done before, 0 half done, 1 to do" in capfd.readouterr().out


@pytest.mark.slow
def test_a_defect_of_ours_in_one_job_keeps_its_traceback_and_ends_in_1(typed, tmp_path, tiny, monkeypatch):
    compute = FrozenPrefix.compute

    def broken(self, image):
        if self.backbone.size == 48:
            raise RuntimeError("a defect")
        return compute(self, image)

    monkeypatch.setattr(FrozenPrefix, "compute", broken)
    line = ["-m", "backbone.size=48,64", *tiny, "run_dir=S"]
    assert typed(evaluate, *line) == 1
    assert "Traceback" in (tmp_path / "S" / "0" / "error.txt").read_text()
    assert set(scores(tmp_path / "S")) == {"1"}

    monkeypatch.setattr(FrozenPrefix, "compute", compute)
    assert typed(evaluate, *line) == 0
    assert not (tmp_path / "S" / "0" / "error.txt").exists()


@pytest.mark.slow
def test_a_sweep_grows_and_changes_and_never_mixes(typed, tmp_path, tiny, encoded):
    """What is done is found by its configuration, not by its number; what was there of something else stays."""
    (tmp_path / "S" / "1").mkdir(parents=True)
    (tmp_path / "S" / "1" / "notes.txt").write_text("mine")
    assert typed(evaluate, "-m", "seed=1,2", *tiny, "run_dir=S") == 0
    count = sum(encoded)
    first = scores(tmp_path / "S")
    assert len(first) == 2
    assert [path.name for path in (tmp_path / "S" / "1").iterdir()] == ["notes.txt"]

    assert typed(evaluate, "-m", "seed=5,2,1", "name=other", *tiny, "run_dir=S") == 0
    assert sum(encoded) == count + 15
    assert first.items() <= scores(tmp_path / "S").items()

    assert typed(evaluate, "-m", "seed=1,2", "data.resize=letterbox", *tiny, "run_dir=S") == 0
    assert len(scores(tmp_path / "S")) == 5


@pytest.mark.slow
def test_the_table_at_the_end_has_mean_and_spread_over_seeds(typed, tmp_path, tiny, capfd):
    assert typed(evaluate, "-m", "localise=argmax,window_5", "seed=1,2,3", *tiny, "run_dir=S") == 0
    table = capfd.readouterr().out.partition("6 jobs, scored on synthetic test")[2]
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in table.splitlines() if "│" in line]
    values = [100 * scores(tmp_path / "S")[number]["pck"]["all"]["image"]["0.1"] for number in "012"]
    mean = sum(values) / 3
    deviation = (sum((value - mean) ** 2 for value in values) / 2) ** 0.5
    assert [row[:2] for row in rows] == [["0, 1, 2", "argmax"], ["3, 4, 5", "window_5"]]
    assert rows[0][3] == f"{mean:.1f}±{deviation:.1f}"
    assert "standard deviation over 3 seeds" in table
    assert deviation > 0.05


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("checkpoint=RUN", "`checkpoint` goes on with one training run, and a sweep has many"),
        (
            "hydra/launcher=joblib",
            "`hydra/launcher` needs joblib, which is not installed: pip install 'semcorr[sweep]'",
        ),
        ("hydra/launcher=ray", "`hydra/launcher` needs ray, which is not installed"),
        ("hydra/launcher=submitit_slurm", "`hydra/launcher` needs submitit, which is not installed"),
    ],
)
def test_what_a_sweep_cannot_do_is_reported_before_it_starts(typed, tmp_path, tiny, capfd, monkeypatch, line, message):
    for module in ("joblib", "ray", "submitit"):
        monkeypatch.setitem(sys.modules, module, None)
    assert typed(train, "-m", "seed=1,2", line, *tiny, "run_dir=S") == 2
    assert message in capfd.readouterr().err
    assert not list((tmp_path / "S").glob("*/config.yaml"))


@pytest.mark.slow
def test_two_sweeps_do_not_share_a_directory_at_the_same_time(typed, tmp_path, tiny, capfd):
    (tmp_path / "S").mkdir()
    with FileLock(tmp_path / "S" / ".lock"):
        assert typed(evaluate, "-m", "seed=1,2", *tiny, "run_dir=S") == 2
    assert "another process runs the sweep in S" in capfd.readouterr().err
    (tmp_path / "S" / "1").mkdir(exist_ok=True)
    with FileLock(tmp_path / "S" / "1" / ".lock"):  # a worker of a sweep that is gone itself
        assert typed(evaluate, "-m", "seed=1,2", *tiny, "run_dir=S") == 2
    assert "another process runs the job in S/" in capfd.readouterr().err
    assert len(scores(tmp_path / "S")) == 1
    assert typed(evaluate, "-m", "seed=1,2", *tiny, "run_dir=S") == 0


@pytest.mark.slow
def test_the_line_in_a_sweeps_folder_is_that_of_its_jobs(typed, tmp_path, tiny, monkeypatch):
    """Hydra writes it before anything is known; one that is refused, before or meanwhile, leaves the other's."""
    written = tmp_path / "S" / "multirun.yaml"
    assert typed(evaluate, "-m", "seed=1,2", *tiny, "run_dir=S") == 0
    line = written.read_text()
    with FileLock(tmp_path / "S" / ".lock"):
        assert typed(evaluate, "-m", "seed=3,4", *tiny, "run_dir=S") == 2
    assert written.read_text() == line
    assert typed(evaluate, "-m", "seed=1,2", "localise=no_such", *tiny, "run_dir=S") == 2
    assert written.read_text() == line

    score = evaluate.evaluate

    def beside(cfg, cache):
        written.write_text("another's")
        return score(cfg, cache)

    monkeypatch.setattr(evaluate, "evaluate", beside)
    assert typed(evaluate, "-m", "seed=1,5", *tiny, "run_dir=S") == 0
    assert yaml.safe_load(written.read_text())["hydra"]["overrides"]["task"][0] == "seed=1,5"


LAUNCHERS = {
    "joblib": ["hydra/launcher=joblib"],
    "ray": ["hydra/launcher=ray"],
    "submitit": ["hydra/launcher=submitit_slurm", "hydra.launcher.cluster=local", "hydra.launcher.gpus_per_node=0"],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_workers_side_by_side_give_the_digits_of_one_after_another(tiny, tmp_path, launcher):
    """Four jobs; in a process of their own, which ends with all that a launcher started."""
    pytest.importorskip(launcher)
    sweep = [sys.executable, "-m", "semcorr.train", "-m", "finetune.blocks=0,1", "seed=1,2", *QUICK, *tiny]
    for options in (["run_dir=alone"], ["run_dir=beside", *LAUNCHERS[launcher]]):
        done = subprocess.run([*sweep, *options], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    assert len(scores(tmp_path / "alone")) == 4
    assert scores(tmp_path / "alone") == scores(tmp_path / "beside")
    began, ended = times(tmp_path / "beside")
    assert sorted(began)[1] < min(ended)  # the second had begun before the first ended


def test_a_launcher_does_not_run_the_jobs_of_another_program(tmp_path):
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})

    with pytest.raises(UserError, match="run train and evaluate alone"):
        Here().setup(hydra_context=None, task_function=print, config=config)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [0, 2])
def test_a_slurm_job_of_two_processes_has_one_outcome(tmp_path, fault):
    """`tasks_per_node`, a process per GPU: submitit has a result of each."""
    pytest.importorskip("submitit")
    launcher = Slurm(folder=str(tmp_path), cluster="local", tasks_per_node=2, timeout_min=5)
    launcher.config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})

    given = JobOutcome("job", fault, "why")

    assert list(launcher.map_jobs(lambda job, cache: job, [given])) == [
        given
    ]  # a lambda: workers cannot import this file
