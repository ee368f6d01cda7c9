"""Going on with a run: where it was, and no further than its learning rate was laid out."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from semcorr.cli.compose import compose_config
from semcorr.core.errors import UserError
from semcorr.engine.checkpoints import load_checkpoint
from semcorr.engine.module import CorrespondenceModule
from semcorr.train import train

QUICK = ["finetune.blocks=1", "data.steps=3", "data.batch_size=4"]
LINE = [*QUICK, "head=bottleneck", "trainer.max_epochs=1", "scheduler=constant"]


@pytest.fixture
def first(config, tiny, tmp_path_factory) -> Path:
    """A run of `LINE`, trained when it is first asked for. None may change it."""
    run_dir = tmp_path_factory.getbasetemp() / "resume" / "first"
    if not (run_dir / "metrics.json").exists():
        train(config("train", *tiny, *LINE, f"run_dir={run_dir}"))
    return run_dir


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_no_two_batches_see_the_same_random_numbers_and_a_resumed_run_sees_them_again(
    config, tiny, monkeypatch, accumulate
):
    """Also where several batches make one step: three batches to an epoch, broken off in the second."""
    seeds, step = [], CorrespondenceModule.training_step

    def noted(module: CorrespondenceModule, batch) -> torch.Tensor:
        seeds.append(torch.initial_seed())
        if len(seeds) == 5:
            raise InterruptedError
        return step(module, batch)

    monkeypatch.setattr(CorrespondenceModule, "training_step", noted)
    cfg = config("train", *tiny, *QUICK, "trainer.max_epochs=2", f"trainer.accumulate_grad_batches={accumulate}")
    with pytest.raises(InterruptedError):
        train(cfg)
    cfg.checkpoint = cfg.run_dir
    train(cfg)

    place = [seed - 42 * 1_000_003 for seed in seeds]
    assert place == [0, 1, 2, 3, 4, 3, 4, 5]  # the last two again after the break


@pytest.mark.slow
def test_a_run_whose_rate_was_laid_out_for_fewer_steps_is_not_made_longer(config, tiny, tmp_path):
    """Three steps of an epoch; two more epochs would need nine. The run stays what it was."""
    train(config("train", *tiny, *QUICK, "scheduler=one_cycle", "trainer.max_epochs=1"))
    before = (tmp_path / "run" / "config.yaml").read_text()
    longer = config("train", *tiny, *QUICK, "scheduler=one_cycle", "trainer.max_epochs=3")
    longer.checkpoint = longer.run_dir

    with pytest.raises(UserError, match=r"laid out for 3 steps, and would have to last for 9\. .*scheduler=constant"):
        train(longer)

    assert (tmp_path / "run" / "config.yaml").read_text() == before


@pytest.mark.slow
def test_a_run_at_a_constant_rate_may_be_made_longer(config, tiny, tmp_path):
    line = [*tiny, *QUICK, "scheduler=constant"]
    train(config("train", *line, "trainer.max_epochs=1"))
    longer = config("train", *line, "trainer.max_epochs=3")
    longer.checkpoint = longer.run_dir

    train(longer)

    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 9


def test_a_run_may_start_from_the_weights_of_another(config, tiny, tmp_path, first):
    """It begins with them and trains them further; where it learns nothing it ends with them."""
    line = [*tiny, *LINE]
    before = load_checkpoint(first / "checkpoints" / "best.ckpt")["state_dict"]

    still = ["optimizer.lr=1e-30", "optimizer.backbone_lr=1e-30", "optimizer.weight_decay=0"]
    train(config("train", *line, *still, f"start_from={first}", f"run_dir={tmp_path / 'still'}"))
    train(config("train", *line, f"start_from={first}", f"run_dir={tmp_path / 'on'}"))

    unchanged, further = (
        load_checkpoint(tmp_path / name / "checkpoints" / "best.ckpt")["state_dict"] for name in ("still", "on")
    )
    assert before.keys() == unchanged.keys() == further.keys()
    assert all(torch.equal(before[name], unchanged[name]) for name in before)
    assert not any(torch.equal(before[name], further[name]) for name in before)


def test_a_run_that_cannot_be_started_from_is_refused_before_anything_is_written(config, tiny, tmp_path, first):
    for override, message in (
        ("start_from=absent", r"`start_from`: .*absent"),
        ("head=cosine", r"`start_from`: .*head"),
        ("start_from=3", r"`start_from` must be"),
    ):
        with pytest.raises(UserError, match=message):
            train(config("train", *tiny, *LINE, f"start_from={first}", f"run_dir={tmp_path / 'on'}", override))
        assert not (tmp_path / "on").exists(), override


def test_a_run_may_start_from_the_weights_of_one_with_another_loss(config, tiny, tmp_path):
    """Weights of a loss serve its training alone: here the one learns a temperature, and the other has none."""
    line = [*tiny, *QUICK, "head=bottleneck", "trainer.max_epochs=1", "scheduler=constant"]
    train(config("train", *line, "loss=gaussian_cross_entropy", "loss.learn=scalar"))
    first = load_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt")["state_dict"]
    assert any(name.startswith("loss.") for name in first)

    train(config("train", *line, "loss=dense", f"start_from={tmp_path / 'run'}", f"run_dir={tmp_path / 'on'}"))

    further = load_checkpoint(tmp_path / "on" / "checkpoints" / "best.ckpt")["state_dict"]
    assert {*further} == {name for name in first if not name.startswith("loss.")}


def compose_resumed(tmp_path, *line):
    """The configuration of a line that resumes the run, as the command composes it; its benchmark is the run's own."""
    return compose_config("train", [f"checkpoint={tmp_path / 'run'}", *line])


