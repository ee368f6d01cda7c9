"""The unified benchmark's files of tuned blocks, written as its training writes them, from the transformers library."""

import re
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers import Dinov2Backbone, Dinov2Config

from semcorr.core.errors import UserError
from semcorr.engine.shared_run import remove_places
from semcorr.models.backbones.timm_model import TimmModel
from semcorr.models.finetune.last_blocks import last_blocks

SIDE = 56
THEIRS = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "patch_size": 14, "image_size": SIDE}
OURS = {"embed_dim": 48, "depth": 3, "num_heads": 3, "patch_size": 14, "img_size": SIDE, "size": SIDE}
IMAGE = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def shake(parameters, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + 0.3 * noise if parameter.ndim < 2 else noise * parameter[0].numel() ** -0.5


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> tuple[Dinov2Backbone, Path]:
    """Their DINOv2, tuned, beside the folder of its weights as they were."""
    folder = tmp_path_factory.mktemp("base")
    network = Dinov2Backbone(Dinov2Config(**THEIRS, out_features=["stage3"])).eval()
    shake(network.parameters(), 0)
    network.save_pretrained(folder)
    for layer in network.encoder.layer[1:]:
        shake(layer.parameters(), 1)
    return network, folder


def ours(folder: Path) -> TimmModel:
    return TimmModel("vit_small_patch14_dinov2", **OURS, pretrained=False, weights=str(folder)).eval()


def write(network: Dinov2Backbone, path: Path, first: int) -> Path:
    """`best_weights.pt`: the parameters from a layer on, in a list, as its `trainable_state_dict` makes it."""
    torch.save({"dino": [p for layer in network.encoder.layer[first:] for p in layer.parameters()]}, path)
    return path


@pytest.mark.parametrize(("first", "blocks"), [(1, 2), (1, 3)], ids=["as many", "the last of more"])
def test_features_are_those_of_the_network_that_wrote_the_file(network, tmp_path, first, blocks):
    reference, folder = network
    backbone = ours(folder)
    before = {name: value.clone() for name, value in backbone.named_parameters()}

    last_blocks(backbone, blocks, norm=False, block_weights=str(write(reference, tmp_path / "best_weights.pt", first)))

    with torch.no_grad():
        expected = reference((IMAGE - backbone.mean) / backbone.std).feature_maps[0]
        assert_close(backbone(IMAGE).values, expected, atol=1e-4, rtol=1e-4)
    moved = {name for name, value in backbone.named_parameters() if not torch.equal(value, before[name])}
    assert {re.match(r"model\.(blocks\.\d+)\.", name)[1] for name in moved} == {"blocks.1", "blocks.2"}
    trained = {name for name, value in backbone.named_parameters() if value.requires_grad}
    assert moved <= trained


def test_a_file_of_more_blocks_than_are_tuned_is_refused(network, tmp_path):
    reference, folder = network
    path = write(reference, tmp_path / "best_weights.pt", 1)

    for blocks in (0, 1):
        with pytest.raises(UserError, match=rf"has 2 blocks, and {blocks} are tuned.*Set finetune\.blocks=2"):
            last_blocks(ours(folder), blocks, block_weights=str(path))


def test_other_files_are_reported_by_what_they_are(network, tmp_path):
    reference, folder = network
    whole, short, text = (tmp_path / name for name in ("whole.pt", "short.pt", "notes.pt"))
    torch.save(reference.state_dict(), whole)
    torch.save({"dino": list(reference.parameters())[:5]}, short)
    text.write_text("no weights")
    messages = {
        whole: "is not a file of tuned blocks.*given as backbone.weights",
        short: "has 5 tensors, and a block of DINOv2 has 18",
        text: "finetune.block_weights",
        tmp_path / "none.pt": "does not exist",
    }

    for path, message in messages.items():
        with pytest.raises(UserError, match=message):
            last_blocks(ours(folder), 2, block_weights=str(path))


def test_another_backbone_is_refused(network, tmp_path):
    path = write(network[0], tmp_path / "best_weights.pt", 1)
    wider = TimmModel("vit_small_patch14_dinov2", **OURS | {"embed_dim": 96}, pretrained=False)
    unlike = TimmModel("vit_tiny_patch16_224", size=32, pretrained=False, patch_size=8, embed_dim=48, depth=3)

    for backbone in (wider, unlike):
        with pytest.raises(UserError, match=r"does not fit this backbone.*of a DINOv2 without registers"):
            last_blocks(backbone, 2, block_weights=str(path))


def test_as_a_backbones_weights_the_file_is_sent_where_it_belongs(network, tmp_path):
    path = write(network[0], tmp_path / "best_weights.pt", 1)

    with pytest.raises(UserError, match=r"`backbone\.weights`: .* tuned blocks alone.*as finetune\.block_weights"):
        ours(path)


def test_numbers_that_are_not_finite_are_refused(network, tmp_path):
    path = write(network[0], tmp_path / "best_weights.pt", 1)
    content = torch.load(path, weights_only=True)
    content["dino"][3].data[0] = torch.nan
    torch.save(content, path)

    with pytest.raises(UserError, match=r"1 of the .* are not finite"):
        last_blocks(ours(network[1]), 2, block_weights=str(path))


def test_a_shared_run_names_no_file_of_this_machine():
    """Also where parts of a backbone are tuned each in a way of its own."""
    tuned, prompt = {"block_weights": "/home/me/best_weights.pt", "blocks": 2}, {"weights": "dino.pth", "tokens": 25}

    assert remove_places({"finetune": tuned}) == {"finetune": {"block_weights": None, "blocks": 2}}
    assert remove_places({"finetune": {"ways": {"diffusion": prompt, "vision": tuned}}}) == {
        "finetune": {"ways": {"diffusion": {"weights": None, "tokens": 25}, "vision": {**tuned, "block_weights": None}}}
    }
