"""Networks that are backbones by name, in miniature: built from their own file, cut, and tuned by one step."""

from collections.abc import Mapping

import pytest
import timm
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from repository import ROOT
from safetensors.torch import save_file
from tiny_diffusion import parts, tiny_sd
from torch import nn
from torch.testing import assert_close
from transformers import VJEPA2Config, VJEPA2Model

from semcorr.core.errors import UserError
from semcorr.core.interfaces import Backbone
from semcorr.models.backbones.diffusion import StableDiffusion
from semcorr.models.backbones.franca import NETWORKS, Franca
from semcorr.models.backbones.vjepa2 import VJEPA2

pytestmark = pytest.mark.integration

VIT = {"embed_dim": 48, "depth": 3, "num_heads": 3}
CONVNEXT = {"depths": [1, 1, 2, 1], "dims": [8, 16, 32, 48]}
HIERA = {"embed_dim": 8, "num_heads": 1, "stages": [1, 1, 2, 1], "global_att_blocks": [3]}
DINOV2 = {"model_type": "dinov2", "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "patch_size": 8}
PREDICTOR = {"pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
VIDEO = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8, "crop_size": 64}
VIDEO |= PREDICTOR
SMALL: dict[str, Mapping[str, object]] = {
    "eupe_convnext": CONVNEXT,
    "sam2": HIERA,
    "sam2_t": HIERA,
    "sam2_l": HIERA,
    "sapiens2": VIT | {"num_kv_heads": [3, 3, 3]},
    "sapiens2_l": VIT | {"num_kv_heads": [3, 3, 3]},
    "sapiens2_h": VIT | {"num_kv_heads": [3, 3, 3]},
    "webssl": DINOV2 | {"mean": [0.5] * 3, "std": [0.5] * 3},
    "vjepa2": VIDEO,
}
NEW = ("pe_", "radio", "tipsv2", "eupe", "lingbot", "aimv2", "dinov3_sat", "siglip2_naflex", "sam2", "sapiens2")
NEW += ("ijepa", "webssl", "franca", "vjepa2")
NAMES = sorted(file.stem for file in (ROOT / "conf" / "backbone").glob("*.yaml") if file.stem.startswith(NEW))
CLEAN = ("cleandift", "cleandift_sd15")


def composed(name: str) -> object:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(overrides=[f"+backbone={name}", "backbone.pretrained=false"]).backbone


def build(name: str) -> Backbone:
    torch.manual_seed(0)
    if name in CLEAN:
        config = OmegaConf.to_container(composed(name))
        options = {key: value for key, value in config.items() if key != "_target_"}
        return get_class(config["_target_"])(**options | {"size": 64, "parts": parts()}).eval()
    cells = 16 if name.startswith("sam2") else 4  # its windows are of up to 14 cells
    return instantiate(composed(name), size=None, grid=cells, _convert_="all", **SMALL.get(name, VIT)).eval()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", [*NAMES, *CLEAN])
def test_a_network_by_name_is_built_cut_at_three_depths_and_tuned(name):
    backbone = build(name)
    image = torch.rand(2, 3, backbone.size, backbone.size, generator=torch.Generator().manual_seed(0))
    last = len(backbone.blocks)

    with torch.no_grad():
        whole = backbone(image)
        for depth in (0, last // 2, last - 1):
            assert torch.equal(backbone.suffix(backbone.prefix(image, depth), depth).values, whole.values)
        state = backbone.prefix(image, last - 1)
    cells = backbone.size // backbone.stride
    assert whole.values.shape == (2, backbone.channels, cells, cells)
    tuned = list(backbone.blocks[-1].parameters())
    optimizer = torch.optim.SGD(tuned, lr=0.1)
    backbone.suffix(state, last - 1).values.sin().sum().backward()
    optimizer.step()

    with torch.no_grad():
        assert not torch.equal(backbone(image).values, whole.values)
        assert torch.equal(backbone.suffix(state, last - 1).values, backbone(image).values)


def test_vjepa2_is_the_librarys_video_encoder_on_one_frame(tmp_path):
    torch.manual_seed(0)
    reference = VJEPA2Model(VJEPA2Config(**VIDEO)).eval()
    reference.save_pretrained(tmp_path)
    image = torch.rand(2, 3, 64, 64)

    ours = VJEPA2("any", size=64, weights=str(tmp_path), mean=[0.5] * 3, std=[0.25] * 3).eval()

    with torch.no_grad():
        expected = reference.get_vision_features(((image - 0.5) / 0.25)[:, None])
        assert_close(ours(image).values.flatten(2).mT, expected, atol=1e-5, rtol=1e-4)


def test_vjepa2_turns_a_cell_by_its_own_row_and_column_on_every_grid():
    """The upper left 4 x 4 cells of an image have the positions that they have alone: with values of zero elsewhere."""
    backbone = build("vjepa2")
    block, seen = backbone.units[0].layer.attention, []
    block.register_forward_pre_hook(lambda _, __, given: seen.append(given["position_mask"]), with_kwargs=True)

    with torch.no_grad():
        backbone(torch.rand(1, 3, 32, 48))
    frame, row, column = block.get_position_ids(torch.zeros(1, 24, 48), masks=seen[0])

    assert (frame == 0).all()
    assert torch.equal(row[0, 0], torch.arange(4).repeat_interleave(6))
    assert torch.equal(column[0, 0], torch.arange(6).repeat(4))


@pytest.mark.parametrize("name", NETWORKS)
def test_franca_is_dinov2_with_gated_layers_of_dinov2s_width(name):
    with torch.device("meta"):
        network, ratio, side = NETWORKS[name]
        model = timm.create_model(network, mlp_ratio=ratio, mlp_layer=timm.layers.mlp.SwiGLUPacked, img_size=side)

    width = model.embed_dim
    hidden = (int(4 * width * 2 / 3) + 7) // 8 * 8  # DINOv2's rule: two thirds of four widths, in eights
    assert model.blocks[0].mlp.fc1.weight.shape == (2 * hidden, width)
    assert model.blocks[0].mlp.fc2.weight.shape == (width, hidden)


def test_franca_reads_the_teacher_of_a_release_file(tmp_path):
    """Blocks in chunks, each with empty places before its own; two prefixes; heads of its training beside it."""
    shape = {"depth": 3, "embed_dim": 48, "num_heads": 3, "img_size": 56}
    torch.manual_seed(0)
    reference = Franca("vitb14", size=56, pretrained=False, **shape).eval()
    names = {"mlp.fc1": "mlp.w12", "mlp.fc2": "mlp.w3"}
    teacher = {"module.backbone.mask_token": torch.zeros(1, 48), "module.dino_head.mlp.0.weight": torch.zeros(2, 2)}
    for key, value in reference.model.state_dict().items():
        for ours, official in names.items():
            key = key.replace(ours, official)
        if key.startswith("blocks."):
            key = f"blocks.{int(key.split('.')[1]) // 2}.{key.partition('.')[2]}"
        teacher[f"module.backbone.{key}"] = value
    torch.save({"teacher": teacher}, tmp_path / "franca.pth")

    torch.manual_seed(1)
    ours = Franca("vitb14", size=56, weights=str(tmp_path / "franca.pth"), **shape).eval()

    assert ours.sha256 == reference.sha256
    with pytest.raises(UserError, match=r"Franca's weights are on no hub\. Download franca_vitb14_\*\.pth"):
        Franca("vitb14", size=56)
    with pytest.raises(UserError, match=r"`backbone\.img_size` must be at least 1 or a list, got 0"):
        Franca("vitb14", size=56, pretrained=False, img_size=0)


def test_cleandift_reads_a_clean_latent_by_its_own_unet(tmp_path):
    trained = parts(seed=1).unet
    save_file(trained.state_dict(), tmp_path / "unet.safetensors")
    image = torch.rand(1, 3, 64, 64)
    given = {"noise": False, "seed": 3}

    ours = tiny_sd(**given, unet_weights=str(tmp_path / "unet.safetensors"))
    other = parts()
    other.unet.load_state_dict(trained.state_dict())
    expected = StableDiffusion("tiny", parts=other, size=64, layers=[5], ensemble=1, noise=False, seed=8).eval()

    with torch.no_grad():
        assert torch.equal(ours(image).values, expected(image).values)  # whatever the seed: there is no noise
        assert not torch.equal(ours(image).values, tiny_sd(**given)(image).values)
        assert torch.equal(ours._initial_state(ours.encode(image)).hidden, ours.conv_in(ours.encode(image)))


def test_a_clean_latent_needs_one_pass_and_a_unet_of_the_same_shape(tmp_path):
    save_file(parts(version=1).unet.state_dict(), tmp_path / "unet.safetensors")

    with pytest.raises(UserError, match=r"`backbone\.ensemble` must be 1 where backbone\.noise=false, got 8"):
        tiny_sd(noise=False, ensemble=8)
    with pytest.raises(UserError, match=r"`backbone\.unet_weights`: .*does not fit"):
        tiny_sd(unet_weights=str(tmp_path / "unet.safetensors"))
    with pytest.raises(UserError, match=r"`backbone\.unet_name` must be ACCOUNT/MODEL/FILE"):
        tiny_sd(unet_name="unet.safetensors", weights="x")


def test_a_network_without_a_final_norm_has_none():
    assert build("radio_v3").norm is None
    assert build("sam2").norm is None
    assert isinstance(build("lingbot").norm, nn.LayerNorm)