def test_a_resumed_run_has_the_configuration_that_it_began_with(config, tiny, tmp_path, first):
    """Also what decides which weights are kept, and what is scored: nothing of it is typed again."""
    line = [*tiny, *LINE]
    kept = ["monitor=val/std/pck@0.05", "keep_from=0.2", "corrupt=fog", "corrupt.severity=5", "name=own"]
    train(config("train", *line, *kept, "pose=adaptive", f"start_from={first}"))
    before = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    (tmp_path / "run" / "metrics.json").unlink()  # as where it was killed while it was scored

    metrics = train(compose_resumed(tmp_path))

    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()) == before
    assert metrics["split"] == "synthetic test"


def test_a_run_is_not_resumed_by_other_rules(config, tiny, tmp_path):
    line = [*tiny, *QUICK, "head=bottleneck", "trainer.max_epochs=1", "loss=pseudo_labels", "callbacks=ema_teacher"]
    train(config("train", *line))

    for typed in (
        "monitor=val/geo/pck@0.1",
        "keep_from=0.9",
        "start_from=other",
        "++callbacks.ema_teacher.momentum=0.5",
    ):
        key = typed.lstrip("+").partition("=")[0]
        with pytest.raises(UserError, match=rf"^`{key}`: .*last.ckpt was trained with {key}=.*Leave {key} out"):
            train(compose_resumed(tmp_path, typed))


@pytest.fixture
def copied(first, tmp_path) -> Path:
    """A copy of the finished run, as a test may change it."""
    shutil.copytree(first, tmp_path / "run")
    return tmp_path / "run"


def read_files(run: Path) -> dict[str, bytes]:
    """The files of a run, but for its lock."""
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_refused_resume_leaves_a_finished_run_as_it_was(tmp_path, copied):
    """Fewer epochs or steps than are trained, and a trial: its scores and its config.yaml stay."""
    path = copied / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    torch.save({**content, "epoch": 2, "global_step": 9}, path)
    before = read_files(copied)

    for typed, message in (
        ("trainer.max_epochs=1", r"^`trainer.max_epochs`: .*last.ckpt has trained 3 epochs, got 1. .*give 3 or more"),
        ("trainer.max_epochs=2", "has trained 3 epochs, got 2"),  # of which Lightning's own check is one off
        ("+trainer.max_steps=8", r"^`trainer.max_steps`: .*last.ckpt has trained 9 steps, got 8. .*give 9 or more"),
        ("trainer.fast_dev_run=true", r"^`trainer.fast_dev_run` .*cannot be resumed by it. Give"),
    ):
        epochs = [] if "max_epochs" in typed else ["trainer.max_epochs=3"]
        with pytest.raises(UserError, match=message):
            train(compose_resumed(tmp_path, typed, *epochs))
        assert read_files(copied) == before, typed


