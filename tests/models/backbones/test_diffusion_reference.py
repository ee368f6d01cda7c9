"""Every map of Stable Diffusion's decoder is what diffusers' own pipeline computes, FreeU included."""

import pytest
import torch
from diffusers import DDIMScheduler
from tiny_diffusion import IMAGE, parts, tiny_sd
from torch.testing import assert_close

from semcorr.models.backbones.unet import UNetState

pytestmark = pytest.mark.integration

SKETCHY = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


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


VERSIONS = pytest.mark.parametrize("version", [1, 2])


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


def outputs_under_freeu_by_channels(pieces, image):
    """Written out: 24 channels, the most, are the first stage, 16 the second, 8 none. One map for each step."""
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
    with torch.no_grad():
        reference(pieces, image, [])
    for handle in handles:
        handle.remove()
    return entered[1:]


WIDE = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(1))


def test_the_original_freeu_goes_by_channels():
    pieces = parts()
    backbone = tiny_sd(parts=pieces, layers=range(12), freeu="channels")

    expected = outputs_under_freeu_by_channels(pieces, WIDE)
    with torch.no_grad():
        maps = backbone._read(backbone.encode(WIDE), backbone.prompt())

    for layer in range(12):
        assert_close(maps[layer], expected[layer], atol=1e-4, rtol=1e-4)


def test_geo_aware_reads_what_freeu_wrote_into_the_tensors():
    """Its blocks 2, 5 and 8 get the outputs of 1, 4 and 7; s5 and s4 have half their channels times 1.2, s3 1.4."""
    pieces = parts()
    options = {"parts": pieces, "layers": [1, 4, 7], "freeu": "channels"}
    backbone = tiny_sd(**options, freeu_in_features=True)

    expected = outputs_under_freeu_by_channels(pieces, WIDE)
    with torch.no_grad():
        s5, s4, s3 = backbone._read(backbone.encode(WIDE), backbone.prompt())
        before = tiny_sd(**options)(WIDE).values

    for values, step, half, factor in ((s5, 1, 12, 1.2), (s4, 4, 12, 1.2), (s3, 7, 8, 1.4)):
        assert values.shape[1] == 2 * half
        for channel in range(2 * half):
            written = expected[step][:, channel] * (factor if channel < half else 1)
            assert_close(values[:, channel], written, atol=1e-4, rtol=1e-4)
    assert (backbone(WIDE).values - before).abs().max() > 0.01


@pytest.mark.parametrize("layers", [range(12), [1, 4, 7], [-1], [2]])
def test_layers_with_freeu_are_the_tensors_that_diffusers_leaves(layers):
    """diffusers works in place, so that a tensor kept from before a step holds FreeU's factor after it."""
    pieces, kept = parts(), {}
    unet, backbone = pieces.unet, tiny_sd(parts=pieces, layers=layers, freeu="blocks", freeu_in_features=True)
    handles = []
    for step in range(12):
        block = unet.up_blocks[step // 3]
        last = block.attentions[step % 3] if hasattr(block, "attentions") else block.resnets[step % 3]
        last = block.upsamplers[0] if step % 3 == 2 and block.upsamplers else last

        def keep(_, __, out, step=step):
            kept[step] = out[0] if isinstance(out, tuple) else out

        handles.append(last.register_forward_hook(keep))

    with torch.no_grad():
        reference(pieces, IMAGE, [], freeu=True)
        for handle in handles:
            handle.remove()
        maps = backbone._read(backbone.encode(IMAGE), backbone.prompt())

    assert all(torch.equal(values, kept[step]) for values, step in zip(maps, backbone.layers, strict=True))


@pytest.mark.parametrize("freeu", ["blocks", "channels"])
def test_freeu_makes_a_difference_from_the_first_step_on(freeu):
    with torch.no_grad():
        for layer in (0, 4):
            plain, free = (tiny_sd(layers=[layer], freeu=choice)(IMAGE).values for choice in (None, freeu))
            assert (plain - free).abs().max() > 0.01


@pytest.mark.parametrize("timestep", [0, 100, 999])
def test_the_timestep_sets_the_noise_and_is_passed_to_the_unet(timestep):
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
            single._walk(UNetState(single.conv_in(noisy), {}), text, maps := {}, 0, 11)
            alone.append(maps[5])

        assert_close(backbone(IMAGE).values, torch.stack(alone).mean(0), atol=1e-5, rtol=1e-5)
    assert (alone[0] - alone[1]).abs().max() > 0.01
