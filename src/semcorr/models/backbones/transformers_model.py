"""Any vision backbone of the transformers library: Vision Transformers and convolutional networks alike."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from semcorr.core.errors import UserError
from semcorr.core.ranges import Positive, check_arguments
from semcorr.models.backbones.facets import check_facet, tokens_to_maps
from semcorr.models.backbones.layers import normalise_layer_indices
from semcorr.models.backbones.sequential import CellGrid, SequentialBackbone, intercept_blocks
from semcorr.models.backbones.transformers_weights import load_image_encoder, pixel_statistics, require_complete
from semcorr.models.backbones.weights import weights_sha256

NORMS = ("layernorm", "norm", "post_layernorm", "layer_norm")  # what families call their last
AUGMENTED = ("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale")  # DINOv3's, while it is trained


class TransformersModel(SequentialBackbone):
    """Dense features of a network of the transformers library; of CLIP and its like, the image encoder's.

    Args:
        name: Its name on the Hugging Face hub, such as `facebook/dinov2-base`.
        size: Side of the square images are resized to, in pixels.
        grid: Cells along that side instead.
        pretrained: Download the weights by name. Without them, and without `weights`, they are random.
        weights: A local folder, or a file beside its config.json, in the library's own layout instead.
        layers: Which blocks' (transformers) or stages' (convolutional networks) outputs to read;
            negatives count from the end.
        norm: Apply a transformer's final LayerNorm to what is read.
        facet: `token`, or `query`, `key`, `value` of the attention in the blocks read; these know no norm.
        mean: Of RGB in [0, 1], where no preprocessor_config.json says it.
        std: Of the same.
        model_type: A family of the library, such as `dinov2`, to build without a config file.
        options: What that family's config takes: `hidden_size`, `num_hidden_layers`, ...
    """

    @check_arguments("backbone")
    def __init__(
        self,
        name: str,
        size: int | None,
        grid: int | None = None,
        pretrained: bool = True,
        weights: str | None = None,
        layers: Sequence[int] = (-1,),
        norm: bool = True,
        facet: str = "token",
        mean: Sequence[float] | None = None,
        std: Sequence[Positive] | None = None,
        model_type: str | None = None,
        **options: Any,
    ) -> None:
        check_facet(facet)
        model, missing, of = load_image_encoder(name, pretrained, weights, model_type, options)
        self.path = _path(name, model)
        units: Any = model.get_submodule(self.path)
        self.convolutional = not hasattr(model.config, "num_hidden_layers") or hasattr(model.config, "depths")
        read = normalise_layer_indices(layers, len(units))
        sides, widths = _probe(model, units) if self.convolutional else _uniform(model.config, len(units))
        lattice = CellGrid(min(sides[i] for i in read), max(sides[i] for i in read))
        normalised = pixel_statistics(name, pretrained, weights, mean, std)
        super().__init__(name, size, grid, lattice, normalised)
        del units[read[-1] + 1 :]
        self.layers, self.facet = read, facet
        self.widths = [widths[i] for i in read]
        self.channels = sum(self.widths)
        self.final = next((key for key in NORMS if isinstance(getattr(model, key, None), nn.LayerNorm)), "")
        self.apply_norm = norm and facet == "token" and not self.convolutional and bool(self.final)
        if self.final and not self.apply_norm:
            setattr(model, self.final, nn.Identity())
        for key in AUGMENTED:
            if hasattr(model.config, key):
                setattr(model.config, key, None)
        require_complete(model, missing, weights or name, of)
        self.model: Any = model
        self.sha256 = weights_sha256(model)
        if facet != "token":
            self._check_facet()

    @property
    def blocks(self) -> list[nn.Module]:
        """Transformer blocks or stages, up to the last layer read."""
        return list(self.model.get_submodule(self.path))

    @property
    def points(self) -> list[int]:
        """Layers are read after their block; facets, before it."""
        return [layer + (self.facet == "token") for layer in self.layers]

    @property
    def norm(self) -> nn.Module | None:  # type: ignore[override]
        """The final LayerNorm, where there is one and it is applied."""
        return getattr(self.model, self.final) if self.apply_norm else None

    def read(self, image: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _ _ _"]]:
        """Normalised images to maps, one per layer."""
        blocks, found = self.blocks, dict[int, Tensor]()

        def record(i: int, own: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
            out = own(x, *args, **kwargs)
            if not isinstance(out, Tensor):
                raise UserError(f"The blocks of {self.name} do not hand on one tensor. Choose another backbone.")
            found[self.layers[i]] = out if self.facet == "token" else _project(blocks[self.layers[i]], x, self.facet)
            return out

        with intercept_blocks([blocks[i] for i in self.layers], record):
            self.model(image, **self._arguments(image))
        if self.convolutional:
            return [found[layer] for layer in self.layers]
        if self.norm is not None:
            found = {layer: self.norm(tokens) for layer, tokens in found.items()}
        rows, columns = image.shape[-2] // self.stride, image.shape[-1] // self.stride
        return tokens_to_maps(found, found[self.layers[0]].shape[1] - rows * columns, rows)

    def _arguments(self, image: Tensor) -> dict[str, Any]:
        """What a family must be told to take any image size, and to leave all patches in their places."""
        takes = inspect.signature(self.model.forward).parameters
        arguments: dict[str, Any] = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in takes else {}
        if "noise" in takes:  # masked autoencoders shuffle by it
            self.model.config.mask_ratio = 0.0
            cells = (image.shape[-2] // self.stride) * (image.shape[-1] // self.stride)
            arguments["noise"] = torch.arange(cells, device=image.device).expand(len(image), -1)
        return arguments

    def _check_facet(self) -> None:
        if not any(key.endswith("q_proj") for key, _ in self.blocks[0].named_modules()):
            raise UserError(f"`backbone.facet`: {self.name} has no queries, keys and values, only `token`")
        if min(self.points) < 1:
            raise UserError(
                f"`backbone.layers`: layer 0 of {self.name} has no block before it to read its {self.facet} from; "
                f"choose from 1 to {len(self.blocks) - 1}"
            )


def _path(name: str, model: Any) -> str:
    """Where the list of blocks or stages is."""
    depth = len(getattr(model.config, "depths", [])) or getattr(model.config, "num_hidden_layers", 0)
    lists = ((key, module) for key, module in model.named_modules() if isinstance(module, nn.ModuleList))
    found = next((key for key, module in lists if len(module) == depth), None)
    if found is None:
        raise UserError(f"{name} is no network of blocks or stages that images go into. Choose another backbone.")
    return found


def _uniform(config: Any, depth: int) -> tuple[list[int], list[int]]:
    """Stride and width of every block of a transformer."""
    patch = config.patch_size if isinstance(config.patch_size, int) else config.patch_size[0]
    return [patch] * depth, [config.hidden_size] * depth


def _probe(model: Any, units: nn.ModuleList, side: int = 64) -> tuple[list[int], list[int]]:
    """Stride and width of every stage of a convolutional network, from a run on a small image."""
    shapes: list[torch.Size] = []

    def note(_: int, own: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        out = own(x, *args, **kwargs)
        shapes.append(out.shape if isinstance(out, Tensor) else torch.Size())
        return out

    training = model.training
    with torch.no_grad(), intercept_blocks(list(units), note):
        try:
            model.eval()(torch.zeros(1, 3, side, side))
        except RuntimeError as error:
            raise UserError(
                f"{type(model).__name__} does not take images of any size ({error}). Choose another."
            ) from error
    model.train(training)
    if any(len(shape) != 4 for shape in shapes):
        raise UserError(f"The stages of {type(model).__name__} give no feature maps. Choose another backbone.")
    return [side // shape[-1] for shape in shapes], [shape[1] for shape in shapes]


def _project(block: nn.Module, tokens: Float[Tensor, "b n c"], facet: str) -> Float[Tensor, "b n _"]:
    """Queries, keys or values as the block makes them, before any rotation."""
    norm = next(child for key, child in block.named_children() if "norm" in key)
    projection = next(module for key, module in block.named_modules() if key.endswith(f"{facet[0]}_proj"))
    return projection(norm(tokens))