def test_a_run_that_has_lost_a_checkpoint_is_not_resumed(tmp_path, copied):
    """It would be trained from the start over what it has, or in vain where its best weights are gone."""
    checkpoints = copied / "checkpoints"
    for lost, message in (
        (
            ["last.ckpt"],
            r"^`checkpoint`: .*last.ckpt does not exist, .*best.ckpt is there: start_from=.*run run_dir=NEW",
        ),
        (["last.ckpt", "metrics.json"], r"last.ckpt does not exist"),
        (["last.ckpt", "metrics.json", "metrics.csv"], r"last.ckpt does not exist"),
        (["last.ckpt", "best.ckpt"], r"last.ckpt does not exist, .*Put it back"),
        (["best.ckpt"], r"^`checkpoint`: .*best.ckpt does not exist\. It holds the best weights so far"),
    ):
        kept = {}
        for name in lost:
            path = next(copied.rglob(name))
            kept[path] = path.read_bytes()
            path.unlink()
        before = read_files(copied)
        with pytest.raises(UserError, match=message):
            train(compose_resumed(tmp_path, "trainer.max_epochs=2"))
        assert read_files(copied) == before, lost
        for path, content in kept.items():
            path.write_bytes(content)

    (checkpoints / "best.ckpt").write_bytes((checkpoints / "best.ckpt").read_bytes()[:1000])
    before = read_files(copied)
    with pytest.raises(UserError, match=r"best\.ckpt is damaged"):
        train(compose_resumed(tmp_path, "trainer.max_epochs=2"))
    assert read_files(copied) == before


def test_a_run_that_was_broken_off_in_its_first_epoch_says_that_it_begins_again(tmp_path, copied, capsys):
    """Also one that has kept the weights of a validation before the end of the epoch."""
    expected = load_checkpoint(copied / "checkpoints" / "best.ckpt")["state_dict"]
    (copied / "checkpoints" / "last.ckpt").unlink()
    (copied / "metrics.json").unlink()
    (copied / "metrics.csv").write_text("step,epoch,val/all/pck@0.1\n2,0,0.5\n")

    train(compose_resumed(tmp_path))

    assert read_files(copied).keys() >= {"metrics.json", "checkpoints/last.ckpt"}
    assert "as no epoch of it has ended: the training begins again" in capsys.readouterr().out
    found = load_checkpoint(copied / "checkpoints" / "best.ckpt")["state_dict"]
    assert all(value.equal(expected[name]) for name, value in found.items())


def test_a_run_that_begins_again_and_is_broken_off_once_more_begins_again(tmp_path, copied, monkeypatch):
    """The best weights of the first attempt are gone with its scalars."""
    (copied / "checkpoints" / "last.ckpt").unlink()
    (copied / "metrics.json").unlink()
    (copied / "metrics.csv").write_text("step,epoch,val/all/pck@0.1\n2,0,0.5\n")
    with monkeypatch.context() as patch:
        patch.setattr(CorrespondenceModule, "training_step", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(compose_resumed(tmp_path))
    assert not (copied / "checkpoints" / "best.ckpt").exists()

    train(compose_resumed(tmp_path))


def test_best_weights_that_are_removed_while_a_run_trains_are_told(config, tiny, tmp_path, monkeypatch):
    """Such a run was validated, and is not said to have ended before."""
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    monkeypatch.setattr(CorrespondenceModule, "on_fit_end", lambda module: best.unlink(), raising=False)
    with pytest.raises(UserError, match=r"best\.ckpt, which this training has written, does not exist any more"):
        train(config("train", *tiny, *LINE))
