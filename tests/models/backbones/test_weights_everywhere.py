"""Wherever weights are given, a file of another kind is told for what it is, and never read as numbers."""

import gzip
import json
import re
import shlex
from collections.abc import Callable

import pytest
import segment_anything
import torch
from backbone_cases import PROMISES, hf_vit, sam, squeezenet, tiny
from safetensors.torch import save_file
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from test_weight_kinds import UNSAFE, dinov2
from tiny_diffusion import parts, tiny_sd, write_parts
from torch import nn
from torchscript_cases import script
from weight_kinds import PAGE, POINTER, State, legacy, packed, saved, under, whole_numbers

from semcorr.cli.compose import compose_config
from semcorr.core.errors import UserError
from semcorr.engine.checkpoints import load_checkpoint
from semcorr.engine.run_config import check_config
from semcorr.evaluation.pose.alignment import AdaptivePose
from semcorr.evaluation.pose.masks import load_box_prompted_sam
from semcorr.inference.load import restore_model
from semcorr.models.backbones.timm_model import TimmModel
from semcorr.models.backbones.transformers_model import TransformersModel
from semcorr.models.heads.aggregation import Aggregation
from semcorr.models.weights.checkpoints import read_weights

pytestmark = pytest.mark.integration

CPU = torch.device("cpu")
LITTLE = {"size": 64, "pretrained": False, "embed_dim": 48, "depth": 2, "num_heads": 3}


def clip(**options: object) -> TimmModel:
    return TimmModel("vit_base_patch16_clip_quickgelu_224.openai", **(LITTLE | options))


FAMILIES: dict[str, Callable] = {name: promise.build for name, promise in PROMISES.items()} | {"clip": clip}


def network(backbone: nn.Module) -> State:
    return (backbone.features if hasattr(backbone, "features") else backbone.model).state_dict()


def not_a_number(own: State) -> State:
    key = next(key for key, value in own.items() if value.is_floating_point() and value.numel() > 8)
    return own | {key: torch.full_like(own[key], torch.nan)}


def lora(_: State) -> State:
    name = "base_model.model.blocks.0.attn.qkv.lora_{}.weight"
    return {name.format("A"): torch.ones(4, 48), name.format("B"): torch.ones(144, 4)}


WRONG: dict[str, tuple[Callable[[State], bytes], str]] = {
    "pointer": (lambda _: POINTER.encode(), r"is a Git LFS pointer.*git lfs pull"),
    "page": (lambda _: PAGE.encode(), r"is an HTML page"),
    "packed page": (lambda _: gzip.compress(PAGE.encode()), r"by gzip, and what is in it is an HTML page"),
    "cut short": (lambda own: saved(own)[:3000], r"is cut short"),
    "NaN": (lambda own: saved(not_a_number(own)), r"are not finite"),
    "whole numbers": (lambda own: saved(whole_numbers(own)), r"is quantised \(.* is int8\)"),
    "a module": (lambda _: saved({"model": nn.Linear(2, 2)}), r"nothing in it was run\. It holds a whole model"),
}


def catch_message(read: Callable[[], object]) -> str:
    with pytest.raises(UserError) as error:
        read()
    output = str(error.value)
    assert "\n" not in output
    assert not any(word in output for word in (*UNSAFE, "trust")), output
    return output


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_says_what_a_file_is_and_reads_what_wraps_its_own(tmp_path, name) -> None:
    build, path = FAMILIES[name], tmp_path / "w.pth"
    torch.manual_seed(7)
    own = network(build())

    for kind, (write, expected) in (WRONG | {"adapter": (lambda o: saved(lora(o)), r"is an adapter \(LoRA\)")}).items():
        path.write_bytes(write(own))
        output = catch_message(lambda: build(weights=str(path)))
        assert output.startswith("`backbone.weights`: ")
        assert re.search(expected, output), kind
    for wrapped in (
        {"state_dict": under("net.backbone.", own), "optimizer_states": [{}], "hyper_parameters": {"lr": 0.1}},
        under("module._orig_mod.", own),
        {"model": {key: value.double() for key, value in own.items()}},
    ):
        path.write_bytes(saved(wrapped))
        loaded = network(build(weights=str(path)))
        assert all(torch.equal(loaded[key], own[key]) for key in loaded)
    script(own, path)
    assert read_weights(path).keys() == own.keys()


def test_a_file_is_looked_at_before_a_network_is_built(tmp_path, monkeypatch) -> None:
    path = tmp_path / "w.pth"
    path.write_text(POINTER)

    def build(*_: object, **__: object) -> None:
        raise AssertionError("a network was built")

    monkeypatch.setattr("semcorr.models.backbones.timm_model.create_timm_model", build)
    monkeypatch.setattr("semcorr.models.backbones.segment_anything.VisionTransformerSAM", build)
    monkeypatch.setattr("semcorr.models.backbones.squeezenet.squeezenet1_1", build)
    monkeypatch.setattr("semcorr.models.backbones.transformers_weights._find_config", build)

    for family in (tiny, sam, squeezenet, hf_vit("dinov2")):
        assert "is a Git LFS pointer" in catch_message(lambda family=family: family(weights=str(path)))


