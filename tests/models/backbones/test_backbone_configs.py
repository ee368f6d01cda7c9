"""Every file of the group `backbone` names a network that exists, normalises as it was trained, and builds."""

import pytest
import timm
import torch
from backbone_cases import FORMULAS
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from repository import ROOT

from semcorr.core.errors import UserError
from semcorr.models.backbones import ibot, segment_anything, timm_model
from semcorr.models.backbones.sequential import SequentialBackbone

FOLDER = ROOT / "conf"
OTHERS = {"timm", "transformers", "tiny", "squeezenet", "efficientnet_lite0"}  # without a name, or not timm's
NAMES = sorted(file.stem for file in (FOLDER / "backbone").glob("*.yaml"))
NEWER = ("pe_", "radio", "tipsv2", "eupe", "lingbot", "aimv2", "dinov3_sat", "siglip2_naflex", "sam2", "sapiens2")
NEWER += ("ijepa", "webssl", "franca", "vjepa2", "cleandift")  # test_named_backbones.py and test_backbones_command.py
NAMES = [name for name in NAMES if not name.startswith(NEWER)]
NAMES = [name for name in NAMES if name not in OTHERS | FORMULAS.keys() and not name.startswith(("sd", "fuse"))]
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STATISTICS = {  # of the families that were not trained with ImageNet's
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "siglip2": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
CELLS = {"clip": 32, "siglip2": 32, "sam": 64, "resnet101": 30}  # along a side; 60 for the rest, as in the literature


def family(name, table, default):
    return table.get(name.partition("_")[0], default)


def composed(name: str, *overrides: str):
    with initialize_config_dir(str(FOLDER), version_base="1.3"):
        return compose(overrides=[f"+backbone={name}", *overrides]).backbone


@pytest.mark.sampled(8)
@pytest.mark.parametrize("name", NAMES)
def test_a_backbones_file_builds_the_network_it_names_normalising_as_it_was_trained(monkeypatch, name):
    for module in (timm_model, segment_anything):
        monkeypatch.setattr(module, "weights_sha256", lambda _: "")
    config = composed(name, "backbone.pretrained=false")
    if "timm" in config._target_:
        assert timm.is_model_pretrained(config.name)
    alike = "vit_" in config.name and not name.startswith("sam") and config.layers == [-1]
    shallow = {"depth": 2} if alike else {}

    given: list[tuple] = []
    own = SequentialBackbone.__init__
    monkeypatch.setattr(
        SequentialBackbone, "__init__", lambda self, *args: (given.append(args[-1]), own(self, *args))[1]
    )

    with torch.device("meta"):  # shapes without memory, nor values
        backbone = instantiate(config, **shallow)

    assert backbone.size == family(name, CELLS, 60) * backbone.stride
    assert backbone.blocks
    mean, std = family(name, STATISTICS, IMAGENET)
    assert given[0] == (pytest.approx(mean), pytest.approx(std))


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_a_formulas_file_builds_what_it_is_called_with_the_defaults_of_its_class(name):
    backbone = instantiate(composed(name))

    assert backbone.name == name
    assert (backbone.size, backbone.stride, backbone.window) == (320, 8, 96)
    assert backbone.sha256 == type(backbone)(size=320).sha256
    assert instantiate(composed(name, "backbone.grid=30")).size == 240


def test_the_unified_benchmarks_dino_is_read_after_block_9_without_a_norm():
    backbone = instantiate(composed("dino_b16_block9", "backbone.pretrained=false", "backbone.grid=2")).eval()
    whole = instantiate(composed("dino_b16", "backbone.pretrained=false", "backbone.grid=2")).eval()
    backbone.load_state_dict(whole.state_dict(), strict=False)
    image, seen = torch.rand(1, 3, 32, 32), []
    whole.model.blocks[9].register_forward_hook(lambda _, __, out: seen.append(out))

    with torch.no_grad():
        whole(image)
        values = backbone(image).values

    assert (len(backbone.blocks), backbone.norm) == (10, None)
    torch.testing.assert_close(values.flatten(2).mT, seen[0][:, 1:])  # without the class token


def test_ibots_weights_are_asked_for_with_their_address():
    with pytest.raises(UserError, match=r"ibot/vitb_16/checkpoint_teacher\.pth.*backbone\.weights=FILE"):
        ibot.IBOT("vitb_16", size=960)
    with pytest.raises(UserError, match=r"`backbone\.name` must be one of vits_16, vitb_16, vitl_16, got 'vitx'"):
        ibot.IBOT("vitx", size=960)


def test_ibot_is_its_own_name_and_takes_timms_options():
    backbone = instantiate(composed("ibot_s", "backbone.pretrained=false", "backbone.grid=4", "+backbone.depth=2"))

    assert backbone.name == "ibot_vits_16"
    assert (backbone.size, len(backbone.blocks)) == (64, 2)
