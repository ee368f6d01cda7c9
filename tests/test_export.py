"""python -m semcorr.export as typed: a run trained, exported, and read back by what it is meant for."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest
import timm
import torch
from backbone_cases import IMAGE, PROMISES, VIT, resnet, squeezenet, tiny
from omegaconf import DictConfig, OmegaConf
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import Dinov2Config, Dinov2Model

from semcorr import export
from semcorr.backbones.timm_model import TimmModel
from semcorr.backbones.transformers_model import TransformersModel
from semcorr.errors import UserError
from semcorr.evaluate import evaluate
from semcorr.export_run import configuration, rebuilt
from semcorr.export_weights import adapter, difference, merged, write_head
from semcorr.finetune.adaptformer import adaptformer
from semcorr.finetune.houlsby import houlsby
from semcorr.finetune.last_blocks import last_blocks
from semcorr.finetune.lora import lora
from semcorr.finetune.peft_tuner import peft_tuner
from semcorr.onnx_graph import graph
from semcorr.train import train
from semcorr.types import FeatureMap

QUICK = [
    "data.steps=3",
    "data.batch_size=4",
    "optimizer.backbone_lr=1e-2",
    "trainer.max_epochs=1",
    "backbone.layers=[1]",
]
FACTS = {"base": "some"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one epoch, each trained when it is first asked for. None may change them."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def run(runs: Path, tiny: list[str], config: Callable[..., DictConfig]) -> Callable[..., Path]:
    """run("lora") is the directory of a run with finetune=lora; it reads the second of the network's four blocks."""

    def trained(finetune: str, *more: str) -> Path:
        if not (runs / finetune / "metrics.json").exists():
            train(config("train", *tiny, *QUICK, f"finetune={finetune}", *more, f"run_dir={runs / finetune}"))
        return runs / finetune

    return trained


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """typed("RUN --format onnx") is `python -m semcorr.export RUN --format onnx` in an empty folder; the exit code."""

    def main(*line: object) -> int:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["semcorr.export", *(str(part) for part in line)])
        with pytest.raises(SystemExit) as stop:
            export.main()
        return int(stop.value.code or 0)

    return main


def features(backbone: nn.Module, image: torch.Tensor = IMAGE) -> torch.Tensor:
    with torch.no_grad():
        return backbone(image).values


def of_run(run: Path, which: str = "best") -> nn.Module:
    return rebuilt(configuration(run), run, which).backbone


def moved(backbone: nn.Module) -> nn.Module:
    """As if trained: what may move has moved, and by enough to be seen in the features."""
    generator = torch.Generator().manual_seed(1)
    for parameter in backbone.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return backbone.eval()


def loud(backbone: nn.Module) -> nn.Module:
    """DINOv2 and DINOv3 begin with LayerScales so small that nothing inside a block is seen behind it."""
    for name, parameter in backbone.named_parameters():
        if name.rpartition(".")[2] in ("gamma", "gamma_1", "gamma_2"):
            parameter.data.fill_(1)
    return backbone


# -- merged --


@pytest.mark.parametrize("finetune", ["last_blocks", "lora"])
def test_a_merged_run_is_a_file_of_weights_that_scores_as_the_run_does(typed, run, config, tiny, tmp_path, finetune):
    trained = run(finetune)
    assert typed(trained, "--format", "merged", "--out", "w.safetensors") == 0

    plain = [*tiny, "backbone.layers=[1]", f"backbone.weights={tmp_path / 'w.safetensors'}"]
    found = evaluate(config("evaluate", *plain, "finetune.blocks=0"))
    assert found["pck"] == json.loads((trained / "metrics.json").read_text())["pck"]
    untuned = tiny_of(config("evaluate", *tiny, "backbone.layers=[1]"))
    assert difference(features(untuned), features(of_run(trained))) > 1e-3


def tiny_of(cfg: DictConfig) -> nn.Module:
    from semcorr.run import base

    return base(cfg)


WAYS = {"last_blocks": partial(last_blocks, blocks=2), "lora": partial(lora, rank=2)}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", PROMISES)
def test_every_backbone_reads_back_what_was_merged_and_gives_the_same_features(tmp_path, name, way):
    build = PROMISES[name].build
    backbone = loud(build())
    before = features(backbone)
    WAYS[way](backbone)
    expected = features(moved(backbone))

    told = merged(backbone, config_of(build, weights=None), tmp_path / "w.safetensors", FACTS)

    again = build(seed=1, weights=str(tmp_path / "w.safetensors"))
    assert difference(before, expected) > 1e-3
    assert difference(features(again), expected) < 1e-5
    assert told < 1e-5


