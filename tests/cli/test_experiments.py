"""Experiments say how they are started and what they aim at, and what they say runs."""

import itertools
import re
from functools import cache

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from repository import ROOT
from tiny_training import shrink_training

from semcorr.cli.compose import expand_list_overrides
from semcorr.engine.known_targets import conf_dir
from semcorr.engine.run_dir import config_hash
from semcorr.train import train

pytestmark = pytest.mark.integration

FOLDER = conf_dir() / "experiment"
PAGE = ROOT / "docs" / "reproduce.md"
NAMES = sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml"))
TABLES = [name for name in NAMES if name.startswith("tables/")]
ABLATIONS = ["top_ablation", "top_cpu_ablation"]
SWEEPS = [name for name in NAMES if name.startswith("sweep_") or (name in TABLES and name != "tables/geo_aware_1")]
SWEEPS += ABLATIONS
COMMAND = r"python (?:-m semcorr\.(train|evaluate)|scripts/predict_poses\.py) ([^`\n]*)"
QUICK_TABLES = {"tables/unified_5", "tables/geo_aware_1", "tables/geo_aware_2", "tables/course_1"}  # the rest is slow


def with_slow_tables(names: list[str]) -> list:
    """Composing and training all tables takes minutes."""
    slow = [name for name in names if name in TABLES and name not in QUICK_TABLES]
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in names]


experiments = pytest.mark.parametrize("name", with_slow_tables(NAMES))
tables = pytest.mark.parametrize("name", TABLES)


def head_comment(name: str) -> str:
    lines = (FOLDER / f"{name}.yaml").read_text().splitlines()
    return "\n".join(itertools.takewhile(lambda line: line.startswith("#"), lines))


def commands(text: str) -> list[tuple[str, str]]:
    """Verbs and what follows them. scripts/predict_poses.py composes as evaluate does."""
    found = [(verb or "evaluate", line.partition("  #")[0]) for verb, line in re.findall(COMMAND, text)]
    return [(verb, line.replace("-m ", "")) for verb, line in found if "..." not in line]


def jobs(command: str) -> list[list[str]]:
    """What a sweep makes of a line: every combination of values told by commas, but for those of lists."""
    overrides = [word.partition("=") for word in command.split() if "=" in word]
    typed_overrides = [
        [f"{key}={value}" for value in re.split(r",(?![^\[]*\])", values)] for key, _, values in overrides
    ]
    return [expand_list_overrides(job) for job in itertools.product(*typed_overrides)]


@cache
def composed(name: str) -> list[DictConfig]:
    """The jobs of an experiment that is a sweep, as Hydra composes them."""
    with initialize_config_dir(str(FOLDER.parent), version_base="1.3"):
        whole = compose("train", [f"experiment={name}"], return_hydra_config=True)
        lines = jobs(" ".join(f"{key}={values}" for key, values in whole.hydra.sweeper.params.items()))
        return [compose("train", [f"experiment={name}", *line, "run_dir=run"]) for line in lines]


def choices(name: str) -> list[str]:
    """What an ablation leaves out, one after another."""
    with initialize_config_dir(str(FOLDER.parent), version_base="1.3"):
        (values,) = compose("train", [f"experiment={name}"], return_hydra_config=True).hydra.sweeper.params.values()
    return values.split(",")


def hashes(*names: str) -> set[str]:
    return {config_hash(cfg) for name in names for cfg in composed(f"tables/{name}")}


@pytest.mark.sampled(8)
@experiments
def test_the_head_comment_holds_commands_that_are_understood_and_figures(config, name):
    comment = head_comment(name)

    assert any(f"experiment={name}" in re.split("[ ,]", line) for _, line in commands(comment))
    assert re.search(r"\d\d\.\d( |$)|No figures are published", comment, re.MULTILINE)
    for verb, line in commands(comment):
        for overrides in jobs(line):
            config(verb, *overrides)


