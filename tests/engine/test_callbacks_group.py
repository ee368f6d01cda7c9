"""What Lightning takes is honoured beside our own or refused: every argument of its Trainer, callbacks, loggers."""

import inspect
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from lightning import Callback, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.profilers import SimpleProfiler
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import OmegaConf
from torch.testing import assert_close

from semcorr.cli.compose import expand_list_overrides, merge_checkpoint_config
from semcorr.core.errors import UserError
from semcorr.engine.callbacks import TrainingProgressBar, checkpoint_callbacks
from semcorr.engine.checkpoints import read_checkpoint
from semcorr.engine.loggers import CSVScalarLogger, TensorBoardSideLogger
from semcorr.engine.run_config import check_config
from semcorr.engine.saved_config import read_run_config
from semcorr.engine.trainer import build_trainer
from semcorr.engine.trainer_options import INDEPENDENT_OPTIONS, check_numbers, check_trainer, is_ordinary
from semcorr.evaluate import evaluate
from semcorr.train import train

pytestmark = pytest.mark.integration


class OwnCPU(CPUAccelerator):
    """A user's."""


DDP = {"_target_": "lightning.pytorch.strategies.DDPStrategy", "find_unused_parameters": True}
HONOURED = {  # of the trainer: what is typed, and where it is then seen
    "accelerator": ({"_target_": f"{__name__}.OwnCPU"}, lambda made: type(made.accelerator).__name__ == "OwnCPU"),
    "strategy": (DDP, lambda made: isinstance(made.strategy, DDPStrategy)),
    "devices": (2, lambda made: made.num_devices == 2),
    "num_nodes": (2, lambda made: made.num_nodes == 2),
    "precision": ("bf16-mixed", lambda made: made.precision == "bf16-mixed"),
    "fast_dev_run": (2, lambda made: made.fast_dev_run == 2),
    "max_epochs": (5, lambda made: made.max_epochs == 5),
    "min_epochs": (2, lambda made: made.min_epochs == 2),
    "max_steps": (7, lambda made: made.max_steps == 7),
    "min_steps": (3, lambda made: made.min_steps == 3),
    "max_time": ("00:01:00:00", lambda made: any(type(each).__name__ == "Timer" for each in made.callbacks)),
    "limit_train_batches": (3, lambda made: made.limit_train_batches == 3),
    "limit_val_batches": (0.5, lambda made: made.limit_val_batches == 0.5),
    "limit_test_batches": (3, lambda made: made.limit_test_batches == 3),
    "limit_predict_batches": (3, lambda made: made.limit_predict_batches == 3),
    "val_check_interval": (0.5, lambda made: made.val_check_interval == 0.5),
    "check_val_every_n_epoch": (2, lambda made: made.check_val_every_n_epoch == 2),
    "num_sanity_val_steps": (2, lambda made: made.num_sanity_val_steps == 2),
    "log_every_n_steps": (3, lambda made: made.log_every_n_steps == 3),
    "enable_progress_bar": (True, lambda made: made.progress_bar_callback is not None),
    "enable_model_summary": (True, lambda made: any("ModelSummary" in type(e).__name__ for e in made.callbacks)),
    "accumulate_grad_batches": (2, lambda made: made.accumulate_grad_batches == 2),
    "gradient_clip_val": (0.5, lambda made: made.gradient_clip_val == 0.5),
    "gradient_clip_algorithm": ("value", lambda made: made.gradient_clip_algorithm == "value"),
    "deterministic": (True, lambda made: torch.are_deterministic_algorithms_enabled()),
    "benchmark": (True, lambda made: torch.backends.cudnn.benchmark),
    "inference_mode": (False, lambda made: made.test_loop.inference_mode is False),
    "profiler": ("simple", lambda made: isinstance(made.profiler, SimpleProfiler) and made.profiler.dirpath),
    "detect_anomaly": (True, lambda made: made._detect_anomaly),
    "sync_batchnorm": (True, lambda made: made._accelerator_connector._layer_sync is not None),
    "plugins": (
        [{"_target_": "lightning.fabric.plugins.environments.LightningEnvironment"}],
        lambda made: type(made._accelerator_connector.cluster_environment).__name__ == "LightningEnvironment",
    ),
    "enable_autolog_hparams": (False, lambda made: made.enable_autolog_hparams is False),
}
CHECKPOINTS = {"_target_": "lightning.fabric.plugins.TorchCheckpointIO"}
REFUSED = {
    "logger": False, "callbacks": [], "default_root_dir": "x", "barebones": True, "model_registry": "mine",
    "overfit_batches": 3, "reload_dataloaders_every_n_epochs": 1, "use_distributed_sampler": True,
    "enable_checkpointing": False,
}  # fmt: skip


