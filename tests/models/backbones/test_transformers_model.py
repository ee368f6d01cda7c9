import json
from pathlib import Path

import pytest
import torch
from backbone_cases import HUGGING_FACE, IMAGE, STATISTICS, hf_convnext, hf_vit
from torch import nn
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    CLIPConfig,
    CLIPModel,
    ConvNextConfig,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
    ResNetConfig,
    ResNetModel,
)

from semcorr.core.errors import UserError
from semcorr.models.backbones.transformers_model import TransformersModel

SIDES = [(64, 64), (32, 32), (64, 96), (40, 120)]


def saved(network: nn.Module, folder: Path, mean: float | None = 0.5) -> str:
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    network.save_pretrained(folder)
    if mean is not None:
        stated = {"image_mean": [mean] * 3, "image_std": [0.25] * 3, "image_processor_type": "BitImageProcessor"}
        (folder / "preprocessor_config.json").write_text(json.dumps(stated))
    return str(folder)


def dinov2(folder: Path, **options) -> str:
    return saved(Dinov2Model(Dinov2Config(**HUGGING_FACE)), folder, **options)


@pytest.mark.parametrize("family", ["dinov2", "dinov2_with_registers", "dinov3_vit", "clip_vision_model", "vit_mae"])
@pytest.mark.parametrize(("height", "width"), SIDES)
def test_a_transformer_takes_any_multiple_of_its_patch(family, height, width):
    with torch.no_grad():
        values = hf_vit(family)()(torch.rand(1, 3, height, width)).values

    assert values.shape == (1, 48, height // 8, width // 8)


@pytest.mark.parametrize(
    "family", ["dinov2", "dinov2_with_registers", "dinov3_vit", "clip_vision_model", "vit_mae", "vit"]
)
def test_cells_are_in_reading_order_and_prefix_tokens_are_left_out(family):
    """What changes most where one patch of the image changes is that patch's cell."""
    backbone = hf_vit(family)(layers=[0], norm=False)
    changed = IMAGE.clone()
    changed[..., 16:24, 72:80] = 1 - changed[..., 16:24, 72:80]

    with torch.no_grad():
        difference = (backbone(IMAGE).values - backbone(changed).values).norm(dim=1)

    assert (difference.flatten(1).argmax(dim=1) == 2 * 12 + 9).all()


def test_layers_are_the_librarys_hidden_states_before_the_norm(tmp_path):
    weights = dinov2(tmp_path)
    reference = Dinov2Model.from_pretrained(weights).eval()

    with torch.no_grad():
        for layer in (0, 1, -1):
            ours = TransformersModel("any", size=64, weights=weights, layers=[layer], norm=False).eval()
            states = reference((IMAGE - 0.5) / 0.25, output_hidden_states=True).hidden_states[1:]
            expected = states[layer][:, 1:].unflatten(1, (8, 12)).movedim(-1, 1)
            assert_close(ours(IMAGE).values, expected, atol=1e-5, rtol=1e-5)


def test_norm_is_the_librarys_last_hidden_state(tmp_path):
    weights = dinov2(tmp_path)
    ours = TransformersModel("any", size=64, weights=weights).eval()

    with torch.no_grad():
        expected = Dinov2Model.from_pretrained(weights).eval()((IMAGE - 0.5) / 0.25).last_hidden_state
        assert_close(ours(IMAGE).values.flatten(2).mT, expected[:, 1:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("place", range(3))
def test_facets_are_what_the_projections_give(place):
    facet = ("query", "key", "value")[place]
    backbone = hf_vit("dinov2")(layers=[2], facet=facet)
    attention = backbone.blocks[2].attention
    module = (attention.q_proj, attention.k_proj, attention.v_proj)[place]
    seen = []
    module.register_forward_hook(lambda _, __, out: seen.append(out))

    with torch.no_grad():
        values = backbone(IMAGE).values

    assert torch.equal(values.flatten(2).mT, seen[0].flatten(2)[:, 1:])
    assert backbone.norm is None


@pytest.mark.parametrize(
    ("network", "stages"),
    [
        (lambda: ConvNextModel(ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1])), [4, 8, 16, 32]),
        (
            lambda: ResNetModel(ResNetConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1], embedding_size=8)),
            [4, 8, 16, 32],
        ),
    ],
    ids=["convnext", "resnet"],
)
def test_stages_of_a_convolutional_network_are_the_librarys_hidden_states(tmp_path, network, stages):
    weights = saved(network(), tmp_path)
    reference = type(network()).from_pretrained(weights).eval()

    for layer, stride in enumerate(stages):
        ours = TransformersModel("any", size=64, weights=weights, layers=[layer]).eval()
        with torch.no_grad():
            expected = reference((IMAGE - 0.5) / 0.25, output_hidden_states=True).hidden_states[layer + 1]
            assert_close(ours(IMAGE).values, expected, atol=1e-5, rtol=1e-5)
        assert (ours.stride, ours.channels, len(ours.blocks)) == (stride, (8, 16, 24, 32)[layer], layer + 1)


def test_dinov3_is_not_augmented_while_it_is_tuned():
    backbone = hf_vit("dinov3_vit")(pos_embed_rescale=2.0, pos_embed_shift=0.5)

    with torch.no_grad():
        assert torch.equal(backbone.train()(IMAGE).values, backbone.eval()(IMAGE).values)