@pytest.mark.sampled(12)
@pytest.mark.parametrize("name", with_slow_tables(SWEEPS))
def test_every_job_of_a_sweep_composes_and_no_two_are_the_same(name):
    found = composed(name)

    assert len({config_hash(cfg) for cfg in found}) == len(found) > (4 if name.startswith("sweep_") else 0)


PARTS = {  # of an ablation: the option that a part is, and what it is without the part; as experiment=top lists them
    "top_ablation": {
        "lora": ("finetune._target_", "semcorr.models.finetune.last_blocks.last_blocks"),
        "continuous": ("head._target_", "semcorr.models.heads.cosine.Cosine"),
        "annealing": ("loss.terms.keypoints.sigma_end", None),
        "window": ("loss.weights.windowed", 0),
        "mining": ("loss.weights.mined", 0),
    },
    "top_cpu_ablation": {
        "continuous": ("head._target_", "semcorr.models.heads.cosine.Cosine"),
        "annealing": ("loss.sigma_end", None),
        "mirrors": ("augment.flip", 0),
        "averaging": ("callbacks", {}),
    },
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_has_all_parts_then_all_but_one_then_none_but_what_must_be_trained(config, name):
    parts, jobs_by_choice = PARTS[name], dict(zip(choices(name), composed(name), strict=True))
    whole = name.removesuffix("_ablation")

    assert [*jobs_by_choice] == ["nothing", *parts, "everything"]
    assert config_hash(jobs_by_choice["nothing"]) == config_hash(config("train", f"experiment={whole}", "run_dir=run"))
    for choice, cfg in jobs_by_choice.items():
        left_out = {part for part, (key, value) in parts.items() if OmegaConf.select(cfg, key) == value}
        expected = {"nothing": set(), "everything": {*parts} - {"lora"}}.get(choice, {choice})
        assert left_out == expected, choice


@pytest.mark.parametrize("name", with_slow_tables([name for name in TABLES if name in SWEEPS]))
def test_a_table_is_scored_by_the_protocol_of_its_paper(name):
    """In every row: one that names its readout or pixels must not win over the table."""
    expected = {"unified": ("visual_ai", None), "geo_aware": ("geoaware", "window_15_zero"), "course": ("dift", None)}
    paper = name.removeprefix("tables/").rpartition("_")[0]
    protocol, first = ("semcorr", "argmax") if name == "tables/course_3" else expected[paper]

    for cfg in composed(name):
        assert cfg.protocol.get("names", [cfg.protocol.get("name")])[0] == protocol
        assert cfg.data.resize == cfg.protocol.resize
        assert cfg.localise._target_.endswith("ReadoutList" if first else "ProtocolReadout")
        assert cfg.localise.get("rules", [None])[0] == first


UNIFIED = [name for name in NAMES if name.startswith(("unified/", "tables/unified_"))]
RECIPE = ("augment", "pairs", "localise", "protocol", "loss", "optimizer", "scheduler", "trainer", "keep_from")


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", UNIFIED)
def test_the_unified_benchmark_is_trained_by_the_default_recipe(config, name):
    """Of a table the first row; the others differ by the network that is trained."""
    default, found = config("train"), config("train", f"experiment={name}")

    assert {key: found[key] for key in RECIPE} == {key: default[key] for key in RECIPE}
    assert found.data.batch_size == default.data.batch_size is None  # 8, see `resolve_batch_size`
    assert found.finetune.get("norm") is False


def test_the_recipe_of_before_has_every_value_that_was_the_default(config):
    cfg = config("train", "experiment=semcorr_baseline")

    assert (cfg.optimizer.lr, cfg.optimizer.backbone_lr, cfg.optimizer.weight_decay) == (1e-3, 1e-5, 0.05)
    assert (cfg.scheduler._target_, cfg.scheduler.warmup) == ("semcorr.engine.optim.one_cycle", 0.3)
    assert (cfg.trainer.precision, cfg.trainer.max_epochs, cfg.trainer.val_check_interval) == ("32-true", 2, None)
    assert (cfg.finetune.blocks, cfg.finetune.norm, cfg.loss.convention, cfg.keep_from) == (2, True, "centres", 0)
    assert (cfg.protocol.name, cfg.localise.window, cfg.localise.temperature) == ("semcorr", 15, 0.02)


OLD_RECIPE = [name for name in NAMES if name.startswith(("geo_aware/", "heads/", "demo", "animal_pose", "marco"))]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", OLD_RECIPE)
def test_an_experiment_that_was_laid_out_for_the_recipe_of_before_keeps_it(config, name):
    cfg = config("train", f"experiment={name}")

    protocol = "marco" if name == "marco" else "semcorr"
    assert (cfg.protocol.name, cfg.keep_from, cfg.trainer.val_check_interval) == (protocol, 0, None)
    assert cfg.loss.get("convention", "centres") == "centres"
    assert cfg.scheduler._target_.endswith("constant_rate" if name == "marco" else "one_cycle")
    assert cfg.trainer.precision == ("bf16-mixed" if name == "marco" else "32-true")


@pytest.mark.slow
def test_tables_share_the_runs_they_have_in_common(config):
    """So that in one `run_dir` nothing is computed twice."""
    assert hashes("unified_8") < hashes("unified_a1")
    assert hashes("unified_9") < hashes("unified_a2")
    assert hashes("unified_6") < hashes("unified_a1") & hashes("unified_a2")
    assert len(hashes("unified_7") & hashes("unified_8")) == 2  # frozen, and the last block
    assert hashes("geo_aware_2") == hashes("geo_aware_3") == hashes("geo_aware_4")
    assert hashes("geo_aware_11") < hashes("geo_aware_5")
    assert hashes("geo_aware_7", "geo_aware_11") < hashes("geo_aware_3")
    pascal = "data=pf_pascal scheduler=constant trainer.max_epochs=85 pairs=plain experiment/geo_aware=baseline"
    assert config_hash(config("train", "experiment=tables/geo_aware_3", *pascal.split())) in hashes("geo_aware_10")


@pytest.mark.sampled(8)
@experiments
def test_a_way_to_tune_that_is_typed_is_not_changed_by_the_experiment(config, name):
    """An experiment that sets `finetune.blocks` by itself would train two blocks of a backbone said to be frozen."""
    assert config("train", f"experiment={name}", "finetune=frozen").finetune.blocks == 0
    assert config("train", f"experiment={name}", "finetune=lora").finetune.blocks is None


def test_a_way_to_tune_is_the_same_where_nothing_is_trained(config):
    assert config("evaluate", "finetune=lora").finetune.blocks is None


# Of a table this is its first row. The others differ from it by what other experiments train here: the heads of
# unified/, the losses and pairs of geo_aware/; by backbones, which are replaced; and by how many blocks move.
@pytest.mark.sampled(16)
@experiments
def test_an_experiment_trains_on_tiny_parts(config, tiny, name):
    plain = config("train", f"experiment={name}", *tiny)
    scores = train(config("train", f"experiment={name}", *shrink_training(plain, name, tiny)))

    assert scores["pairs"] == 2  # those a fast_dev_run looks at
    trained = plain.finetune.blocks != 0 or not plain.head._target_.endswith("Cosine")
    assert (scores["trained_parameters"] > 0) == trained


@tables
def test_the_page_has_a_row_for_each_table(name):
    assert f"experiment={name}" in PAGE.read_text()


@pytest.mark.slow
def test_every_command_of_the_page_is_understood(config):
    text = PAGE.read_text()
    found = [*commands(text), *(("train", line) for line in re.findall(r"`(experiment=tables/[^`]*)`", text))]

    assert len(found) > len(TABLES)
    for verb, line in found:
        for overrides in jobs(line):
            config(verb, *overrides)
