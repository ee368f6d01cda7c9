"""The scripts as they are: torchrun over two processes, SLURM's own with a stand-in for its queue, W&B's report."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT
from test_sweep import scores

SCRIPTS = ROOT / "scripts"
QUICK = ["data.steps=2", "data.batch_size=2", "trainer.max_epochs=1"]
TWO = [*QUICK, "trainer.accelerator=cpu", "trainer.precision=32-true"]


def run(command: list, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def data(tiny) -> list[str]:
    return [each for each in tiny if each != "trainer=cpu"]


@pytest.mark.slow
def test_torchrun_runs_each_job_of_a_sweep_on_two_processes(data, tmp_path):
    """A frozen job has the digits of one process; started again nothing is done."""
    line = ["-m", "finetune.blocks=0,1", *data, "run_dir=S"]
    done = run([SCRIPTS / "torchrun.sh", "train", *line, *TWO], tmp_path, PROCESSES="2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Sweep of 2 jobs in S: 0 done before") == 1
    assert done.stdout.count("2 jobs, scored on synthetic test") == 1
    found = scores(tmp_path / "S")
    assert len(found) == 2

    alone = run([sys.executable, "-m", "semcorr.train", "finetune.blocks=0", *data, *QUICK, "run_dir=A"], tmp_path)
    assert alone.returncode == 0, alone.stderr[-3000:]
    assert found["0"]["pck"] == json.loads((tmp_path / "A" / "metrics.json").read_text())["pck"]

    again = run([SCRIPTS / "torchrun.sh", "train", *line, *TWO], tmp_path, PROCESSES="2")
    assert again.returncode == 0, again.stderr[-3000:]
    assert "Sweep of 2 jobs in S: 2 done before, 0 half done, 0 to do" in again.stdout


@pytest.mark.slow
def test_lightning_starts_the_other_process_of_each_job_itself(data, tmp_path):
    """trainer=ddp in a sweep, without torchrun: the second process repeats the job, not the sweep."""
    line = ["-m", "finetune.blocks=1", "seed=1,2", *data, "trainer=ddp", "trainer.devices=2", *TWO, "run_dir=S"]
    done = run([sys.executable, "-m", "semcorr.train", *line], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(scores(tmp_path / "S")) == 2


def test_slurm_goes_back_into_the_queue_before_its_time_is_over(tmp_path):
    """torchrun.sh and scontrol are stand-ins: what is asked of them is what counts."""
    (tmp_path / "torchrun.sh").write_text('echo "$PROCESSES $*" > asked; kill -USR1 $PPID; sleep 0.5\n')
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "$*" > queued\n')
    (tmp_path / "scontrol").chmod(0o755)
    run(
        ["bash", SCRIPTS / "slurm.sh", "train", "-m", "seed=1,2"],
        tmp_path,
        PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        SEMCORR_SCRIPTS=str(tmp_path),
        SLURM_SUBMIT_DIR=str(tmp_path),
        SLURM_JOB_ID="17",
        SLURM_GPUS_ON_NODE="4",
    )
    assert (tmp_path / "asked").read_text() == "4 train -m seed=1,2\n"
    assert (tmp_path / "queued").read_text() == "requeue 17\n"


def test_slurm_hands_on_the_exit_code(tmp_path):
    (tmp_path / "torchrun.sh").write_text("exit 2\n")
    done = run(["bash", SCRIPTS / "slurm.sh", "train"], tmp_path, SEMCORR_SCRIPTS=str(tmp_path))
    assert done.returncode == 2


def test_the_dashboard_is_printed_where_there_is_no_key(tmp_path):
    pytest.importorskip("wandb_workspaces")
    done = run([sys.executable, SCRIPTS / "wandb_dashboard.py", "semcorr"], tmp_path, WANDB_API_KEY="")
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)
    for key in ("val/geo/pck@0.05", "test/categories", "val/matches", "cost/images_per_second", "^lr-.*"):
        assert key in done.stdout
    assert "No WANDB_API_KEY" in done.stderr


def test_the_dashboard_says_what_to_install(tmp_path):
    (tmp_path / "wandb_workspaces").mkdir()
    (tmp_path / "wandb_workspaces" / "__init__.py").write_text("raise ImportError\n")
    done = run([sys.executable, SCRIPTS / "wandb_dashboard.py", "semcorr"], tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert "pip install 'semcorr[dashboard]'" in done.stderr