def test_every_argument_of_the_trainer_is_one_or_the_other():
    names = {*inspect.signature(Trainer.__init__).parameters} - {"self"}

    assert names - {"model_registry"} <= HONOURED.keys() | REFUSED.keys()
    assert not HONOURED.keys() & REFUSED.keys()


@pytest.fixture
def training(config, tiny):
    return config("train", *tiny, "trainer.max_epochs=2")


@pytest.fixture
def _process_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a trainer sets for the whole process is undone; and somebody has started the processes of two nodes."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # so that it is restored
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.sampled(8)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("_process_as_before")
@pytest.mark.parametrize("key", HONOURED)
def test_an_option_of_the_trainer_is_seen_on_it(training, tmp_path, key):
    value, is_seen = HONOURED[key]
    OmegaConf.update(training, f"trainer.{key}", value, force_add=True)
    check_config(training)

    assert is_seen(build_trainer(training, tmp_path, callbacks=checkpoint_callbacks(tmp_path)))


def test_an_option_that_the_configuration_does_not_list_is_typed_like_any_other(config, tiny, tmp_path):
    trainer = made(config, tmp_path, *tiny, "trainer.enable_progress_bar=false", "trainer.limit_test_batches=3")

    assert trainer.progress_bar_callback is None
    assert trainer.limit_test_batches == 3


@pytest.mark.parametrize("key", REFUSED)
def test_an_option_that_a_run_settles_itself_is_refused(training, key):
    OmegaConf.update(training, f"trainer.{key}", REFUSED[key], force_add=True)

    with pytest.raises(UserError, match=rf"^`trainer\.{key}`: .+[.]$"):
        check_config(training) or check_trainer(training)


INDEPENDENT_VALUES = {
    "precision": ("32-true", "bf16-mixed", "16-mixed", 32, 16, None),
    "max_epochs": (1, 10**6),
    "gradient_clip_val": (None, 0, 0.5, 1e6),
    "accumulate_grad_batches": (1, 10**6),
    "log_every_n_steps": (None, 1, 10**6),
    "fast_dev_run": (False, True, 0, 1, 7),
    "num_sanity_val_steps": (None, -1, 0, 3),
    "use_distributed_sampler": (None, False),
    "enable_model_summary": (None, False, True),
    "enable_progress_bar": (None, False, True),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(8))
def test_lightning_takes_what_is_not_built_on_trial(config, tiny, seed):
    """Random choices of all independent options: a trial that is left out must never have refused."""
    trainer = config("evaluate", *tiny, "trainer=cpu", "trainer.val_check_interval=0.25").trainer
    chooser = random.Random(seed)
    for key in INDEPENDENT_OPTIONS:
        OmegaConf.update(trainer, key, chooser.choice(INDEPENDENT_VALUES[key]), force_add=True)
    check_numbers(OmegaConf.to_container(trainer))

    assert is_ordinary(trainer)
    assert instantiate(trainer, logger=False).num_devices == 1


@pytest.mark.parametrize("key", ["max_time", "strategy", "devices", "limit_test_batches", "accelerator", "profiler"])
def test_a_trainer_with_any_other_option_is_built_on_trial(config, tiny, key):
    trainer = config("evaluate", *tiny, "trainer=cpu", "trainer.val_check_interval=0.25").trainer
    OmegaConf.update(trainer, key, "other", force_add=True)

    assert not is_ordinary(trainer)


