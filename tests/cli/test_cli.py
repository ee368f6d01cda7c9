"""The command line: the lines of the documentation as typed, and mistakes that end in a sentence and exit code 2."""

import inspect
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf
from repository import SMALL
from saved_runs import save_run
from tiny_benchmarks import write_willow

from semcorr import evaluate, train
from semcorr.cli.compose import merge_checkpoint_config
from semcorr.engine.known_targets import conf_dir
from semcorr.models.backbones.squeezenet import SqueezeNet

pytestmark = pytest.mark.integration

GROUPS = sorted(
    path.relative_to(conf_dir()).with_suffix("") for path in conf_dir().glob("*/*.yaml") if path.stem != "common"
)


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """typed(train, "a=b") is `python -m semcorr.train a=b` in an empty folder; the exit code."""

    def run(verb, *line: str) -> int:
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("SEMCORR_DATA", raising=False)
        return verb.main(line)

    return run


# -- the lines of ARCHITECTURE.md --


def test_the_last_two_blocks_of_dinov2_are_trained(config):
    """python -m semcorr.train backbone=dinov2 finetune.blocks=2: the baseline, at 840 pixels."""
    cfg = config("train", "backbone=dinov2", "finetune.blocks=2")
    assert (cfg.backbone.name, cfg.backbone.size) == ("vit_base_patch14_dinov2.lvd142m", 840)

    cfg.backbone.pretrained = False
    cfg.backbone.size = 56
    backbone = instantiate(cfg.backbone)
    instantiate(cfg.finetune)(backbone)
    moving = {name.split(".")[2] for name, p in backbone.named_parameters() if p.requires_grad and ".blocks." in name}
    assert moving == {"10", "11"}


def test_train_dinov2_runs_on_synthetic(typed, creatures, capfd):
    """The issue's line, at 112 instead of 840 pixels."""
    line = "backbone=dinov2_s finetune.blocks=2 backbone.pretrained=false trainer.fast_dev_run=true data=synthetic"
    rc = typed(train, *line.split(), f"data.root={creatures}", *SMALL, "backbone.size=112", "data.workers=0")
    assert rc == 0
    assert "per image" in capfd.readouterr().out


@pytest.mark.slow
def test_train_dinov2_runs_at_its_full_size(typed, tmp_path):
    """The same line with nothing cut: DINOv2-B at 840 pixels, one batch each of training, validation and test."""
    line = "backbone=dinov2 finetune.blocks=2 backbone.pretrained=false trainer.fast_dev_run=true data=synthetic"
    assert typed(train, *line.split()) == 0


@pytest.mark.slow
def test_a_sweep_over_backbones_at_the_same_grid(typed, tmp_path, creatures):
    """The smaller ones of the line below, at four cells a side: 56 pixels for patch 14, 64 for patch 16."""
    line = "-m backbone=dinov2_s,dinov3_s,dino_s16,clip_b16,sam,resnet101 backbone.pretrained=false backbone.grid=4"
    rest = "data=synthetic trainer.fast_dev_run=true data.workers=0 data.batch_size=2 run_dir=sweep"
    assert typed(train, *line.split(), *rest.split(), f"data.root={creatures}", *SMALL) == 0

    sizes = [OmegaConf.load(tmp_path / "sweep" / f"{i}" / "config.yaml").backbone.size for i in range(6)]
    assert sizes == [56, 64, 64, 64, 64, 64]


@pytest.mark.slow
def test_a_sweep_over_backbones_at_their_own_sizes(typed):
    line = "-m backbone=dinov2,dinov3,dino,clip,sam,resnet101 backbone.pretrained=false data=synthetic"
    assert typed(train, *line.split(), "trainer.fast_dev_run=true") == 0


def test_evaluate_willow_with_weights_from_a_file(typed, tmp_path):
    """python -m semcorr.evaluate data=pf_willow data.root=DIR backbone=squeezenet backbone.weights=FILE run_dir=OUT"""
    write_willow(tmp_path / "willow")
    torch.save(SqueezeNet(size=64, pretrained=False).features.state_dict(), tmp_path / "w.pth")

    line = "data=pf_willow data.root=willow backbone=squeezenet backbone.weights=w.pth backbone.size=64 run_dir=OUT"
    assert typed(evaluate, *line.split(), "data.workers=0") == 0
    metrics = json.loads((tmp_path / "OUT" / "metrics.json").read_text())
    assert metrics["split"] == "pf_willow test"
    assert metrics["pck"]["geo"]["image"]["0.1"] is None  # PF-WILLOW has no symmetry groups


