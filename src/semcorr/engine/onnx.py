"""Export of a backbone as an ONNX graph: image to features, at one size."""

import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from semcorr.core.errors import UserError
from semcorr.core.interfaces import Backbone
from semcorr.core.text_files import JsonObject
from semcorr.engine.export import compute_features, noise_image, relative_difference


def export_onnx(backbone: Backbone, path: Path, sides: tuple[int, int], facts: dict[str, str]) -> float | None:
    """Write the graph of a backbone for images of `sides`, height and width.

    Returns:
        Relative difference of the features that onnxruntime computes from it; None where there is no onnxruntime.
    """
    if backbone.pairwise:
        raise UserError(
            f"The features of {backbone.name} depend on both images of a pair, and a graph takes one. "
            "Evaluate the run itself by checkpoint=RUN."
        )
    missing = [package for package in ("onnx", "onnxscript") if find_spec(package) is None]
    if missing:
        raise UserError(f"--format onnx needs {' and '.join(missing)}: pip install semcorr[onnx]")
    try:
        with torch.no_grad(), _quiet(), _PlainAttention():
            program = torch.onnx.export(
                _Values(backbone),
                (torch.rand(1, 3, *sides),),
                input_names=["image"],
                output_names=["features"],
                dynamo=True,
                verbose=False,
            )
            assert program is not None
            program.model.metadata_props.update(facts | {"image": "RGB in [0, 1]", "stride": str(backbone.stride)})
            program.save(path)
    except torch.onnx.OnnxExporterError as error:
        raise UserError(
            f"{backbone.name} cannot be written as an ONNX graph: {_format_root_cause(error)}. Try another --format."
        ) from error
    if find_spec("onnxruntime") is None:
        return None
    image = noise_image(sides)
    return relative_difference(torch.from_numpy(_run(path, image)), compute_features(backbone, image))


def parse_sides(backbone: Backbone, size: str | None) -> tuple[int, int]:
    """Return the height and width of the image, from `448`, `448x672`, or the backbone itself."""
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", size or str(backbone.size))
    height, width = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    multiple = getattr(backbone, "multiple", backbone.stride)
    if min(height, width) < 1 or height % multiple or width % multiple:
        raise UserError(f"--size must be SIDE or HEIGHTxWIDTH, in multiples of {multiple} pixels here, got {size}")
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
def _quiet() -> Iterator[None]:
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