@pytest.mark.parametrize("node", [CHECKPOINTS, {"_target_": "lightning.pytorch.plugins.HalfPrecision"}])
def test_a_plugin_that_would_be_replaced_is_refused(training, node):
    OmegaConf.update(training, "trainer.plugins", node, force_add=True)

    with pytest.raises(UserError, match=r"^`trainer\.plugins`: "):
        check_config(training)


def made(config, tmp_path, *line: str) -> Trainer:
    cfg = config("train", *expand_list_overrides(line))
    check_config(cfg)
    return build_trainer(cfg, tmp_path, callbacks=checkpoint_callbacks(tmp_path))


def test_callbacks_stand_beside_ours(config, tiny, tmp_path):
    monitor = "+callbacks.lr={_target_: lightning.pytorch.callbacks.LearningRateMonitor, logging_interval: epoch}"
    trainer = made(
        config,
        tmp_path,
        *tiny,
        "callbacks=early_stopping",
        "callbacks.early_stopping.patience=7",
        monitor,
        "trainer.enable_progress_bar=true",
    )

    (stopping,) = (each for each in trainer.callbacks if isinstance(each, EarlyStopping))
    assert stopping.patience == 7
    assert {each.logging_interval for each in trainer.callbacks if isinstance(each, LearningRateMonitor)} == {
        "step",
        "epoch",
    }
    assert any(isinstance(each, TrainingProgressBar) for each in trainer.callbacks)


@pytest.mark.parametrize(
    ("script", "line", "monitor"),
    [
        ("train", ["monitor=val/geo/pck@0.05"], "val/geo/pck@0.05"),
        ("train", [], "val/all/pck@0.1"),
        ("evaluate", [], "val/all/pck@0.1"),
    ],
)
def test_early_stopping_reads_the_score_that_the_best_weights_are_kept_by(config, tiny, script, line, monitor):
    cfg = config(script, *tiny, "callbacks=early_stopping", *line)

    assert cfg.callbacks.early_stopping.monitor == monitor


NOTED: list[dict[str, torch.Tensor]] = []


class NotedWeights(Callback):
    """The trained weights after each step."""

    def __init__(self) -> None:
        NOTED.clear()

    def on_train_batch_end(self, trainer, pl_module, *_):
        NOTED.append({name: value.clone() for name, value in pl_module.trainable_state_dict().items()})


def test_averaged_weights_are_saved_scored_and_gone_on_with(config, tiny, tmp_path):
    """Lightning's: half of the average of before, and half of the weights of a step."""
    average = ["callbacks=averaged_weights", "callbacks.average.decay=0.5"]
    line = [*tiny, *average, f"+callbacks.note._target_={__name__}.NotedWeights"]
    line += ["finetune.blocks=1", "data.steps=3", "data.batch_size=2", "optimizer.backbone_lr=1e-3"]
    line += ["scheduler=constant"]
    metrics = train(config("train", *line, "trainer.max_epochs=2"))

    first, *steps = NOTED
    expected = first
    for weights in steps:
        expected = {name: 0.5 * expected[name] + 0.5 * weights[name] for name in expected}
    saved = read_checkpoint(tmp_path / "run", "last")
    assert len(steps) == 5
    assert saved["state_dict"].keys() == saved["current_model_state"].keys() == expected.keys()
    for name, value in expected.items():
        assert_close(saved["state_dict"][name], value)
        assert torch.equal(saved["current_model_state"][name], steps[-1][name])
        assert not torch.equal(value, steps[-1][name])
    line = ["finetune.blocks=1", "protocol=unified", f"checkpoint={tmp_path / 'run'}", f"run_dir={tmp_path / 'again'}"]
    assert evaluate(config("evaluate", *tiny, *line))["pck"] == metrics["pck"]