@pytest.mark.slow
def test_sweep_makes_one_run_directory_per_job(typed, tmp_path, tiny):
    """python -m semcorr.train -m backbone=... localise.window=..."""
    jobs = [
        "-m",
        "finetune.blocks=1,2",
        "protocol=semcorr",
        "localise.window=3,5",
        "trainer.fast_dev_run=true",
        "run_dir=sweep",
    ]
    assert typed(train, *jobs, *tiny) == 0

    runs = sorted((tmp_path / "sweep").glob("*/metrics.json"))
    assert [path.parent.name for path in runs] == ["0", "1", "2", "3"]
    configs = [OmegaConf.load(path.parent / "config.yaml") for path in runs]
    assert [(c.finetune.blocks, c.localise.window) for c in configs] == [(1, 3), (1, 5), (2, 3), (2, 5)]
    assert len({str(c.run_dir) for c in configs}) == 4


def test_a_sweep_ends_with_a_table_of_what_differs(typed, tmp_path, tiny, capfd):
    jobs = ["-m", "finetune.blocks=0,2", "data.steps=1", "trainer.max_epochs=1", "run_dir=sweep"]
    assert typed(train, *jobs, *tiny) == 0

    table = capfd.readouterr().out.partition("2 jobs, scored on synthetic test")[2].splitlines()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in table if "│" in line]
    metrics = [json.loads((tmp_path / "sweep" / f"{i}" / "metrics.json").read_text()) for i in range(2)]
    configs = [OmegaConf.load(tmp_path / "sweep" / f"{i}" / "config.yaml") for i in range(2)]
    assert [config.finetune.blocks for config in configs] == [0, 2]
    assert len({config.run_dir for config in configs}) == 2
    expected = [f"{100 * m['pck'][subset]['image']['0.1']:.1f}" for m in metrics for subset in ("all", "geo", "std")]
    assert [row[:2] for row in rows] == [["0", "0"], ["1", "2"]]
    assert rows[0][2:] == ["0", *expected[:3]]
    assert int(rows[1][2].replace(",", "")) == metrics[1]["trained_parameters"] > 50_000
    assert rows[1][3:] == expected[3:]


@pytest.mark.slow
def test_a_run_may_be_scored_on_another_benchmark_than_it_trained_on(typed, tmp_path, tiny):
    """python -m semcorr.train ... data@test=NAME test.root=DIR"""
    write_willow(tmp_path / "willow")
    line = ["data.steps=1", "trainer.max_epochs=1", "data@test=pf_willow", "test.root=willow", "test.workers=0"]
    assert typed(train, *tiny, *line, "run_dir=RUN") == 0
    first = json.loads((tmp_path / "RUN" / "metrics.json").read_text())
    assert first["split"] == "pf_willow test"

    assert typed(evaluate, "checkpoint=RUN", "data=pf_willow", "data.root=willow", "data.workers=0", "run_dir=E") == 0
    assert json.loads((tmp_path / "E" / "metrics.json").read_text())["pck"] == first["pck"]

    saved = OmegaConf.load(tmp_path / "RUN" / "config.yaml")
    assert typed(train, "checkpoint=RUN", "trainer.max_epochs=2") == 0  # and so when it is gone on with
    saved.trainer.max_epochs = 2
    assert OmegaConf.load(tmp_path / "RUN" / "config.yaml") == saved  # wherever the line is typed
    assert json.loads((tmp_path / "RUN" / "metrics.json").read_text())["split"] == "pf_willow test"


def test_sweep_over_dinov2_and_dinov3_composes(config):
    for backbone, patch in (("dinov2", 14), ("dinov3", 16)):
        cfg = config("train", f"backbone={backbone}", "protocol=semcorr", "localise.window=9")
        assert cfg.backbone.name.startswith(f"vit_base_patch{patch}_{backbone}.lvd")
        assert (cfg.backbone.size, cfg.localise.window) == (60 * patch, 9)


@pytest.mark.slow
def test_a_checkpoint_brings_its_own_configuration(typed, tmp_path, tiny):
    """python -m semcorr.evaluate checkpoint=RUN_DIR: what is typed wins over what the run brought."""
    rest = ["data.steps=2", "trainer.max_epochs=1", "protocol=semcorr", "localise.window=5", "head=cosine"]
    assert typed(train, *tiny, *rest, "finetune.blocks=1", "run_dir=RUN") == 0

    assert typed(evaluate, "checkpoint=RUN", "data.resize=letterbox", "run_dir=E") == 0

    saved = OmegaConf.load(tmp_path / "E" / "config.yaml")
    assert (saved.finetune.blocks, saved.localise.window, saved.backbone.patch_size) == (1, 5, 8)
    assert saved.data.resize == "letterbox"
    assert saved.data._target_ == "semcorr.data.synthetic.Synthetic"


