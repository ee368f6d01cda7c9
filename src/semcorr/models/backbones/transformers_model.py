"""Any vision backbone of the transformers library: Vision Transformers and convolutional networks alike."""

import inspect
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from semcorr.core.errors import UserError
from semcorr.core.ranges import Count, OptionsOf, Positive, check_arguments
from semcorr.core.text_files import JsonObject
from semcorr.models.backbones.features import check_facet, normalise_layer_indices, tokens_to_maps
from semcorr.models.backbones.sequential import REFUSALS, CellGrid, SequentialBackbone, intercept_blocks
from semcorr.models.backbones.transformers_weights import (
    list_config_targets,
    load_image_encoder,
    pixel_statistics,
    require_complete,
)
from semcorr.models.weights.loading import weights_sha256

NORMS = ("layernorm", "norm", "post_layernorm", "layer_norm")  # names of the final LayerNorm in the families
# Families that take any size, block after block, their own tokens before the patches: there is nothing to find out.
CHAINS = ("dinov2", "dinov2_with_registers", "dinov3_vit", "clip_vision_model", "siglip_vision_model", "vit", "vit_mae")
AUGMENTED = ("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale")  # options of DINOv3 for its training


class TransformersModel(SequentialBackbone):
    """Dense features of a network of the transformers library; of the image encoder in CLIP and similar models.

    Args:
        name: Name on the Hugging Face hub, such as `facebook/dinov2-base`.
        size: Side of the square images are resized to, in pixels.
        grid: Cells along the side of an image, given instead of `size`.
        pretrained: Download the weights by name. If false, and without `weights`, they are random.
        weights: Local folder, or file beside its config.json, to read instead, in the library's own layout.
        layers: Blocks (of transformers) or stages (of convolutional networks) whose outputs are read; negative
            numbers count from the end.
        norm: Apply a transformer's final LayerNorm to the outputs read.
        facet: `token`, or `query`, `key` or `value` of the attention in the blocks read, to which no norm applies.
        mean: Mean of RGB in [0, 1], given together with `std`. None takes that of preprocessor_config.json, or
            ImageNet's for random weights.
        std: Standard deviation of RGB in [0, 1], likewise.
        model_type: Family of the library, such as `dinov2`, to build without a config file; None reads that file.
        options: Options of the config of `model_type`: `hidden_size`, `num_hidden_layers`, ...

    Raises:
        UserError: The network cannot be built or loaded, or gives no features of the layers or the facet.
    """

    @check_arguments("backbone")
    def __init__(
        self,
        name: str,
        size: Count | None,
        grid: Count | None = None,
        pretrained: bool = True,
        weights: str | None = None,
        layers: Sequence[int] = (-1,),
        norm: bool = True,
        facet: str = "token",
        mean: Sequence[float] | None = None,
        std: Sequence[Positive] | None = None,
        model_type: str | None = None,
        **options: Annotated[object, OptionsOf(list_config_targets, by="name")],
    ) -> None:
        check_facet(facet)
        model, missing, diagnosis = load_image_encoder(name, pretrained, weights, model_type, options)
        if getattr(model.config, "num_detection_tokens", 0):
            raise UserError(
                f"`backbone.name`: {name} has tokens of its own behind those of the patches. Choose another backbone."
            )
        self.path = _find_block_list(name, model)
        units = model.get_submodule(self.path)
        assert isinstance(units, nn.ModuleList)
        self.convolutional = not hasattr(model.config, "num_hidden_layers") or hasattr(model.config, "depths")
        layer_indices = normalise_layer_indices(layers, len(units))
        sides, widths = (
            _measure_stage_sizes(model, units) if self.convolutional else _list_block_sizes(model.config, len(units))
        )
        lattice = CellGrid(min(sides[i] for i in layer_indices), max(sides[i] for i in layer_indices))
        statistics = pixel_statistics(name, pretrained, weights, mean, std)
        super().__init__(name, size, grid, lattice, statistics)
        del units[layer_indices[-1] + 1 :]
        self.layers, self.facet = layer_indices, facet
        self.layer_choices = range(facet != "token", len(widths))
        self.widths = [widths[i] for i in layer_indices]
        self.channels = sum(self.widths)
        self.final = next((key for key in NORMS if isinstance(getattr(model, key, None), nn.LayerNorm)), "")
        self.apply_norm = norm and facet == "token" and not self.convolutional and bool(self.final)
        if self.final and not self.apply_norm:
            setattr(model, self.final, nn.Identity())
        for key in AUGMENTED:
            if hasattr(model.config, key):
                setattr(model.config, key, None)
        require_complete(model, missing, weights or name, diagnosis)
        self.model = model
        self.sha256 = weights_sha256(model)
        if facet != "token":
            self._require_facet()
        if model.config.model_type not in CHAINS:
            self.require_maps()

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks or stages, up to the last layer read."""
        units = self.model.get_submodule(self.path)
        assert isinstance(units, nn.ModuleList)
        return list(units)

    @property
    def points(self) -> list[int]:
        """The number of blocks run before each layer is read: with its own for tokens, without it for facets."""
        return [layer + (self.facet == "token") for layer in self.layers]

    @property
    def norm(self) -> nn.Module | None:
        """The final LayerNorm, where there is one and it is applied."""
        return getattr(self.model, self.final) if self.apply_norm else None

    def read(self, image: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _ _ _"]]:
        """Compute one map per layer from normalised images."""
        blocks, outputs = self.blocks, dict[int, Tensor]()

        def record(i: int, block_forward: Callable[..., object], x: Tensor, *args: object, **kwargs: object) -> object:
            out = block_forward(x, *args, **kwargs)
            if not isinstance(out, Tensor):
                raise UserError(f"The blocks of {self.name} do not pass one tensor on. Choose another backbone.")
            outputs[self.layers[i]] = (
                out if self.facet == "token" else _project_tokens(blocks[self.layers[i]], x, self.facet)
            )
            return out

        with intercept_blocks([blocks[i] for i in self.layers], record):
            self.model(image, **self._build_arguments(image))
        if self.convolutional:
            return [outputs[layer] for layer in self.layers]
        outputs = {
            layer: out.flatten(1, 2) if out.ndim == 4 else out for layer, out in outputs.items()
        }  # SAM: on a grid
        if self.norm is not None:
            outputs = {layer: self.norm(tokens) for layer, tokens in outputs.items()}
        rows, columns = image.shape[-2] // self.stride, image.shape[-1] // self.stride
        return tokens_to_maps(outputs, outputs[self.layers[0]].shape[1] - rows * columns, rows)

    def _build_arguments(self, image: Tensor) -> JsonObject:
        """Build the arguments with which a family takes any image size, and leaves all patches in their places."""
        parameters = inspect.signature(self.model.forward).parameters
        arguments: JsonObject = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in parameters else {}
        if "noise" in parameters:  # masked autoencoders shuffle by it
            self.model.config.update({"mask_ratio": 0.0})
            cells = (image.shape[-2] // self.stride) * (image.shape[-1] // self.stride)
            arguments["noise"] = torch.arange(cells, device=image.device).expand(len(image), -1)
        return arguments

    def _require_facet(self) -> None:
        """Refuse a facet of a network that has none, or of its first block."""
        if not any(key.endswith("q_proj") for key, _ in self.blocks[0].named_modules()):
            raise UserError(f"`backbone.facet`: {self.name} has no queries, keys and values, only `token`")
        if min(self.points) < 1:
            raise UserError(
                f"`backbone.layers`: layer 0 of {self.name} has no block before it to read its {self.facet} from; "
                f"choose from 1 to {len(self.blocks) - 1}"
            )


def _find_block_list(name: str, model: PreTrainedModel) -> str:
    """Find the name of the list of blocks or stages."""
    depth = len(getattr(model.config, "depths", [])) or getattr(model.config, "num_hidden_layers", 0)
    lists = ((key, module) for key, module in model.named_modules() if isinstance(module, nn.ModuleList))
    path = next((key for key, module in lists if len(module) == depth > 0), None)
    if path is None:
        raise UserError(f"{name} is not a network of blocks or stages that images go into. Choose another backbone.")
    return path


def _list_block_sizes(config: PreTrainedConfig, depth: int) -> tuple[list[int], list[int]]:
    """List stride and width of every block of a transformer."""
    try:  # a family may map them to names of its own
        patch, width = attrgetter("patch_size", "hidden_size")(config)
    except AttributeError:
        raise UserError(
            f"A network of the family {config.model_type} has no patches of one size. Choose another backbone."
        ) from None
    return [patch if isinstance(patch, int) else patch[0]] * depth, [width] * depth


def _measure_stage_sizes(model: PreTrainedModel, units: nn.ModuleList, side: int = 64) -> tuple[list[int], list[int]]:
    """Measure stride and width of every stage of a convolutional network by a run on a small image."""
    shapes: list[torch.Size] = []

    def record_shape(
        _: int, stage_forward: Callable[..., object], x: Tensor, *args: object, **kwargs: object
    ) -> object:
        out = stage_forward(x, *args, **kwargs)
        shapes.append(out.shape if isinstance(out, Tensor) else torch.Size())
        return out

    training = model.training
    with torch.no_grad(), intercept_blocks(list(units), record_shape):
        try:
            model.eval()(torch.zeros(1, 3, side, side))
        except REFUSALS as error:
            raise UserError(
                f"{type(model).__name__} does not take images of any size ({error}). Choose another."
            ) from error
    model.train(training)
    if any(len(shape) != 4 for shape in shapes):
        raise UserError(f"The stages of {type(model).__name__} give no feature maps. Choose another backbone.")
    return [side // shape[-1] for shape in shapes], [shape[1] for shape in shapes]


def _project_tokens(block: nn.Module, tokens: Float[Tensor, "b n c"], facet: str) -> Float[Tensor, "b n _"]:
    """Project tokens to queries, keys or values as the block does, before any rotation."""
    norm = next(child for key, child in block.named_children() if "norm" in key)
    projection = next(module for key, module in block.named_modules() if key.endswith(f"{facet[0]}_proj"))
    return projection(norm(tokens))
