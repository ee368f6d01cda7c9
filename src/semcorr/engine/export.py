"""A tuned backbone as files that others read: weights, an adapter, or a graph."""

import json
import logging
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from omegaconf import DictConfig
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from semcorr.core.errors import UserError
from semcorr.core.extras import is_installed, require_extra
from semcorr.core.interfaces import Backbone
from semcorr.core.text_files import JsonObject
from semcorr.engine.build import build_backbone
from semcorr.engine.checkpoints import find_changed_setting, load_checkpoint, read_checkpoint, weight_settings
from semcorr.engine.plain_yaml import read_plain_config
from semcorr.engine.run_dir import WEIGHTS
from semcorr.engine.saved_config import CONFIG, read_run_config
from semcorr.engine.shared_run import CARD, shared_config_text, shared_facts
from semcorr.models.backbones.wrapped import unwrap_backbone
from semcorr.models.finetune.merge import merge_adapters


def export_merged(backbone: Backbone, cfg: DictConfig, path: Path, metadata: dict[str, str]) -> float:
    """Fold what tuning added into the network and write all its weights.

    Args:
        backbone: The tuned backbone, in eval mode. It is changed: its network is the merged one afterwards.
        cfg: Configuration of the run, by which the backbone is built again from the file.
        path: The safetensors file. A network of the transformers library gets its configuration beside it.
        metadata: Texts for the header of the file.

    Returns:
        Relative difference between the features of the backbone and those that the written file gives.

    Raises:
        UserError: The backbone takes no weights from a file, has none, or is made of several networks.
    """
    _, network = unwrapped_network(backbone)
    if "weights" not in cfg.backbone:
        raise UserError(f"{backbone.name} takes no weights from a file, so none is written. Try --format onnx.")
    expected = compute_features(backbone)
    merge_adapters(backbone)
    _save(network.state_dict(), path, metadata)
    config = getattr(network, "config", None)
    if config is not None:  # the transformers library reads beside the weights how to build and normalise
        config.save_pretrained(str(path.parent))
        statistics = {f"image_{name}": backbone.get_buffer(name).flatten().tolist() for name in ("mean", "std")}
        path.with_name("preprocessor_config.json").write_text(json.dumps(statistics) + "\n", encoding="utf-8")
    return relative_difference(compute_features(build_backbone(cfg, weights=str(path)).eval()), expected)


def export_adapter(backbone: Backbone, cfg: DictConfig, path: Path, metadata: dict[str, str]) -> float:
    """Write an adapter_config.json, and the weights of the adapter beside it, as peft reads them.

    Args:
        backbone: The tuned backbone, in eval mode.
        cfg: Configuration of the run, by which the backbone is built again without tuning.
        path: The file adapter_config.json.
        metadata: Texts for the header of the weights; `base` also names the base model in the configuration.

    Returns:
        Relative difference between the features of the backbone and those that peft gives with the written files.

    Raises:
        UserError: The run was not tuned by peft, or the backbone is made of several networks.
    """
    adapted_layers = [name for name, module in backbone.named_modules() if isinstance(module, BaseTunerLayer)]
    if not adapted_layers:
        raise UserError(
            "Only a run that peft tuned, by finetune=lora for instance, has an adapter. Try another --format."
        )
    prefix, _ = unwrapped_network(backbone)
    network = unwrap_backbone(backbone)  # the one that peft has tuned
    weights = get_peft_model_state_dict(network, save_embedding_layers=False)
    adapter_weights = {f"base_model.model.{name.removeprefix(prefix)}": value for name, value in weights.items()}
    _save(adapter_weights, path.with_name("adapter_model.safetensors"), metadata)
    config = deepcopy(vars(network)["peft_config"]["default"])
    # peft's own names are shortened to this network
    config.target_modules = sorted(name.removeprefix(prefix) for name in adapted_layers)
    config.base_model_name_or_path, config.inference_mode = metadata["base"], True
    config.save_pretrained(str(path.parent))
    base_backbone = build_backbone(cfg).eval()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)  # peft on newer transformers
        PeftModel.from_pretrained(unwrapped_network(base_backbone)[1], str(path.parent))
    return relative_difference(compute_features(base_backbone.eval()), compute_features(backbone))