def test_a_file_beside_its_config_is_read_as_its_folder_is(tmp_path):
    weights = dinov2(tmp_path)

    whole = TransformersModel("any", size=64, weights=weights)
    file = TransformersModel("any", size=64, weights=f"{weights}/model.safetensors")

    assert whole.sha256 == file.sha256
    assert_close(whole.mean.flatten(), torch.full((3,), 0.5))


def test_of_clip_the_image_encoder_is_built(tmp_path):
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
    text |= {"intermediate_size": 16, "bos_token_id": 1, "eos_token_id": 2}
    weights = saved(CLIPModel(CLIPConfig(vision_config=HUGGING_FACE, text_config=text)), tmp_path)
    reference = CLIPModel.from_pretrained(weights).vision_model.eval()

    ours = TransformersModel("any", size=32, weights=weights, norm=False).eval()

    with torch.no_grad():
        expected = reference((IMAGE[..., :32, :32] - 0.5) / 0.25).last_hidden_state[:, 1:]
        assert_close(ours(IMAGE[..., :32, :32]).values.flatten(2).mT, expected, atol=1e-5, rtol=1e-5)


def test_missing_statistics_are_asked_for(tmp_path):
    weights = dinov2(tmp_path, mean=None)

    with pytest.raises(UserError, match=r"`backbone\.mean`, `backbone\.std`: .*preprocessor_config\.json"):
        TransformersModel("any", size=64, weights=weights)
    stated = TransformersModel("any", size=64, weights=weights, mean=[0.1, 0.2, 0.3], std=[1, 1, 1])
    assert_close(stated.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mean": [0.1, 0.2, 0.3]}, r"`backbone\.mean` needs backbone\.std as well"),
        ({"std": [1, 1, 1]}, r"`backbone\.std` needs backbone\.mean as well"),
        ({"mean": [0.1, 0.2], "std": [1, 1, 1]}, r"`backbone\.mean` must have three numbers, .* got \[0\.1, 0\.2\]"),
        ({"mean": [0.1, 0.2, 0.3], "std": [1]}, r"`backbone\.std` must have three numbers"),
    ],
)
def test_half_of_the_statistics_is_not_passed_over(tmp_path, given, message):
    with pytest.raises(UserError, match=message):
        TransformersModel("any", size=64, weights=dinov2(tmp_path), **given)


def test_weights_that_lack_a_block_are_not_filled_up_with_random_ones(tmp_path):
    short = HUGGING_FACE | {"num_hidden_layers": 2}
    file = Path(saved(Dinov2Model(Dinov2Config(**short)), tmp_path)) / "model.safetensors"
    (tmp_path / "config.json").unlink()

    with pytest.raises(UserError, match=r"does not fit this backbone\. \d+ missing: encoder\.layer\.2\."):
        hf_vit("dinov2")(weights=str(file))
    hf_vit("dinov2")(weights=str(file), layers=[1], norm=False)  # which is not read then


def test_weights_of_another_width_are_refused(tmp_path):
    wide = HUGGING_FACE | {"hidden_size": 96}
    file = Path(saved(Dinov2Model(Dinov2Config(**wide)), tmp_path)) / "model.safetensors"
    (tmp_path / "config.json").unlink()

    with pytest.raises(UserError, match=r"model\.safetensors does not fit this backbone"):
        hf_vit("dinov2")(weights=str(file))


@pytest.mark.sampled(8)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "dinov9"}, "`backbone.model_type`: the transformers library has no 'dinov9'"),
        ({"model_type": "dinov2", "hiden_size": 8}, "`backbone.hiden_size` is nothing that dinov2 takes"),
        ({"hidden_size": 8}, "`backbone.hidden_size` needs `backbone.model_type`"),
        ({"model_type": "bert"}, "Choose another backbone"),
        (
            {"model_type": "yolos", "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3},
            "has tokens of its own behind those of the patches",
        ),
        ({"model_type": "dinov2", "layers": [1], "facet": "keys"}, "`backbone.facet` must be one of"),
        ({"model_type": "dinov2", **HUGGING_FACE, "layers": [0], "facet": "key"}, "choose from 1 to"),
        ({"model_type": "dinov2", **HUGGING_FACE, "size": 63}, "must be a multiple of 8 pixels, got 63"),
        ({"model_type": "swin"}, "does not take images of any size"),
        (
            {"model_type": "dinov2", **HUGGING_FACE, "num_attention_heads": 0},
            "cannot build any (integer modulo by zero",
        ),
    ],
)
def test_an_option_out_of_range_is_refused_with_its_range(options, message):
    with pytest.raises(UserError) as error:
        TransformersModel("any", **({"size": 64, "pretrained": False} | options))

    assert message in str(error.value)


def test_facets_of_a_convolutional_network_are_refused():
    with pytest.raises(UserError, match="has no queries, keys and values, only `token`"):
        hf_convnext(facet="key")


def test_random_weights_need_no_hub_but_a_family(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(AutoConfig, "from_pretrained", refuse)

    with pytest.raises(UserError, match=r"`backbone\.model_type` \(dinov2, dinov3_vit, convnext"):
        TransformersModel("no/such-place", size=64, pretrained=False, **STATISTICS)