@pytest.mark.parametrize(
    "line",
    ["backbone=squeezenet backbone.weights={}", "backbone=sd_dinov2 backbone.dino_weights={}",
     "backbone=tiny head=aggregation head.weights={}"],
)  # fmt: skip
def test_a_line_is_refused_before_data_is_drawn(tmp_path, line) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(gzip.compress(PAGE.encode()))
    cfg = compose_config("evaluate", shlex.split(line.format(path)))

    for content, expected in ((PAGE, "is an HTML page"), ("", "is empty"), (None, "does not exist")):
        path.unlink() if content is None else path.write_text(content)
        assert f"{path} {expected}" in catch_message(lambda: check_config(cfg))


def test_weights_that_do_not_fit_are_not_said_to_be_taken_by_the_backbone_that_refused_them(tmp_path) -> None:
    path = tmp_path / "w.pth"
    own = dinov2(False).model.state_dict()
    for content, expected in (
        ({key: value for key, value in own.items() if key != "norm.bias"}, "as this backbone is: it is not whole"),
        (dinov2(False, depth=3).model.state_dict(), "48 channels wide, 3 blocks and not 2"),
        (dinov2(False, embed_dim=96).model.state_dict(), "96 channels wide, which none here is"),
        (dinov2(True).model.state_dict(), "of DINOv2 with registers, 48 channels wide"),
        (dinov2(False, embed_dim=384, num_heads=6, depth=1).model.state_dict(), "384 channels wide: backbone=dinov2_s"),
    ):
        torch.save(content, path)
        output = catch_message(lambda: dinov2(False, weights=str(path)))
        assert expected in output
        assert "backbone=dinov2 takes it" not in output


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["unet", "text_encoder"])
def test_every_part_of_stable_diffusion_says_what_its_file_is(tmp_path, folder) -> None:
    write_parts(tmp_path, parts())
    stem = "model" if folder == "text_encoder" else "diffusion_pytorch_model"
    path = tmp_path / folder / f"{stem}.safetensors"
    old = tmp_path / folder / ("pytorch_model.bin" if folder == "text_encoder" else f"{stem}.bin")
    own = {key: value.clone() for key, value in read_weights(path).items()}

    def load() -> object:
        return tiny_sd(parts=None, weights=str(tmp_path))

    path.unlink()
    for write, expected in WRONG.values() if folder == "unet" else [WRONG["pointer"], WRONG["NaN"]]:
        old.write_bytes(write(own))
        output = catch_message(load)
        assert re.search(expected, output)
        assert f"{folder} " in output
    old.unlink()
    for content, expected in ((POINTER.encode(), "is a Git LFS pointer"), (packed(own)[:-100], "is cut short")):
        path.write_bytes(content)
        assert f"{path} {expected}" in catch_message(load)
    path.write_bytes(saved(own))
    assert f"is a file of PyTorch. Call it {old.name}." in catch_message(load)
    path.write_bytes(packed(own))
    old.write_text(POINTER)  # the library passes over it
    load()
    old.unlink()
    path.rename(path.with_name(f"{stem}.fp16.safetensors"))
    assert f"Call {stem}.fp16.safetensors in it {stem}.safetensors" in catch_message(load)


def test_what_is_no_folder_of_stable_diffusion_is_reported(tmp_path) -> None:
    write_parts(tmp_path / "sd", parts())
    save_file({"model.diffusion_model.out.2.bias": torch.ones(4)}, tmp_path / "v1-5.safetensors")
    (tmp_path / "page").write_text(PAGE)

    for given, expected in {
        "v1-5.safetensors": "from_single_file(FILE).save_pretrained(DIRECTORY)",
        "page": "is an HTML page",
        "absent": "does not exist",
        "sd/unet": f"Give the whole: {tmp_path / 'sd'}",
    }.items():
        assert expected in catch_message(lambda given=given: tiny_sd(parts=None, weights=str(tmp_path / given)))
    assert "Take backbone=sd" in catch_message(lambda: tiny(weights=str(tmp_path / "sd")))


def test_folders_of_transformers_say_which_file_is_none(tmp_path) -> None:
    hf_vit("dinov2")(seed=3).model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}')

    def load() -> object:
        return TransformersModel("some/model", 64, weights=str(tmp_path))

    load()
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        whole = (tmp_path / name).read_bytes()
        for content, expected in ((POINTER, "is a Git LFS pointer"), (PAGE, "is an HTML page"), ("", "is empty")):
            (tmp_path / name).write_text(content)
            output = catch_message(load)
            assert name in output
            assert expected in output
        (tmp_path / name).write_bytes(whole)