def export_head(head: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    """Write the weights of a head, if it has any."""
    if head.state_dict():
        _save(head.state_dict(), path, metadata)


def holds_weights(path: Path, module: nn.Module) -> bool:
    """Tell whether a safetensors file holds the weights of a module, and no others."""
    try:
        stored = load_file(path)
    except (OSError, SafetensorError):
        return False
    expected = module.state_dict()
    return stored.keys() == expected.keys() and all(
        value.dtype == expected[name].dtype and torch.equal(value, expected[name]) for name, value in stored.items()
    )


def export_shared_run(cfg: DictConfig, folder: Path, run: Path, which: str, card: str) -> float:
    """Write a run for others: its configuration, its trained weights and its card; read back what was written.

    Args:
        cfg: Configuration of the run.
        folder: Folder to write to.
        run: Directory of the run.
        which: Checkpoint that is written, best or last.
        card: Text of the card.

    Returns:
        0, as what was written is what the run holds, to the bit.

    Raises:
        UserError: The configuration would be refused by those who read it.
    """
    content = read_checkpoint(run, which)
    weights = {name: value for name, value in content["state_dict"].items() if not name.startswith("loss.")}
    facts = shared_facts(content)
    _save(weights, folder / WEIGHTS, {key: json.dumps(value) for key, value in facts.items()})
    (folder / CARD).write_text(card, encoding="utf-8")
    (folder / CONFIG).write_text(shared_config_text(cfg), encoding="utf-8")
    read_run_config(folder)
    written = load_checkpoint(folder / WEIGHTS)
    changed = find_changed_setting(written, weight_settings(read_plain_config(folder / CONFIG)))
    differs = changed is not None or any(written[name] != value for name, value in facts.items())
    if differs or not all(torch.equal(value, written["state_dict"][name]) for name, value in weights.items()):
        raise RuntimeError(f"What was written to {folder} is not what {run} holds")
    return 0.0


def unwrapped_network(backbone: Backbone) -> tuple[str, nn.Module]:
    """Return the prefix of the names of the one network in a backbone, and that network as other libraries know it."""
    parts = {name: part for name, part in backbone.named_children() if next(part.parameters(), None) is not None}
    for name in [name for name, part in parts.items() if isinstance(part, nn.ModuleList)]:
        parts |= {f"{name}.{i}": part for i, part in parts.pop(name).named_children()}
    if not parts:
        raise UserError(f"{backbone.name} has no weights, so no file holds them. Try --format onnx.")
    if len(parts) != 1:
        raise UserError(
            f"{backbone.name} is made of several networks ({', '.join(parts)}), which no one file of weights holds. "
            "Evaluate the run itself by checkpoint=RUN."
        )
    ((name, part),) = parts.items()
    return ("", backbone) if name == "features" else (f"{name}.", part)  # torchvision itself says `features`


@torch.no_grad()
def compute_features(backbone: Backbone, image: Float[Tensor, "b 3 h w"] | None = None) -> Float[Tensor, "b c _ _"]:
    """Compute the features of images; a backbone that sees pairs gets each with its mirror image.

    Args:
        backbone: The backbone.
        image: RGB in [0, 1]; None, an image of noise of the backbone's size.
    """
    if image is None:
        image = noise_image((backbone.size, backbone.size))
    if backbone.needs_pair:
        return backbone.pair(image, image.flip(-1))[0].values
    return backbone(image).values


def noise_image(sides: tuple[int, int]) -> Float[Tensor, "1 3 h w"]:
    """Return an image of noise, the same at every call."""
    return torch.rand(1, 3, *sides, generator=torch.Generator().manual_seed(1))


def relative_difference(actual: Float[Tensor, "*shape"], expected: Float[Tensor, "*shape"]) -> float:
    """Return the largest absolute difference, as a fraction of the largest expected magnitude."""
    return float((actual - expected).abs().max() / expected.abs().max())


def _save(weights: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write weights as safetensors, with metadata.

    Raises:
        OSError: The file cannot be written, which safetensors reports by an error of its own.
    """
    tensors = {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in weights.items()}
    try:
        save_file(tensors, path, metadata={"format": "pt", **metadata})
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def export_onnx(backbone: Backbone, path: Path, sides: tuple[int, int], metadata: dict[str, str]) -> float | None:
    """Write the graph of a backbone for images of one size.

    Args:
        backbone: The backbone, in eval mode.
        path: The file of the graph.
        sides: Height and width of the images in pixels; see `parse_sides`.
        metadata: Texts for the properties of the graph.

    Returns:
        Relative difference between the features of the backbone and those that onnxruntime computes from the graph;
        None where onnxruntime is not installed.

    Raises:
        UserError: The backbone sees images in pairs, a package is not installed, or the graph cannot be written or run.
    """
    if backbone.needs_pair:
        raise UserError(
            f"The features of {backbone.name} depend on both images of a pair, and a graph takes one. "
            "Evaluate the run itself by checkpoint=RUN."
        )
    require_extra("--format onnx", "onnx", "onnx", "onnxscript")
    try:
        compute_features(backbone, noise_image(sides))  # what is computed once for images of a size is constant in it
        with torch.no_grad(), _silence_exporter(), _PlainAttention():
            program = torch.onnx.export(
                _Values(backbone),
                (torch.rand(1, 3, *sides),),
                input_names=["image"],
                output_names=["features"],
                dynamo=True,
                verbose=False,
            )
            assert program is not None
            program.model.metadata_props.update(metadata | {"image": "RGB in [0, 1]", "stride": str(backbone.stride)})
            program.save(path)
    except torch.onnx.OnnxExporterError as error:
        raise UserError(
            f"{backbone.name} cannot be written as an ONNX graph: {_format_root_cause(error)}. Try another --format."
        ) from error
    if not is_installed("onnxruntime"):
        return None
    image = noise_image(sides)
    return relative_difference(torch.from_numpy(_run(path, image)), compute_features(backbone, image))


def parse_sides(backbone: Backbone, size: str | None) -> tuple[int, int]:
    """Return the height and width of the image, in pixels.

    Args:
        backbone: The backbone, whose patches or stride the sides must be multiples of.
        size: A side as `448`, or height and width as `448x672`; None, the backbone's own size.

    Raises:
        UserError: The size is of another form, or no multiple.
    """
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", size or str(backbone.size))
    height, width = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    multiple = getattr(backbone, "multiple", backbone.stride)
    if min(height, width) < 1 or height % multiple or width % multiple:
        raise UserError(
            f"--size must be SIDE or HEIGHTxWIDTH, in multiples of {multiple} pixels here, got {size or backbone.size}"
        )
    return height, width


class _Values(nn.Module):
    """A backbone that returns the values of its feature map alone, without the stride."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, image: Float[Tensor, "1 3 h w"]) -> Tensor:
        return self.backbone(image).values


class _PlainAttention(TorchFunctionMode):
    """Context in which attention with a float mask, as in SAM, is computed step by step.

    The exporter records the memory layout of the fused kernel and later checks it against the steps that
    replace it, which have another layout.
    """

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: Sequence[object] = (),
        kwargs: JsonObject | None = None,
    ) -> object:
        arguments: JsonObject = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | (kwargs or {})
        mask = arguments.get("attn_mask")
        if func is not scaled_dot_product_attention or mask is None or mask.dtype is torch.bool:
            return func(*args, **(kwargs or {}))
        query, key, value = arguments["query"], arguments["key"], arguments["value"]
        scale = arguments.get("scale") or 1 / math.sqrt(query.shape[-1])
        return (query * scale @ key.mT + mask).softmax(dim=-1) @ value


def _run(path: Path, image: Tensor) -> np.ndarray:
    """Compute the features of an image by onnxruntime."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        features = session.run(["features"], {"image": image.numpy()})[0]
    except Exception as error:  # its errors have no other class in common
        raise UserError(
            f"onnxruntime cannot run the graph: {_format_root_cause(error)}. Try another --format."
        ) from error
    assert isinstance(features, np.ndarray)
    return features


@contextmanager
def _silence_exporter() -> Iterator[None]:
    """Suppress what the exporter prints, logs and warns of, which is for its developers."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _format_root_cause(error: BaseException) -> str:
    """Return the first line of the error that is the root cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
