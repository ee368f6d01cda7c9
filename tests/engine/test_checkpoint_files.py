"""Checkpoints are whole or not there; a damaged one is named, and never gives a number."""

import resource
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from random_damage import damage
from repository import SMALL

from semcorr.core.errors import UserError
from semcorr.engine.build import build_training
from semcorr.engine.callbacks import checkpoint_callbacks, refuse_to_replace
from semcorr.engine.checkpoints import CheckpointFiles, load_checkpoint, load_trained, read_checkpoint
from semcorr.engine.known_targets import conf_dir
from semcorr.engine.resume import resume_training
from semcorr.engine.run_dir import checkpoint_path
from semcorr.engine.saved_config import begin_run
from semcorr.engine.trainer import build_trainer
from semcorr.train import train

pytestmark = pytest.mark.integration

LINE = ["data=synthetic", *SMALL, "data.workers=0", "backbone=tiny", "trainer=cpu", "finetune.blocks=1",
        "data.steps=1", "data.batch_size=2", "trainer.max_epochs=2"]  # fmt: skip


def configuration(creatures: Path, run: Path, *more: str):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("train", [*LINE, f"data.root={creatures}", f"run_dir={run}", *more])


@pytest.fixture(scope="module")
def trained(creatures, tmp_path_factory) -> Path:
    """Two epochs of one step."""
    run = tmp_path_factory.mktemp("trained") / "run"
    train(configuration(creatures, run))
    return run


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of its own."""
    return shutil.copytree(trained, tmp_path / "copy")


@pytest.fixture
def begun(creatures, run):
    """The module, trainer and data of the run, as they are when it is gone on with."""
    cfg = configuration(creatures, run)
    module, data, _ = build_training(cfg)
    return cfg, module, build_trainer(cfg, run, True, callbacks=checkpoint_callbacks(run)), data


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process may be larger than 64 KB: what a disk is that has no more room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def equal(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.equal(b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return a == b


# -- writing --


def test_a_checkpoint_that_does_not_fit_on_the_disk_leaves_the_one_before(tmp_path, small_files) -> None:
    files, path = CheckpointFiles({}), tmp_path / "checkpoints" / "last.ckpt"
    files.save_checkpoint({"epoch": 1}, path)
    before = path.read_bytes()

    with pytest.raises(UserError, match=r"`run_dir`: .*/last\.ckpt cannot be written \(File too large\). Free some"):
        files.save_checkpoint({"epoch": 2, "weights": torch.zeros(100_000)}, path)

    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["last.ckpt"]


def test_nothing_of_a_checkpoint_goes_through_the_folder_for_temporary_files(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))

    CheckpointFiles({"seed": 1}).save_checkpoint({"epoch": 1}, tmp_path / "run" / "best.ckpt")

    content = torch.load(tmp_path / "run" / "best.ckpt", weights_only=True)
    assert content == {"epoch": 1, "trained_as": {"seed": 1}}


@pytest.mark.slow
def test_a_run_killed_between_its_two_checkpoints_ends_with_the_same_bytes(creatures, trained, tmp_path, monkeypatch):
    """The best of an epoch is written, the last is not. Gone on with in another place, too."""
    save, written = CheckpointFiles.save_checkpoint, []

    def save_until_killed(self, checkpoint, path, storage_options=None) -> None:
        written.append(Path(path).name)
        if written.count("last.ckpt") == 2:
            raise InterruptedError
        save(self, checkpoint, path)

    monkeypatch.setattr(CheckpointFiles, "save_checkpoint", save_until_killed)
    with pytest.raises(InterruptedError):
        train(configuration(creatures, tmp_path / "there"))
    monkeypatch.setattr(CheckpointFiles, "save_checkpoint", save)
    cfg = configuration(creatures, (tmp_path / "there").rename(tmp_path / "here"))
    cfg.checkpoint = cfg.run_dir
    train(cfg)

    for which in ("best", "last"):
        assert checkpoint_path(tmp_path / "here", which).read_bytes() == checkpoint_path(trained, which).read_bytes()


# -- reading --


@pytest.mark.parametrize("which", ["best", "last"])
@pytest.mark.parametrize("seeds", [range(120), pytest.param(range(120, 620), marks=pytest.mark.slow)])
def test_random_damage_is_refused_or_has_changed_nothing(run, which, seeds) -> None:
    path = checkpoint_path(run, which)
    whole, expected = path.read_bytes(), load_checkpoint(path)
    refused = []
    for seed in seeds:
        path.write_bytes(damage(whole, seed))
        try:
            found = load_checkpoint(path)
        except UserError as error:
            refused.append(str(error))
        else:
            assert equal(found, expected), seed
    print(f"{which}: of {len(seeds)}, {len(refused)} refused, {len(seeds) - len(refused)} with the same content")
    assert len(refused) > 0.75 * len(seeds)
    assert all(f"{path} is damaged (" in output and "\n" not in output for output in refused)


def test_one_bit_of_one_weight_is_noticed(run) -> None:
    """PyTorch itself reads it."""
    path = checkpoint_path(run)
    with zipfile.ZipFile(path) as archive:
        weights = max(archive.infolist(), key=lambda record: record.file_size)
    content = bytearray(path.read_bytes())
    content[weights.header_offset + 500] ^= 1
    path.write_bytes(content)
    torch.load(path, weights_only=True)

    with pytest.raises(UserError, match=r"best\.ckpt is damaged \(the checksum of its record archive/data/"):
        read_checkpoint(run)


def test_a_small_file_that_becomes_large_in_memory_is_refused(run, tmp_path) -> None:
    path = checkpoint_path(run)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 24))

    with pytest.raises(UserError, match="its records are compressed"):
        read_checkpoint(run)


WRONG = {
    "a list": (lambda content: [content], "holds a list, not a dictionary"),
    "no weights": (lambda content: content.pop("state_dict") and content, "holds no `state_dict` of tensors"),
    "weights by number": (lambda content: {**content, "state_dict": {3: torch.zeros(1)}}, "by the name 3"),
    "text": (lambda content: {**content, "state_dict": {"a": "b"}}, "holds no `state_dict` of tensors"),
    "no base": (lambda content: content.pop("base") and content, "does not say in `base`"),
    "half a base": (lambda content: {**content, "base": {"backbone": "tiny"}}, "does not say in `base`"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_checkpoint_of_ours_is_a_user_error(run, what) -> None:
    change, message = WRONG[what]
    path = checkpoint_path(run)
    torch.save(change(torch.load(path, weights_only=True)), path)

    with pytest.raises(UserError) as error:
        read_checkpoint(run)

    assert str(error.value).startswith(f"`checkpoint`: {path} is damaged (")
    assert message in str(error.value)
    assert str(error.value).endswith("Take another copy of it, or train again.")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(run, value) -> None:
    path = checkpoint_path(run)
    content = torch.load(path, weights_only=True)
    name, weights = next(iter(content["state_dict"].items()))
    weights.view(-1)[0] = value
    torch.save(content, path)

    with pytest.raises(UserError, match=rf"best\.ckpt: 1 of the {weights.numel()} numbers in {name} are not finite"):
        read_checkpoint(run)


@pytest.mark.parametrize("content", [b"", b"PK", b"\x80\x02}q\x00.", bytes(1000)])
def test_what_is_no_archive_is_a_user_error(run, content) -> None:
    checkpoint_path(run).write_bytes(content)

    with pytest.raises(UserError, match=r"best\.ckpt is damaged \(.+\)\. Take another copy"):
        read_checkpoint(run)


# -- loading, and going on --


def test_weights_of_other_shapes_or_kinds_are_named(run, begun) -> None:
    content = torch.load(checkpoint_path(run), weights_only=True)
    name, value = max(content["state_dict"].items(), key=lambda item: item[1].ndim)
    for other in (value[:1], value.double(), value.to(torch.int64)):
        torch.save({**content, "state_dict": {**content["state_dict"], name: other}}, checkpoint_path(run))
        with pytest.raises(UserError, match=rf"its weights {name} are \[.+\] of \w+, this run's are \[.+\] of float32"):
            load_trained(begun[1], run)


def test_weights_of_another_run_than_its_config_are_not_scored(run, begun) -> None:
    """Two runs in one directory: seed 42's weights beside seed 7's configuration."""
    saved = OmegaConf.load(run / "config.yaml")
    saved.seed = 7
    OmegaConf.save(saved, run / "config.yaml")

    with pytest.raises(UserError, match=r"was trained with seed=42, and .*config\.yaml says 7: they are of two runs"):
        load_trained(begun[1], run)


@pytest.mark.parametrize(("key", "value"), [("seed", 7), ("optimizer.lr", 0.5), ("data.steps", 9)])
def test_a_run_is_not_gone_on_with_by_other_settings(run, begun, key, value) -> None:
    cfg, *built = begun
    OmegaConf.update(cfg, key, value)
    with pytest.raises(UserError, match=rf"`{key}`: .*last\.ckpt was trained with {key}=.+ Leave {key} out, or train"):
        resume_training(cfg, *built)


def test_a_run_is_gone_on_with_in_another_place_and_at_another_speed(run, begun) -> None:
    cfg, *built = begun
    for key, value in {
        "data.root": "elsewhere",
        "data.workers": 3,
        "data.cache_gb": 1,
        "backbone.weights": "w",
        "finetune.block_weights": "w",
    }.items():
        OmegaConf.update(cfg, key, value)
    assert resume_training(cfg, *built) == str(checkpoint_path(run, "last"))


def test_what_a_run_cannot_go_on_from_is_a_user_error_before_it_starts(run, begun) -> None:
    """Of last.ckpt every part that Lightning reads, taken away or made something else."""
    path = checkpoint_path(run, "last")
    whole = torch.load(path, weights_only=True)
    state = whole["optimizer_states"][0]
    moment = {key: {**each, "exp_avg": torch.zeros(7)} for key, each in state["state"].items()}
    wrong = {f"no {key}": {k: v for k, v in whole.items() if k != key} for key in whole if key != "hparams_name"}
    del wrong["no trained_as"]  # of before
    wrong |= {
        "epoch": {**whole, "epoch": "2"},
        "steps": {**whole, "global_step": -1},
        "loops": {**whole, "loops": {}},
        "progress": {**whole, "loops": {"fit_loop": {**whole["loops"]["fit_loop"], "epoch_progress": 3}}},
        "callbacks": {**whole, "callbacks": {}},
        "schedule": {**whole, "lr_schedulers": [{}]},
        "schedules": {**whole, "lr_schedulers": [3]},
        "no optimizer": {**whole, "optimizer_states": []},
        "another optimizer": {**whole, "optimizer_states": [{"state": {}, "param_groups": []}]},
        "moments": {**whole, "optimizer_states": [{**state, "state": moment}]},
    }
    for what, content in wrong.items():
        torch.save(content, path)
        with pytest.raises(UserError, match=r"last\.ckpt is damaged \("):
            print(what, resume_training(*begun))


def test_what_another_configuration_has_left_goes_before_a_run_begins_there(run, begun) -> None:
    """A longer run keeps its scalars, and is unfinished until it is scored."""
    cfg, module, _, _ = begun
    text = (run / "config.yaml").read_text()
    cfg.run_dir = OmegaConf.load(run / "config.yaml").run_dir
    begin_run(cfg, module.backbone, run, resumes=True)
    assert (run / "config.yaml").read_text() == text
    assert (run / "metrics.json").is_file()

    cfg.trainer.max_epochs = 3
    begin_run(cfg, module.backbone, run, resumes=True)

    left = {path.name for path in run.iterdir()}
    assert left == {"config.yaml", "metrics.csv", "checkpoints"}


def test_an_evaluation_is_not_written_over_a_training_run(run) -> None:
    with pytest.raises(UserError, match=r"holds a training run, whose config\.yaml and scores would be replaced"):
        refuse_to_replace(run)