def test_shards_of_two_models_and_folders_of_adapters_are_recognised(tmp_path) -> None:
    own = tiny(seed=5).model.state_dict()
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    halves = [dict(list(own.items())[:20]), dict(list(own.items())[20:])]
    for name, half in zip(names, halves, strict=True):
        (tmp_path / name).write_bytes(packed(half))
    places = {key: names[key in halves[1]] for key in own}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert all(torch.equal(value, own[key]) for key, value in read_weights(tmp_path).items())

    (tmp_path / names[1]).write_bytes(packed(own))
    assert "so does another part: they are of two models" in catch_message(lambda: tiny(weights=str(tmp_path)))
    (tmp_path / "model.safetensors.index.json").write_text(PAGE)
    assert "index.json is an HTML page" in catch_message(lambda: tiny(weights=str(tmp_path)))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(packed(lora({})))
    for path in (tmp_path / "adapter", tmp_path / "adapter" / "adapter_model.safetensors"):
        assert "merge_and_unload" in catch_message(lambda path=path: tiny(weights=str(path)))


def test_the_file_of_a_head_is_recognised(tmp_path) -> None:
    path, shape = tmp_path / "head.pth", {"maps": [48], "out": 48, "width": 12, "groups": 4}
    own = Aggregation(**shape).state_dict()

    def load() -> Aggregation:
        return Aggregation(**shape, weights=str(path))

    for write, expected in WRONG.values():
        path.write_bytes(write(own))
        with pytest.raises(UserError, match=expected):
            load()
        assert catch_message(load).startswith(f"`head.weights`: {path}")
    path.write_bytes(saved(network(squeezenet())))
    assert "The file is of SqueezeNet: backbone=squeezenet takes it" in catch_message(load)
    path.write_bytes(saved(own))
    assert "a head, not a backbone: head.weights takes it" in catch_message(lambda: tiny(weights=str(path)))
    for content in (saved({"state_dict": under("model.", own), "epoch": 1}), legacy(own), packed(own)):
        path.write_bytes(content)
        assert all(torch.equal(value, own[key]) for key, value in load().state_dict().items())


def tiny_sam() -> Sam:
    encoder = ImageEncoderViT(img_size=64, embed_dim=768, depth=1, num_heads=2, out_chans=16, use_rel_pos=True)
    return Sam(encoder, PromptEncoder(16, (4, 4), (64, 64), 4),
               MaskDecoder(transformer_dim=16, transformer=TwoWayTransformer(1, 16, 2, 16)))  # fmt: skip


def test_segment_anything_as_a_mask_is_looked_at_before_images_are(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(segment_anything.sam_model_registry, "vit_b", tiny_sam)
    path, own = tmp_path / "sam.pth", tiny_sam().state_dict()
    for write, expected in WRONG.values():
        path.write_bytes(write(own))
        with pytest.raises(UserError, match=expected):
            load_box_prompted_sam(str(path), CPU)
    for content in (POINTER, PAGE, ""):
        path.write_text(content)
        output = catch_message(lambda: AdaptivePose(mirror=True, mask="sam", sam_weights=str(path)))
        assert output.startswith(f"`pose.sam_weights`: {path} is ")
    path.write_bytes(saved({k: v for k, v in own.items() if k.startswith("image_encoder.")}))
    catch_message(lambda: load_box_prompted_sam(str(path), CPU))
    path.write_bytes(saved({"model": under("module.", own)}))
    loaded = load_box_prompted_sam(str(path), CPU).predictor.model.state_dict()
    assert all(torch.equal(loaded[key], own[key]) for key in own)


def test_weights_are_no_run_and_a_run_is_no_weights(tmp_path) -> None:
    run = tmp_path / "run"
    best = run / "checkpoints" / "best.ckpt"
    best.parent.mkdir(parents=True)
    (run / "config.yaml").write_text("seed: 1")
    path = tmp_path / "w.pth"
    own = tiny(seed=5).model.state_dict()
    path.write_bytes(saved(own))

    assert f"as 'backbone=dinov2 backbone.weights={path}'" in catch_message(lambda: restore_model(path))
    assert "backbone.weights" in catch_message(lambda: restore_model(f"checkpoint={path}"))
    best.write_bytes(saved({"state_dict": own, "base": {"backbone": "tiny", "sha256": "0"}}))
    assert f"Give the run: {run}" in catch_message(lambda: restore_model(str(best)))
    for given in (run, best):
        assert "checkpoint=" in catch_message(lambda given=given: tiny(weights=str(given)))
    for content in (POINTER.encode(), PAGE.encode(), gzip.compress(PAGE.encode()), b"Not found", b"", bytes(999),
                    saved(own)[:999], packed(own), legacy(own), saved(own), saved({"optimizer": {}})):  # fmt: skip
        best.write_bytes(content)
        assert catch_message(lambda: load_checkpoint(best)).startswith(f"`checkpoint`: {best} is damaged (")