def config_of(build: Callable, **options: object) -> DictConfig:
    return OmegaConf.create({"seed": 0, "backbone": {"_target_": build, **options}}, flags={"allow_objects": True})


def test_a_network_of_the_transformers_library_gets_its_configuration_beside_its_weights(tmp_path):
    shape = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "layerscale_value": 1.0}
    build = partial(TransformersModel, "some", size=56, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    backbone = build(pretrained=False, model_type="dinov2", **shape)
    lora(backbone, rank=2)
    expected = features(moved(backbone), IMAGE[..., :56, :84])

    merged(backbone, config_of(build, weights=None), tmp_path / "w.safetensors", FACTS)

    again = TransformersModel("some", size=56, weights=str(tmp_path / "w.safetensors")).eval()  # nothing else is said
    assert difference(features(again, IMAGE[..., :56, :84]), expected) < 1e-5


def test_merged_keys_are_the_networks_own(tmp_path):
    merged(tiny(), config_of(tiny, weights=None), tmp_path / "vit.safetensors", FACTS)
    merged(squeezenet(), config_of(squeezenet, weights=None), tmp_path / "squeezenet.safetensors", FACTS)

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
    told = capfd.readouterr()
    for part in ("w.safetensors (", " bytes)", base["sha256"][:12], "checkpoints/best.ckpt", "backbone.weights=w.saf"):
        assert part in told.out
    assert "Warning" not in told.out + told.err


def test_a_head_with_weights_gets_a_file_of_its_own(tmp_path):
    write_head(nn.Linear(2, 3), tmp_path / "head.safetensors", FACTS)
    write_head(nn.Identity(), tmp_path / "none.safetensors", FACTS)

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


# -- peft --


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

    assert difference(after, features(tuned)) < 1e-5
    assert difference(before, features(tuned)) > 1e-3
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

    adapter(moved(backbone), config_of(lambda: untuned), tmp_path / "adapter_config.json", FACTS)

    image = torch.rand(1, 3, 56, 84)
    model = PeftModel.from_pretrained(network, str(tmp_path))
    with torch.no_grad():
        tokens = model(pixel_values=(image - backbone.mean) / backbone.std, output_hidden_states=True).hidden_states[2]
    found = tokens[:, 1:].unflatten(1, (4, 6)).movedim(-1, 1)
    assert difference(found, features(backbone, image)) < 1e-5


def base_weights(run: Path) -> dict[str, torch.Tensor]:
    return tiny_of(configuration(run)).model.state_dict()


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

    assert adapter(moved(backbone), config_of(build), tmp_path / "adapter_config.json", FACTS) < 1e-5
    assert difference(features(build()), features(backbone)) > 1e-3


def test_more_layers_than_peft_names_one_by_one_are_still_those_that_were_adapted(tmp_path):
    """From twenty names on peft keeps common endings of them, which in the whole network match more."""
    depth = {"depth": 24, "embed_dim": 24}
    torch.manual_seed(0)
    backbone = TimmModel("vit_tiny_patch16_224", 64, pretrained=False, layers=[21], **(VIT | depth))
    lora(backbone, rank=1)
    cfg = {"seed": 0, "backbone": {"_target_": "backbone_cases.tiny", "layers": [21], **depth}}

    adapter(moved(backbone), OmegaConf.create(cfg), tmp_path / "adapter_config.json", FACTS)

    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, **(VIT | depth))
    model = PeftModel.from_pretrained(network, str(tmp_path))
    adapted = {int(name.split(".")[3]) for name, _ in model.named_parameters() if ".lora_" in name}
    assert adapted == set(range(22))


# -- onnx --


def test_a_graph_takes_pixels_and_gives_the_runs_features(typed, run, tmp_path, capfd):
    """At another size than the run's, for which position embeddings are resampled in the graph."""
    trained = run("lora")
    assert typed(trained, "--format", "onnx", "--size", "48x80", "--out", "b.onnx") == 0

    session = onnxruntime.InferenceSession(tmp_path / "b.onnx", providers=["CPUExecutionProvider"])
    (image,), (values,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.shape) == ("image", [1, 3, 48, 80])
    assert (values.name, values.shape) == ("features", [1, 48, 6, 10])
    given = torch.rand(1, 3, 48, 80, generator=torch.Generator().manual_seed(5))
    found = torch.from_numpy(session.run(None, {"image": given.numpy()})[0])
    assert difference(found, features(of_run(trained), given)) < 1e-4
    assert session.get_modelmeta().custom_metadata_map["run"] == str(trained.resolve())
    told = capfd.readouterr()
    assert "differ from the run's by at most" in told.out
    assert "onstant folding" not in told.out + told.err
    assert "Warning" not in told.out + told.err


