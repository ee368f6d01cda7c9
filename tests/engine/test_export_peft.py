"""--format peft: an adapter that stock peft loads onto a plain network."""

from copy import deepcopy
from functools import partial

import pytest
import timm
import torch
from backbone_cases import IMAGE, VIT, resnet, squeezenet, tiny
from exported_runs import FACTS, base_weights, config_of, features, moved, of_run
from exported_runs import run as run
from exported_runs import runs as runs
from exported_runs import typed as typed
from omegaconf import OmegaConf
from peft import PeftModel
from transformers import Dinov2Config, Dinov2Model

from semcorr.engine.export import export_adapter, relative_difference
from semcorr.models.backbones.timm_model import TimmModel
from semcorr.models.backbones.transformers_model import TransformersModel
from semcorr.models.finetune.peft_tuners import lora, peft_tuner

pytestmark = pytest.mark.integration


def test_stock_peft_loads_the_adapter_onto_a_whole_plain_timm_network(typed, run, tmp_path):
    """It has four blocks; two were read, and adapted."""
    trained = run("lora")
    assert typed(trained, "--format", "peft", "--out", "adapter") == 0

    tuned = of_run(trained)
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True, **VIT).eval()
    network.load_state_dict(base_weights(trained), strict=False)
    read = partial(network.forward_intermediates, indices=[1], norm=True, output_fmt="NCHW", intermediates_only=True)
    image = (IMAGE - tuned.mean) / tuned.std
    with torch.no_grad():
        before = read(image)[0]
        model = PeftModel.from_pretrained(network, str(tmp_path / "adapter"))
        after = read(image)[0]

    assert relative_difference(after, features(tuned)) < 1e-5
    assert relative_difference(before, features(tuned)) > 1e-3
    adapted = {name.split(".lora_")[0] for name, _ in model.named_parameters() if ".lora_" in name}
    assert adapted == {f"base_model.model.blocks.{i}.attn.qkv" for i in range(2)}


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft on newer transformers
def test_stock_peft_loads_the_adapter_onto_a_plain_network_of_the_transformers_library(tmp_path):
    """Three blocks, of which two were read."""
    shape = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "layerscale_value": 1.0}
    torch.manual_seed(0)
    network = Dinov2Model(Dinov2Config(**shape)).eval()
    given = {"size": 56, "pretrained": False, "model_type": "dinov2", "layers": [1], "norm": False} | shape
    backbone = TransformersModel("some", **given)
    backbone.model.load_state_dict(network.state_dict(), strict=False)
    untuned = deepcopy(backbone)
    lora(backbone, rank=2)

    export_adapter(moved(backbone), config_of(lambda: untuned), tmp_path / "adapter_config.json", FACTS)

    image = torch.rand(1, 3, 56, 84)
    model = PeftModel.from_pretrained(network, str(tmp_path))
    with torch.no_grad():
        tokens = model(pixel_values=(image - backbone.mean) / backbone.std, output_hidden_states=True).hidden_states[2]
    found = tokens[:, 1:].unflatten(1, (4, 6)).movedim(-1, 1)
    assert relative_difference(found, features(backbone, image)) < 1e-5


TUNERS = {
    "dora": partial(lora, rank=2, dora=True),
    "loha": partial(peft_tuner, tuner="loha", r=2),
    "ia3": partial(peft_tuner, tuner="ia3"),
}


@pytest.mark.parametrize("build", [tiny, resnet, squeezenet], ids=lambda build: build.__name__)
@pytest.mark.parametrize("tuner", TUNERS)
def test_other_tuners_of_peft_are_read_back_by_it(tmp_path, build, tuner):
    backbone = build()
    TUNERS[tuner](backbone)

    assert export_adapter(moved(backbone), config_of(build), tmp_path / "adapter_config.json", FACTS) < 1e-5
    assert relative_difference(features(build()), features(backbone)) > 1e-3


def test_more_layers_than_peft_names_one_by_one_are_still_those_that_were_adapted(tmp_path):
    """From twenty names on peft keeps common endings of them, which in the whole network match more."""
    depth = {"depth": 24, "embed_dim": 24}
    torch.manual_seed(0)
    backbone = TimmModel("vit_tiny_patch16_224", 64, pretrained=False, layers=[21], **(VIT | depth))
    lora(backbone, rank=1)
    cfg = {"seed": 0, "backbone": {"_target_": "backbone_cases.tiny", "layers": [21], **depth}}

    export_adapter(moved(backbone), OmegaConf.create(cfg), tmp_path / "adapter_config.json", FACTS)

    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, **(VIT | depth))
    model = PeftModel.from_pretrained(network, str(tmp_path))
    adapted = {int(name.split(".")[3]) for name, _ in model.named_parameters() if ".lora_" in name}
    assert adapted == set(range(22))