@pytest.mark.slow
def test_averaged_weights_are_resumed(config, tiny, tmp_path):
    average = ["callbacks=averaged_weights", "callbacks.average.decay=0.5"]
    line = [*tiny, *average, "finetune.blocks=1", "data.steps=3", "data.batch_size=2"]
    line += ["scheduler=constant", "optimizer.backbone_lr=1e-3"]
    train(config("train", *line, "trainer.max_epochs=2", f"run_dir={tmp_path / 'whole'}"))
    train(config("train", *line, "trainer.max_epochs=1"))
    longer = config("train", *line, "trainer.max_epochs=2")
    longer.checkpoint = longer.run_dir

    train(longer)

    whole, resumed = (read_checkpoint(tmp_path / name, "last") for name in ("whole", "run"))
    for key in ("state_dict", "current_model_state"):
        for name, value in whole[key].items():
            assert_close(resumed[key][name], value)


def test_a_progress_bar_of_ones_own_takes_the_place_of_ours(config, tiny, tmp_path):
    trainer = made(config, tmp_path, *tiny, "+callbacks.bar._target_=lightning.pytorch.callbacks.TQDMProgressBar")

    assert isinstance(trainer.progress_bar_callback, TQDMProgressBar)
    bar = "+callbacks.bar._target_=lightning.pytorch.callbacks.TQDMProgressBar"
    with pytest.raises(UserError, match=r"`trainer\.enable_progress_bar` is false, and one of `callbacks`"):
        made(config, tmp_path, *tiny, bar, "trainer.enable_progress_bar=false")


class Counted(Callback):
    batches = 0

    def on_test_batch_end(self, *args: object, **kwargs: object) -> None:
        Counted.batches += 1


def test_an_evaluation_calls_a_users_callbacks(config, tiny):
    evaluate(config("evaluate", *tiny, f"+callbacks.mine._target_={__name__}.Counted"))

    assert Counted.batches > 0


@pytest.mark.parametrize(
    "line", ["logger=[csv,tensorboard]", "+logger.second._target_=semcorr.engine.loggers.build_tensorboard_logger"]
)
def test_several_loggers_write_side_by_side(config, tiny, tmp_path, line):
    kinds = [type(each) for each in made(config, tmp_path, *tiny, line).loggers]

    assert kinds == [CSVScalarLogger, TensorBoardSideLogger]


def test_a_logger_of_lightning_is_given_no_more_than_it_takes(config, tiny, tmp_path):
    line = "+logger.mine={_target_: lightning.pytorch.loggers.TensorBoardLogger, name: x}"
    loggers = made(config, tmp_path, *tiny, "logger=tensorboard", line).loggers

    assert [isinstance(each, TensorBoardLogger) for each in loggers] == [False, True, True]


def save(cfg, folder: Path) -> None:
    content = OmegaConf.to_container(cfg, resolve=True)
    content["provenance"] = {"backbone": "x", "weights_sha256": None}
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(content))


def test_a_saved_callback_is_called_only_where_it_is_installed_or_typed(config, tiny, tmp_path):
    foreign = "+callbacks.mine._target_=os.system"
    save(config("train", *tiny, "callbacks=early_stopping", foreign), tmp_path / "old")
    line = [f"checkpoint={tmp_path / 'old'}"]

    assert read_run_config(tmp_path / "old").callbacks == {}
    with pytest.raises(UserError, match=r"callbacks\.mine\._target_.* is 'os\.system', which no installed file"):
        merge_checkpoint_config(config("train", *line), line)
    assert merge_checkpoint_config(config("evaluate", *line), line).callbacks == {}


def test_a_run_that_goes_on_has_its_callbacks(config, tiny, tmp_path):
    save(config("train", *tiny, "callbacks=early_stopping", "logger=tensorboard"), tmp_path / "old")
    line = [f"checkpoint={tmp_path / 'old'}"]

    assert merge_checkpoint_config(config("train", *line), line).callbacks.early_stopping.patience == 3