@pytest.fixture
def no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter, which takes seconds, writes an empty file."""
    program = SimpleNamespace(model=SimpleNamespace(metadata_props={}), save=lambda path: path.touch())
    monkeypatch.setattr("torch.onnx.export", lambda *_, **__: program)


def sam() -> TimmModel:
    torch.manual_seed(0)
    shape = {"embed_dim": 48, "depth": 2, "num_heads": 3, "window_size": 3, "global_attn_indexes": (1,)}
    return TimmModel("samvit_base_patch16", 64, pretrained=False, **shape).eval()


GRAPHS = {
    "adaptformer": (partial(tiny, depth=2), partial(adaptformer, width=4)),
    "houlsby, two layers": (partial(squeezenet, layers=[0, 2]), partial(houlsby, width=4)),
    "attention with a mask": (sam, partial(last_blocks, blocks=1)),
}


@pytest.mark.parametrize("case", GRAPHS)
def test_a_graph_computes_what_the_backbone_does(tmp_path, case):
    build, tune = GRAPHS[case]
    backbone = loud(build())
    image = torch.rand(1, 3, backbone.size, 2 * backbone.size)
    before = features(backbone, image)
    tune(backbone)

    assert difference(before, features(moved(backbone), image)) > 1e-3
    assert graph(backbone, tmp_path / "b.onnx", (backbone.size, 2 * backbone.size), FACTS) < 1e-4


def test_a_frozen_run_is_exported_as_a_graph_and_has_no_other_weights(typed, run, no_graph, capfd, monkeypatch):
    monkeypatch.setattr("semcorr.onnx_graph._run", lambda path, image: features(of_run(frozen), image).numpy())
    frozen = run("frozen")
    assert typed(frozen, "--format", "onnx", "--out", "b.onnx") == 0
    assert ", frozen\n" in capfd.readouterr().out

    for format in ("merged", "peft"):
        assert typed(frozen, "--format", format) == 2
        error = capfd.readouterr().err
        assert "is a frozen run: it trained nothing" in error
        assert "backbone.weights=FILE" in error


def test_base_weights_that_have_moved_are_given_anew(typed, run, tmp_path):
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


def test_a_graph_too_large_for_one_file_has_its_weights_beside_it(typed, run, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 1000)
    assert typed(run("lora"), "--format", "onnx", "--out", "b.onnx") == 0

    assert {path.name for path in tmp_path.iterdir()} == {"b.onnx", "b.onnx.data"}
    assert onnxruntime.InferenceSession(tmp_path / "b.onnx").get_outputs()[0].shape == [1, 48, 8, 8]


def test_what_the_exporter_cannot_do_is_a_sentence_and_its_own_words_are_not_shown(tmp_path, capfd):
    class Odd(nn.Module):
        name, size, stride, pairwise = "odd", 8, 8, False

        def forward(self, image: torch.Tensor) -> FeatureMap:
            return FeatureMap(image * float(image.mean() > 0.5), 8)

    with pytest.raises(UserError, match=r"odd cannot be written as an ONNX graph: .*[^.]\. Try another --format\."):
        graph(Odd(), tmp_path / "b.onnx", (8, 8), FACTS)
    assert capfd.readouterr() == ("", "")


# -- whole or not at all --


def test_features_that_do_not_come_out_again_leave_no_file(typed, run, no_graph, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("semcorr.onnx_graph._run", lambda path, image: torch.zeros(1, 48, 8, 8).numpy())
    assert typed(run("lora"), "--format", "onnx", "--out", "new/b.onnx") == 2

    assert "gives other features than the run (they differ by 1.0e+00 of the largest)" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_interrupted_export_leaves_no_file_and_says_so(typed, run, tmp_path, capfd, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("semcorr.export_weights.difference", interrupted)
    assert typed(run("lora"), "--format", "peft", "--out", "adapter") == 130
    assert capfd.readouterr().err.endswith("Interrupted. Nothing was written\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("format", "out"), [("merged", "w.safetensors"), ("peft", "adapter")])
def test_what_is_there_is_replaced_only_by_force(typed, run, tmp_path, capfd, format, out):
    line = [run("lora"), "--format", format, "--out", out]
    assert typed(*line) == 0
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert typed(*line) == 2
    assert "exists. Replace it with --force" in capfd.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in written} == written

    assert typed(*line, "--force") == 0
    assert all(path.stat().st_mtime_ns > then for path, then in written.items())
    assert set(written) == {path for path in tmp_path.rglob("*") if path.is_file()}


# -- mistakes --


MISTAKES = {
    "RUN --format onxx": ["--format must be one of merged, peft, onnx, got onxx"],
    "RUN --which first": ["--which must be one of best, last, got first"],
    "RUN --size 64": ["--size goes with --format onnx"],
    "RUN --format onnx --size 60": ["multiples of 8 pixels", "got 60"],
    "RUN --format onnx --size big": ["SIDE or HEIGHTxWIDTH", "got big"],
    "RUN --format peft": ["Only a run that peft tuned", "finetune=lora"],
    "RUN --weights nowhere.pth": ["nowhere.pth does not exist"],
    "RUN --out weights.pth": ["--out must end with .safetensors for --format merged, got weights.pth"],
    "nowhere": ["nowhere/config.yaml does not exist. Give the run_dir of a training run."],
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_ends_in_a_sentence_and_exit_code_2(typed, run, tmp_path, capfd, line):
    trained = run("last_blocks")
    assert typed(*(trained if part == "RUN" else part for part in line.split())) == 2

    error = capfd.readouterr().err
    assert error.startswith("Error: ")
    assert all(part in error for part in MISTAKES[line]), error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_evaluation_names_the_run_that_it_scored(typed, run, config, tiny, tmp_path, capfd):
    trained = run("last_blocks")
    evaluate(config("evaluate", *tiny, *QUICK[-1:], "finetune.blocks=2", f"checkpoint={trained}"))
    assert typed(tmp_path / "run") == 2
    assert f"is no training run, by its config.yaml. It scored {trained}" in capfd.readouterr().err


def test_another_base_is_refused(typed, run, tmp_path, capfd):
    other = tmp_path / "other"
    shutil.copytree(run("last_blocks"), other)
    cfg = OmegaConf.load(other / "config.yaml")
    cfg.seed = 7
    OmegaConf.save(cfg, other / "config.yaml")

    assert typed("other") == 2
    assert "was trained on vit_tiny_patch16_224 with weights sha256" in capfd.readouterr().err


def test_nonlinear_adapters_are_pointed_to_the_graph(tmp_path):
    backbone = tiny()
    houlsby(backbone, width=4)
    with pytest.raises(UserError, match="--format onnx"):
        merged(moved(backbone), config_of(tiny, weights=None), tmp_path / "w.safetensors", FACTS)
    assert not list(tmp_path.iterdir())


def test_what_sees_two_images_is_no_graph(tmp_path):
    backbone = tiny()
    backbone.pairwise = True
    with pytest.raises(UserError, match="depend on both images of a pair, and a graph takes one"):
        graph(backbone, tmp_path / "b.onnx", (64, 64), FACTS)


def test_several_networks_are_no_file_of_weights(tmp_path):
    class Two(nn.Module):
        name = "two"

        def __init__(self) -> None:
            super().__init__()
            self.a, self.parts = tiny(), nn.ModuleList([tiny(), tiny()])

    with pytest.raises(UserError, match=r"made of several networks \(a, parts.0, parts.1\)"):
        merged(Two(), config_of(tiny), tmp_path / "w.safetensors", FACTS)


def test_without_onnx_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("semcorr.onnx_graph.find_spec", lambda package: None)
    with pytest.raises(UserError, match=r"needs onnx and onnxscript: pip install semcorr\[onnx\]"):
        graph(tiny(), tmp_path / "b.onnx", (64, 64), FACTS)


def test_without_onnxruntime_it_says_that_nothing_was_checked(typed, run, no_graph, capfd, monkeypatch):
    monkeypatch.setattr("semcorr.onnx_graph.find_spec", lambda package: package != "onnxruntime" or None)
    assert typed(run("last_blocks"), "--format", "onnx", "--out", "b.onnx") == 0
    assert "Not checked: onnxruntime is not installed" in capfd.readouterr().out


# -- the program --


def test_help_comes_at_once():
    """It needs no torch: that alone would take seconds."""
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", "semcorr.export", "--help"], capture_output=True)

    assert done.returncode == 0
    assert b"--format" in done.stdout
    assert b"torch" not in done.stderr
    assert time.monotonic() - start < 3
