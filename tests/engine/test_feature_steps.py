"""Debiasing and upsampling as a command line asks for them: built, cached, saved, read again and refused."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from semcorr.cli.compose import compose_config
from semcorr.core.errors import UserError
from semcorr.engine.build import build_backbone, check_config, features_key
from semcorr.engine.options import check_options
from semcorr.engine.saved_config import read_run_config
from semcorr.evaluate import evaluate
from semcorr.models.backbones.debiased import DebiasedBackbone
from semcorr.models.backbones.joint_bilateral import JointBilateral
from semcorr.models.backbones.timm_model import TimmModel
from semcorr.models.backbones.upsampled import UpsampledBackbone
from semcorr.train import train

pytestmark = pytest.mark.integration

STEPS = ["backbone.debias=3", "backbone.upsample=joint_bilateral", "backbone.upsample.factor=4"]


@pytest.fixture
def compose(tiny, tmp_path):
    """A configuration as a command line gives it."""

    def build(verb: str, *line: str, name: str = "run"):
        is_inherited = any(word.startswith("checkpoint=") for word in line)
        cfg = compose_config(verb, [*(word for word in tiny if word != "backbone=tiny" or not is_inherited), *line])
        cfg.run_dir = str(tmp_path / name)
        return cfg

    return build


def test_both_steps_are_scored_saved_and_read_again(compose):
    cfg = compose("evaluate", *STEPS)

    metrics = evaluate(cfg)

    saved = yaml.safe_load((Path(cfg.run_dir) / "config.yaml").read_text())["backbone"]
    again = build_backbone(read_run_config(Path(cfg.run_dir)))
    assert (saved["debias"], saved["upsample"]["factor"]) == (3, 4)
    assert metrics["cells"] == [32, 32]  # 8 of 8 pixels
    assert isinstance(again, UpsampledBackbone)
    assert isinstance(again.upsampler, JointBilateral)
    assert isinstance(again.inner, DebiasedBackbone)
    assert (again.inner.components, again.stride) == (3, 2)


def test_the_key_of_stored_features_says_which_steps_there_are(compose):
    plain, debiased, both = (features_key(compose("evaluate", *line)) for line in ([], STEPS[:1], STEPS))

    assert "debias" not in plain["options"]
    assert debiased["options"] == plain["options"] | {"debias": 3}
    assert both["options"]["upsample"]["sigma_colour"] == 0.1


def test_a_store_of_one_kind_is_not_read_as_another_and_gives_the_same_twice(compose, tmp_path, monkeypatch):
    store, read = f"store.root={tmp_path / 'store'}", []
    real = TimmModel.read_maps
    monkeypatch.setattr(TimmModel, "read_maps", lambda self, image: read.append(len(image)) or real(self, image))
    lines = [[], STEPS[:1], STEPS[1:], STEPS, STEPS]

    scores = [evaluate(compose("evaluate", store, *line, name=str(i))) for i, line in enumerate(lines)]
    counts, read[:] = len(read), []
    fresh = evaluate(compose("evaluate", *STEPS, name="fresh"))

    pck = [json.dumps(score["pck"]) for score in (*scores, fresh)]
    assert counts > 4
    assert pck[3] == pck[4] == pck[5]
    assert len(set(pck)) == 4


@pytest.mark.parametrize("line", [STEPS[:1], STEPS[1:2]], ids=["debias", "upsample"])
def test_training_from_cached_blocks_is_training_from_pixels(compose, line):
    line = [*line, "finetune=last_blocks", "finetune.blocks=1", "trainer.max_epochs=1", "data.batch_size=2"]
    line += ["data.steps=2", "augment=none"]
    line += ["optimizer._target_=plain_sgd.sgd", "optimizer.backbone_lr=0.1"]  # AdamW makes steps of rounding

    weights = []
    for place in ("auto", "off"):
        cfg = compose("train", *line, f"store.place={place}", name=place)
        train(cfg)
        weights.append(torch.load(Path(cfg.run_dir) / "checkpoints/last.ckpt", weights_only=True)["state_dict"])

    assert all(name.startswith("backbone.model.blocks.3.") for name in weights[0])
    torch.testing.assert_close(weights[0], weights[1])


def test_a_tuned_backbone_is_scored_with_debiasing_and_without_whichever_it_was_trained_with(compose):
    tuned = ["finetune.blocks=1", "trainer.max_epochs=1", "data.batch_size=2", "data.steps=2"]
    run = compose("train", *tuned, "backbone.debias=3", name="trained")
    trained = train(run)

    checkpoint = f"checkpoint={run.run_dir}"
    same = evaluate(compose("evaluate", checkpoint, name="same"))
    other = compose("evaluate", checkpoint, "backbone.debias=8", name="other")
    none = compose("evaluate", checkpoint, "backbone.debias=null", name="none")
    finer = compose("evaluate", checkpoint, "backbone.upsample=joint_bilateral", name="finer")

    assert same["pck"] == trained["pck"]
    assert (other.backbone.debias, none.backbone.debias, finer.backbone.debias) == (8, None, 3)
    assert finer.backbone.upsample._target_.endswith("JointBilateral")
    assert len({json.dumps(evaluate(cfg)["pck"]) for cfg in (other, none, finer)}) == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["backbone.debias=0"], r"`backbone.debias` must be at least 1 or null, got 0"),
        (["backbone.debias=many"], r"`backbone.debias` must be .*got 'many'"),
        (["+backbone.upsample=finer"], r"`backbone.upsample` must be .*got 'finer'"),
        ([*STEPS[1:2], "backbone.upsample.factor=0"], r"`backbone.upsample.factor` must be between 1 and 16, got 0"),
        (
            [*STEPS[1:2], "+backbone.upsample.sigma=1"],
            r"`backbone.upsample.sigma` is not an option of",
        ),
    ],
)
def test_wrong_values_are_refused_before_anything_is_built(compose, line, message):
    with pytest.raises(UserError, match=message):
        check_config(compose("evaluate", *line))


def test_a_saved_configuration_may_not_name_a_repository(compose):
    cfg = compose("evaluate", "backbone.upsample=anyup")
    content = OmegaConf.to_container(cfg, resolve=True)
    content["backbone"]["upsample"]["repository"] = "somebody/else"

    with pytest.raises(UserError, match=r"`backbone.upsample.repository` is not an option"):
        check_options(content)
