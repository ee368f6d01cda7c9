"""--format merged: a file of weights that a backbone reads back and that gives the same features."""

import json
import shutil
from functools import partial

import pytest
import timm
import torch
from backbone_cases import IMAGE, PROMISES, VIT, squeezenet, tiny
from exported_runs import FACTS, base_weights, config_of, features, loud, moved, of_run, tiny_of
from exported_runs import run as run
from exported_runs import runs as runs
from exported_runs import typed as typed
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from semcorr.core.errors import UserError
from semcorr.core.interfaces import Backbone
from semcorr.engine.export import export_head, export_merged, relative_difference
from semcorr.evaluate import evaluate
from semcorr.models.backbones.transformers_model import TransformersModel
from semcorr.models.finetune.adapters import houlsby
from semcorr.models.finetune.last_blocks import last_blocks
from semcorr.models.finetune.peft_tuners import lora


@pytest.mark.slow
@pytest.mark.parametrize("finetune", ["last_blocks", "lora"])
def test_a_merged_run_is_a_file_of_weights_that_scores_as_the_run_does(typed, run, config, tiny, tmp_path, finetune):
    trained = run(finetune)
    assert typed(trained, "--format", "merged", "--out", "w.safetensors") == 0

    plain = [*tiny, "backbone.layers=[1]", f"backbone.weights={tmp_path / 'w.safetensors'}"]
    found = evaluate(config("evaluate", *plain, "protocol=unified", "finetune.blocks=0"))
    assert found["pck"] == json.loads((trained / "metrics.json").read_text())["pck"]
    untuned = tiny_of(config("evaluate", *tiny, "backbone.layers=[1]"))
    assert relative_difference(features(untuned), features(of_run(trained))) > 1e-3


WAYS = {"last_blocks": partial(last_blocks, blocks=2), "lora": partial(lora, rank=2)}


@pytest.mark.sampled(8)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", PROMISES)
def test_every_backbone_reads_back_what_was_merged_and_gives_the_same_features(tmp_path, name, way):
    build = PROMISES[name].build
    backbone = loud(build())
    before = features(backbone)
    WAYS[way](backbone)
    expected = features(moved(backbone))

    difference = export_merged(backbone, config_of(build, weights=None), tmp_path / "w.safetensors", FACTS)

    again = build(seed=1, weights=str(tmp_path / "w.safetensors"))
    assert relative_difference(before, expected) > 1e-3
    assert relative_difference(features(again), expected) < 1e-5
    assert difference < 1e-5


def test_a_network_of_the_transformers_library_gets_its_configuration_beside_its_weights(tmp_path):
    shape = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "layerscale_value": 1.0}
    build = partial(TransformersModel, "some", size=56, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    backbone = build(pretrained=False, model_type="dinov2", **shape)
    lora(backbone, rank=2)
    expected = features(moved(backbone), IMAGE[..., :56, :84])

    export_merged(backbone, config_of(build, weights=None), tmp_path / "w.safetensors", FACTS)

    again = TransformersModel("some", size=56, weights=str(tmp_path / "w.safetensors")).eval()  # nothing else is said
    assert relative_difference(features(again, IMAGE[..., :56, :84]), expected) < 1e-5


def test_merged_keys_are_the_networks_own(tmp_path):
    export_merged(tiny(), config_of(tiny, weights=None), tmp_path / "vit.safetensors", FACTS)
    export_merged(squeezenet(), config_of(squeezenet, weights=None), tmp_path / "squeezenet.safetensors", FACTS)

    own = set(timm.create_model("vit_tiny_patch16_224", num_classes=0, **VIT).state_dict())
    assert set(load_file(tmp_path / "vit.safetensors")) == own
    assert all(key.startswith("features.") for key in load_file(tmp_path / "squeezenet.safetensors"))


def test_a_file_says_where_its_numbers_come_from(typed, run, tmp_path, capfd):
    trained = run("lora")
    assert typed(trained, "--out", "w.safetensors") == 0

    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        facts = file.metadata()
    base = torch.load(trained / "checkpoints/best.ckpt", weights_only=True)["base"]
    assert (facts["base"], facts["base_sha256"]) == (base["backbone"], base["sha256"])
    assert (facts["run"], facts["checkpoint"]) == (str(trained.resolve()), "best")
    output = capfd.readouterr()
    for part in ("w.safetensors (", " bytes)", base["sha256"][:12], "checkpoints/best.ckpt", "backbone.weights=w.saf"):
        assert part in output.out
    assert "Warning" not in output.out + output.err


def test_a_head_with_weights_gets_a_file_of_its_own(tmp_path):
    export_head(nn.Linear(2, 3), tmp_path / "head.safetensors", FACTS)
    export_head(nn.Identity(), tmp_path / "none.safetensors", FACTS)

    assert {key: tuple(value.shape) for key, value in load_file(tmp_path / "head.safetensors").items()} == {
        "weight": (3, 2),
        "bias": (3,),
    }
    assert not (tmp_path / "none.safetensors").exists()


def test_the_last_checkpoint_is_another_than_the_best(typed, run, tmp_path):
    """Written by hand here, so that it is: training may well end at its best."""
    other = tmp_path / "other"
    shutil.copytree(run("last_blocks"), other)
    content = torch.load(other / "checkpoints/last.ckpt", weights_only=True)
    name = "backbone.model.blocks.1.mlp.fc2.bias"
    content["state_dict"][name] = torch.full_like(content["state_dict"][name], 7)
    torch.save(content, other / "checkpoints/last.ckpt")

    assert typed("other", "--which", "last") == 0
    assert load_file(other / "export/backbone.safetensors")["blocks.1.mlp.fc2.bias"].unique().tolist() == [7]


def test_base_weights_that_have_moved_are_given_again(typed, run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run("lora"), other)
    torch.save(base_weights(other), tmp_path / "moved.pth")
    cfg = OmegaConf.load(other / "config.yaml")
    cfg.backbone.weights = "gone.pth"
    OmegaConf.save(cfg, other / "config.yaml")

    assert typed("other") == 2
    assert typed("other", "--weights", "moved.pth") == 0
    assert (other / "export/backbone.safetensors").stat().st_mode & 0o777 == (
        other / "config.yaml"
    ).stat().st_mode & 0o777


def test_nonlinear_adapters_are_pointed_to_the_graph(tmp_path):
    backbone = tiny()
    houlsby(backbone, width=4)
    with pytest.raises(UserError, match="--format onnx"):
        export_merged(moved(backbone), config_of(tiny, weights=None), tmp_path / "w.safetensors", FACTS)
    assert not list(tmp_path.iterdir())


def test_several_networks_are_no_file_of_weights(tmp_path):
    class Two(Backbone):
        name = "two"

        def __init__(self) -> None:
            super().__init__()
            self.a, self.parts = tiny(), nn.ModuleList([tiny(), tiny()])

    with pytest.raises(UserError, match=r"made of several networks \(a, parts.0, parts.1\)"):
        export_merged(Two(), config_of(tiny), tmp_path / "w.safetensors", FACTS)
