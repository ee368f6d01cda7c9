"""Lines that cannot be meant end in one sentence and exit code 2, before anything is read, drawn or written."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from semcorr import evaluate, train
from semcorr.cli.compose import expand_list_overrides, register_readouts
from semcorr.cli.errors import user_message
from semcorr.cli.hydra_app import check_run
from semcorr.cli.typed_line import check_line, quote_setting
from semcorr.core.errors import UserError
from semcorr.engine import build as run
from semcorr.engine.known_targets import conf_dir
from semcorr.engine.run_config import check_config
from semcorr.engine.run_dir import flatten_config

pytestmark = pytest.mark.integration

BASE = ["backbone=tiny", "trainer=cpu", "data=spair", "data.root=nowhere", "protocol=semcorr"]
WRONG = [
    ("finetune.blocks=two", "`finetune.blocks` must be a whole number, got 'two'"),
    ("backbone.layers=3", "`backbone.layers` must be a list, got 3"),
    ("localise.window={a: 1}", "`localise.window` must be a whole number"),
    ("localise.window=4", "`localise.window` must be odd and positive, got 4"),
    ("augment.flip=80", "`augment.flip` must be between 0"),
    ("optimizer.lr='1e-3'", "`optimizer.lr` must be a number"),
    ("+data.tset=1", "`data.tset` is not an option of `data`"),
    ("+trainer.limit_test_batch=3", "Did you mean trainer.limit_test_batches"),
    ("trainer.limit_test_batchs=3", "Did you mean +trainer.limit_test_batches"),
    ("trainer.logger=false", "`trainer.logger`: loggers are chosen by `logger`"),
    ("trainer.callbacks=[]", "`trainer.callbacks`: callbacks are given by `callbacks`"),
    ("trainer.overfit_batches=3", "Give trainer.limit_train_batches=N"),
    ("localise.outside=true", "Put + before it: +localise.outside=VALUE"),
    ("optimizer.lr_x=3", "unknown config key `optimizer.lr_x`. Did you mean optimizer.lr"),
    ("+localise.windw=3", "Did you mean localise.window?"),
    ("+backbone.depht=3", "Did you mean backbone.depth?"),
    ("++head.foo=1", "`head.foo` is not an option of `head`"),
    ("data.rot=x", "unknown config key `data.rot`. Did you mean data.root"),
    ("backbone=dino2", "`backbone` has no choice 'dino2'. Did you mean dinov2"),
    ("localise=softargmax", "Did you mean soft_argmax"),
    ("localise=window_4", "a window must be odd and positive"),
    ("logger=[csv,wanb]", "`logger` has no choice 'wanb'. Did you mean wandb?"),
    ("backbon=dinov2", "unknown config key `backbon`. Did you mean backbone?"),
    ("+backbon=dinov2", "nothing reads `backbon`. Did you mean backbone?"),
    ("~head", "a run needs `head`"),
    ("loss=distillation ~loss.weights", "`loss` needs `weights`. Give +loss.weights=VALUE."),
    ("~loss._target_", "an option is not taken out but given"),
    ("~optimizer.lr", "an option is not taken out but given"),
    ("loss=null", "`loss` is chosen by name"),
    ("callbacks=[1]", "`callbacks` is chosen by name"),
    ("data.root=", "`data.root=` has no value"),
    ("seed==3", "Give seed=3"),
    ("seed", "`seed` has no value. Give seed=VALUE."),
    ("seed=3 seed=4", "holds several settings in one argument"),
    ("--multirn", "unknown flag `--multirn`. Did you mean --multirun?"),
    ("compile=indctor", "`compile` must be a backend of torch.compile"),
    ("name=null", "`name` must be text"),
    ("checkpoint=3", "`checkpoint` must be text"),
    ("test.root=x", "data@test=NAME"),
    ("trainer.strategy=dpp", "`trainer`: Lightning refuses these options"),
    ("+callbacks.x={_target_: my.absent}", "there is no 'my.absent'"),
    ("+callbacks.x={_target_: lightning.pytorch.callbacks.EarlyStopping}", "`callbacks.x` needs `monitor`"),
    ("-m seed=1,2 backbone=tiny,dino2", "`backbone` has no choice 'dino2'"),
    ("-m augment.flip=0.5,80", "`augment.flip` must be between 0"),
    ("logger=wandb logger.project=team/x", "`logger.project` must be a name of at most 128 characters"),
    ("head._target_=my.Head", "there is no 'my.Head'"),
    ("backbone.upsample=3", "`backbone.upsample` must be "),
    ("backbone.upsample=true", "`backbone.upsample` must be "),
    ("backbone.upsampl=anyup", "Did you mean backbone.upsample"),
    ("backbone.upsample.factor=3", "An upsampler is chosen first: backbone.upsample=NAME."),
    ("corrupt.severity=2", "unknown config key `corrupt.severity`. A corruption is chosen first: corrupt=NAME."),
    ("-m corrupt=fog_5 corrupt.sed=2", "unknown config key `corrupt.sed`. Did you mean corrupt.seed"),
    ("corrupt=fog_0", "`corrupt.severity` must be between 1 and 5, got '0'"),
    ("corrupt=fog_3.0", "`corrupt.severity` must be between 1 and 5, got '3.0'"),
    ("corrupt=gaussian_noise_03", "`corrupt.severity` must be between 1 and 5, got '03'"),
    ("corrupt=fog_high", "`corrupt.severity` must be between 1 and 5, got 'high'"),
    ("-m corrupt=fog_1,fog_0", "`corrupt.severity` must be between 1 and 5, got '0'"),
    ("corrupt=[fog,snow]", "`corrupt` is one choice, corrupt=NAME. Several are a sweep: -m corrupt=NAME,NAME"),
    ("-m backbone.upsample=null,joint_bilateral", "a sweep is over names. Give null a line of its own"),
    ("corrupt=none_3", "`corrupt` has no choice 'none_3'. Did you mean none"),
    ("-m corrupt=fog_1,fog_9", "`corrupt.severity` must be between 1 and 5, got 9"),
]
HARD = ["a b", "a,b", "a (1)", "a=b", "münchen/ä", "it's", 'say "x"', "[1]", "{a}", "x#y!", "a\\", "tab\tx", "50%"]


class ReachedError(BaseException):
    """The line has passed every check."""


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """The exit code of a line; 0 if it comes as far as the data."""

    def benchmark(*_: object) -> None:
        raise ReachedError

    def outcome(verb, line: list[str]) -> int:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(run, "build_datamodule", benchmark)
        try:
            return verb.main(line)
        except ReachedError:
            return 0

    return outcome


@pytest.mark.sampled(8)
@pytest.mark.parametrize(("line", "message"), WRONG, ids=[line for line, _ in WRONG])
def test_the_error_is_reported_and_nothing_is_left(typed, tmp_path, capfd, line, message):
    parts = line.split(" ") if line.startswith("-m") or "project" in line or " ~" in line else [line]

    assert typed(train, [*BASE, *parts]) == 2

    error = capfd.readouterr().err
    assert message in error
    assert ("Traceback" in error, error.count("Error: ")) == (False, 1)
    assert [*tmp_path.rglob("*")] == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("+loss.x=1", "Error: `+loss.x=1`: nothing reads `loss`. There are backbone, "),
        ("feature_dropout=0.1", "Error: unknown config key `feature_dropout`. See the keys with --cfg job."),
        ("kap=treu", "Error: `kap` must be true or false, got 'treu'"),
        ("backbone=dinov22", "Error: `backbone` has no choice 'dinov22'. Did you mean dinov2 or "),
        ("seed=x", "Error: `seed` must be a whole number, between 0 and 4294967295, got 'x'"),
    ],
)
def test_evaluate_tells_what_it_does_not_take_and_leaves_nothing(typed, tmp_path, capfd, line, message):
    assert typed(evaluate, [*BASE, line]) == 2
    error = capfd.readouterr().err
    assert message in error
    assert ("Traceback" in error, error.count("Error: ")) == (False, 1)
    assert [*tmp_path.rglob("*")] == []


@pytest.mark.parametrize("value", HARD)
def test_a_path_that_hydra_does_not_take_is_quoted_so_that_it_does(value):
    remedy = quote_setting("run_dir", value)

    assert OverridesParser.create().parse_override(remedy).value() == value
    check_line([remedy], "train", conf_dir())
    if remedy != f"run_dir={value}":
        with pytest.raises(UserError) as error:
            check_line([f"run_dir={value}"], "train", conf_dir())
        assert "ive " in str(error.value)


def test_of_two_values_of_a_key_the_last_counts_and_this_is_reported(caplog):
    check_line(["seed=1", "seed=2"], "train", conf_dir())
    assert "`seed` is given twice: seed=2 counts, not seed=1" in caplog.text


def test_flags_may_stand_anywhere():
    assert check_line(["seed=1,2", "-m", "kap=true"], "evaluate", conf_dir()) == ["-m", "seed=1,2", "kap=true"]


def composed(line: list[str]) -> DictConfig:
    settings = check_line(line, "train", conf_dir())
    register_readouts(settings)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("train", [*expand_list_overrides(settings), "run_dir=runs"])
    check_run(cfg)
    return cfg


LINES = ["finetune.blocks=2", "localise.window=9", "augment.flip=0.5", "data.batch_size=4", "backbone.layers=[-1]",
         "optimizer.lr=1e-3", "+trainer.limit_test_batches=3", "seed=7", "loss.sigma=1.5", "scheduler=constant",
         "logger=tensorboard", "callbacks=early_stopping", "trainer.max_epochs=3", "data.split=test"]  # fmt: skip
LETTERS = "abcxyz0159=.,+~{}[]()'\"$ \\-_ü@:/"
OTHERS = ["null", "true", "x", "-1", "nan", "1.5", "[1]", "{a: 1}", "'3'", "1e30", "80", ""]


def damage(text: str, seed: int) -> str:
    draw = random.Random(seed)
    at = draw.randrange(len(text))
    match seed % 4:
        case 0:
            return text[:at] + text[at + 1 :]
        case 1:
            return text[:at] + draw.choice(LETTERS) + text[at:]
        case 2:
            at = min(at, len(text) - 2)
            return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
        case _:
            return f"{text.partition('=')[0]}={draw.choice(OTHERS)}"


def check_damage(seed: int) -> None:
    line = LINES[seed % len(LINES)]
    changed = damage(line, seed)
    try:
        cfg = composed([*BASE, changed])
    except Exception as error:
        message = user_message(error, "train")
        if message is None:
            raise AssertionError(changed) from error
        return
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        plain = compose("train", [*BASE, "run_dir=runs"])
    new, old = (flatten_config(OmegaConf.to_container(each, resolve=False)) for each in (cfg, plain))
    top = changed.lstrip("+~").partition("=")[0].partition(".")[0]
    moved = {key.partition(".")[0] for key in new.keys() | old.keys() if new.get(key, ...) != old.get(key, ...)}
    assert moved <= {top, "localise"} if top == "protocol" else moved <= {top}, (changed, moved)


@pytest.mark.sampled(8)
@pytest.mark.parametrize("seed", range(40))
def test_damage_to_a_line_is_refused_or_changes_only_what_it_names(seed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_damage(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40, 540))
def test_random_damage_to_a_line_is_refused_or_read(seed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_damage(seed)


def test_what_an_experiment_gives_its_loss_is_taken_out_for_another_loss(config):
    """As the sentence says that refuses it: contrastive losses have no such temperature."""
    line = ["experiment=animal_pose", "loss=contrastive"]
    with pytest.raises(UserError, match=r"`loss.temperature` is not an option of `loss`.* add '~loss.temperature'\."):
        check_config(config("train", *line))

    line.append("~loss.temperature")
    assert check_line(line, "train", conf_dir()) == line
    cfg = config("train", *line)
    check_config(cfg)
    assert "temperature" not in cfg.loss


def test_a_fault_of_ours_is_not_reported_as_the_mistake_that_it_met():
    def fail() -> None:
        try:
            raise UserError("no such folder")
        except UserError:
            raise KeyError("ours") from None

    with pytest.raises(KeyError) as error:
        fail()
    assert user_message(error.value, "evaluate") is None
