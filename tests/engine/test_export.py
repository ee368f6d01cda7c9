"""python -m semcorr.export as typed: whole or not at all, and mistakes in a sentence."""

import shutil
import subprocess
import sys

import pytest
import torch
from exported_runs import QUICK
from exported_runs import no_graph as no_graph
from exported_runs import run as run
from exported_runs import runs as runs
from exported_runs import typed as typed
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from semcorr.evaluate import evaluate

pytestmark = pytest.mark.integration

# -- whole or not at all --


@pytest.mark.slow
def test_features_that_do_not_come_out_again_leave_no_file(typed, run, no_graph, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("semcorr.engine.export._run", lambda path, image: torch.zeros(1, 48, 8, 8).numpy())
    assert typed(run("lora"), "--format", "onnx", "--out", "new/b.onnx") == 2

    assert "gives other features than the run (they differ by 1.0e+00 of the largest)" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_interrupted_export_leaves_no_file_and_says_so(typed, run, tmp_path, capfd, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("semcorr.engine.export.relative_difference", interrupted)
    assert typed(run("lora"), "--format", "peft", "--out", "adapter") == 130
    assert capfd.readouterr().err.endswith("Interrupted. Nothing was written. Run the same line again\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("format", "out"), [("merged", "w.safetensors"), ("peft", "adapter")])
def test_what_is_there_is_replaced_only_by_force(typed, run, tmp_path, capfd, format, out):
    line = [run("lora"), "--format", format, "--out", out]
    assert typed(*line) == 0
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert typed(*line) == 2
    assert "exists. Replace it with --force" in capfd.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in written} == written

    assert typed(*line, "--force") == 0
    assert all(path.stat().st_mtime_ns > then for path, then in written.items())
    assert set(written) == {path for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize("same", [True, False])
def test_two_formats_share_the_file_of_the_head_or_are_refused_before_the_work(
    typed, run, tmp_path, capfd, monkeypatch, same
):
    trained, head, made = run("frozen", "head=bottleneck"), tmp_path / "head.safetensors", []
    assert typed(trained, "--out", "b.safetensors") == 0
    if not same:
        save_file({name: value + 1 for name, value in load_file(head).items()}, head)
    before = head.read_bytes()

    monkeypatch.setattr("semcorr.engine.export.export_onnx", lambda _, path, *__: made.append(path.touch()) or 0.0)
    assert typed(trained, "--format", "onnx", "--out", "b.onnx") == (0 if same else 2)
    assert (head.read_bytes() == before, len(made)) == (True, same)
    assert ("head.safetensors exists. Replace it with --force" in capfd.readouterr().err) != same

    assert typed(trained, "--format", "onnx", "--out", "b.onnx", "--force") == 0
    assert head.read_bytes() != before or same


# -- mistakes --
MISTAKES = {
    "RUN --format onxx": ["`--format` has no choice 'onxx'. Did you mean onnx?"],
    "RUN --which first": ["`--which` has no choice 'first'. There are best, last."],
    "RUN --size 64": ["--size goes with --format onnx"],
    "RUN --format onnx --size 60": ["multiples of 8 pixels", "got 60"],
    "RUN --format onnx --size big": ["a side in pixels, or HEIGHTxWIDTH", "got 'big'"],
    "RUN --format peft": ["Only a run that peft tuned", "finetune=lora"],
    "RUN --weights nowhere.pth": ["nowhere.pth does not exist"],
    "RUN --out weights.pth": ["--out must end with .safetensors for --format merged, got weights.pth"],
    "nowhere": ["nowhere/config.yaml does not exist. Give the run_dir of a training run."],
}


@pytest.mark.sampled(16)
@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_ends_in_a_user_error_and_exit_code_2(typed, run, tmp_path, capfd, line):
    trained = run("last_blocks")
    assert typed(*(trained if part == "RUN" else part for part in line.split())) == 2

    error = capfd.readouterr().err
    assert error.startswith("Error: ")
    assert all(part in error for part in MISTAKES[line]), error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_evaluation_names_the_run_that_it_scored(typed, run, config, tiny, tmp_path, capfd):
    trained = run("last_blocks")
    evaluate(config("evaluate", *tiny, *QUICK[-1:], "finetune.blocks=2", f"checkpoint={trained}"))
    assert typed(tmp_path / "run") == 2
    assert f"is not a training run (see its config.yaml). It scored {trained}" in capfd.readouterr().err


def test_another_base_is_refused(typed, run, tmp_path, capfd):
    other = tmp_path / "other"
    shutil.copytree(run("last_blocks"), other)
    cfg = OmegaConf.load(other / "config.yaml")
    cfg.seed = 7
    OmegaConf.save(cfg, other / "config.yaml")

    assert typed("other") == 2
    assert "was trained on vit_tiny_patch16_224 with weights sha256" in capfd.readouterr().err


# -- the program --


def test_help_comes_at_once():
    """It needs no torch: that alone would take seconds."""
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", "semcorr.export", "--help"], capture_output=True)

    assert done.returncode == 0
    assert b"--format" in done.stdout
    assert b"torch" not in done.stderr