def test_a_group_typed_again_replaces_the_one_a_checkpoint_brings(config, tmp_path):
    save_run(config("train", "localise=argmax", "data=synthetic", "seed=3"), tmp_path)
    typed = ["data=pf_willow", "localise.window=9", f"checkpoint={tmp_path}"]

    with pytest.raises(Exception, match="window"):  # argmax, which the run used, has no window
        merge_checkpoint_config(config("evaluate", *typed), typed)
    typed = ["data=pf_willow", f"checkpoint={tmp_path}"]
    cfg = merge_checkpoint_config(config("evaluate", *typed), typed)

    assert cfg.data._target_.endswith("PFWillow")
    assert cfg.localise._target_.endswith(".argmax")
    assert cfg.seed == 3


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("line", "resize"),
    [
        (["data=pf_willow"], "letterbox"),
        (["data=pf_willow", "data.resize=squash"], "squash"),
        (["data=pf_willow", "protocol=dift"], "squash"),
        (["protocol=semcorr"], "squash"),
        ([], "letterbox"),
    ],
)
def test_other_benchmarks_are_seen_in_the_geometry_that_weights_were_trained_in(config, tmp_path, line, resize):
    """Unless another is asked for, by itself or by a protocol."""
    save_run(config("train", "data=synthetic", "data.resize=letterbox"), tmp_path)
    typed = [*line, f"checkpoint={tmp_path}"]

    assert merge_checkpoint_config(config("evaluate", *typed), typed).data.resize == resize


@pytest.mark.sampled(8)
@pytest.mark.parametrize("path", GROUPS, ids=str)
def test_every_config_file_composes_and_its_target_accepts_its_keys(config, path):
    group, name = path.parts
    cfg = config("train", f"{group}={name}")
    for node in (cfg[key] for key in cfg if OmegaConf.is_dict(cfg._get_node(key)) and "_target_" in cfg[key]):
        assert accepts_its_keys(node)


@pytest.mark.parametrize("path", GROUPS, ids=str)
def test_the_target_of_every_config_file_accepts_its_keys(path):
    node = OmegaConf.to_container(OmegaConf.load(conf_dir() / f"{path}.yaml"))
    for call in (node, *node.values()):
        assert not isinstance(call, dict) or "_target_" not in call or accepts_its_keys(call)


def accepts_its_keys(node: Mapping) -> bool:
    parameters = inspect.signature(get_object(node["_target_"])).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return open_ended or {str(key) for key in node if not str(key).startswith(("_", "defaults"))} <= set(parameters)


# -- mistakes --


@pytest.mark.sampled(8)
@pytest.mark.parametrize(
    ("verb", "line", "message"),
    [
        (
            train,
            "finetune.blcks=3",
            "unknown config key `finetune.blcks`. Did you mean finetune.blocks or finetune.block_weights?",
        ),
        (train, "finetune=lora finetune.rnak=4", "unknown config key `finetune.rnak`. Did you mean finetune.rank"),
        (train, "augment.flipp=1", "unknown config key `augment.flipp`. Did you mean augment.flip?"),
        (train, "augment.flip=2 data=synthetic", "`augment.flip` must be between 0, which is off, and 1, got 2"),
        (train, "bakbone=dinov2", "unknown config key `bakbone`. Did you mean backbone"),
        (evaluate, "backbone=dinov9", "`backbone` has no choice 'dinov9'. Did you mean dinov3"),
        (evaluate, "data=spair", "data=synthetic"),
        (evaluate, "data=spair backbone=tiny data.split=tset", "got 'tset'"),
        (evaluate, "checkpoint=nowhere", "nowhere/config.yaml does not exist"),
        (evaluate, "backbone=timm data=synthetic", "no value for `backbone.name`"),
    ],
)
def test_a_mistake_ends_in_a_user_error_and_exit_code_2(typed, capfd, tmp_path, verb, line, message):
    assert typed(verb, *line.split()) == 2
    error = capfd.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_no_network_for_pretrained_weights_names_three_ways_out(typed, capfd, creatures, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    assert typed(evaluate, "backbone=dinov2_s", "data=synthetic", f"data.root={creatures}", *SMALL) == 2
    error = capfd.readouterr().err
    for way in ("HF_HUB_CACHE", "backbone.weights=FILE", "backbone.pretrained=false"):
        assert way in error


def test_a_damaged_image_is_named_and_nothing_is_left(typed, capfd, tmp_path):
    root = write_willow(tmp_path / "willow")
    victim = sorted(root.rglob("*.png"))[0]
    victim.write_bytes(victim.read_bytes()[:-40])
    line = "data=pf_willow data.root=willow backbone=tiny run_dir=OUT data.workers=1"
    assert typed(evaluate, *line.split()) == 2
    assert victim.name in capfd.readouterr().err
    assert not (tmp_path / "OUT" / "metrics.json").exists()


def test_the_program_is_a_command():
    """`python -m semcorr.train` is run by test_distributed.py and test_interrupted.py."""
    script = Path(sys.executable).with_name("semcorr")
    done = subprocess.run([script, "train", "--cfg", "job", "--resolve"], capture_output=True, text=True, check=True)
    assert "vit_base_patch14_dinov2.lvd142m" in done.stdout
    unknown = subprocess.run([script, "trian"], capture_output=True, text=True)
    assert unknown.returncode == 2
    assert "Did you mean train" in unknown.stderr
