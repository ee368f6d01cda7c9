"""Any timm model as a backbone: Vision Transformers and convolutional networks alike."""

import inspect
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, cast

import timm
import torch
from jaxtyping import Float
from timm.models.convnext import ConvNeXt
from timm.models.eva import Eva
from timm.models.hiera import Hiera
from timm.models.hieradet_sam2 import HieraDet
from timm.models.naflexvit import NaFlexVit
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from semcorr.core.errors import UserError
from semcorr.core.ranges import Count, OptionsOf, Range, check_arguments, require
from semcorr.core.text_files import JsonObject
from semcorr.models.backbones.features import check_facet, normalise_layer_indices, project_facet, tokens_to_maps
from semcorr.models.backbones.position_embedding import use_position_embedding
from semcorr.models.backbones.sequential import BlockForward, CellGrid, SequentialBackbone, intercept_blocks
from semcorr.models.weights.checkpoints import read_weights
from semcorr.models.weights.hub import download_error, require_hub
from semcorr.models.weights.loading import load_weights, weights_sha256
from semcorr.models.weights.networks import recognise_weights
from semcorr.models.weights.state_dict_conversion import convert_to_timm

if TYPE_CHECKING:

    class TimmNetwork(nn.Module):
        """The attributes that all of timm's networks have, as far as they are used here."""

        feature_info: Sequence[JsonObject]  # of each block or stage: `module`, `num_chs`, `reduction`
        pretrained_cfg: JsonObject
        num_prefix_tokens: int  # of transformers

        def prune_intermediate_layers(self, indices: Sequence[int], *, prune_norm: bool, prune_head: bool) -> object:
            """Remove what no layer in `indices` needs."""

        def forward_intermediates(self, x: Tensor, **options: object) -> list[Tensor]:
            """Compute the outputs of layers."""

        def forward_features(self, x: Tensor) -> Tensor:
            """Compute the output of the last layer."""

        def reset_classifier(self, num_classes: int, global_pool: str) -> None:
            """Replace the classifier."""


SIZES = ("patch_size", "embed_dim", "depth", "num_heads", "img_size")
CHAINS = (VisionTransformer, Eva, NaFlexVit, ConvNeXt, ResNet)  # networks that take any size, block after block
WITHOUT_NORM = (Hiera, HieraDet)  # networks whose features timm gives without a final norm alone
# Errors that timm raises for options that do not fit a network.
MISFITS = (TypeError, ValueError, AssertionError, ArithmeticError, IndexError)


def list_option_targets(name: object) -> list[object]:
    """List what takes the options of a timm model: timm's function and the networks of its module; [] if unknown."""
    plain = name.partition(".")[0] if isinstance(name, str) else ""
    if not timm.is_model(plain):
        return []
    module = sys.modules[timm.model_entrypoint(plain).__module__]
    networks = [value for value in vars(module).values() if inspect.isclass(value) and issubclass(value, nn.Module)]
    return [timm.create_model, *networks]


class TimmModel(SequentialBackbone):
    """Dense features of a timm model.

    Args:
        name: timm's name of the model, with or without the tag of its weights.
        size: Side of the square images are resized to, in pixels.
        grid: Cells along the side of an image, given instead of `size`.
        pretrained: Download the weights by name. If false, and without `weights`, they are random.
        weights: Local file to read instead, in timm's own layout or an official one that can be converted.
        layers: Blocks (of transformers) or stages (of convolutional networks) whose outputs are read; negative
            numbers count from the end.
        norm: Apply a transformer's final LayerNorm to the outputs read. DINOv2's own feature extractor and
            the unified benchmark do, GeoAware-SC does not.
        facet: `token`, or `query`, `key` or `value` of the attention in the blocks read, to which no norm applies.
        position_embedding: Way of resampling a transformer's position embeddings to the image's grid: `timm`, or
            `dinov2`, as the published code of DINO, DINOv2 and the unified benchmark does.
        each_block: Whether the layers of a ResNet are its residual blocks, 1 to 33 of ResNet-101, and not its stages:
            as Hyperpixel Flow counts them, which reads them before their last ReLU, and not after it.
        options: Further options of timm's constructor.

    Raises:
        UserError: timm has no such network or weights, the file does not fit, or a layer, facet or size cannot be read.
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
        position_embedding: str = "timm",
        each_block: bool = False,
        **options: Annotated[Any, OptionsOf(list_option_targets, by="name")],
    ) -> None:
        check_facet(facet)
        for key, value in options.items():
            if key in SIZES:
                require(f"backbone.{key}", value, Count | Sequence[Count])
            elif isinstance(value, int | float):
                require(f"backbone.{key}", value, bool | Annotated[float, Range(least=0)])
        state = read_weights(weights) if weights is not None else {}  # first: building a large network takes seconds
        model = cast("TimmNetwork", create_timm_model(name, pretrained and weights is None, (size, grid), **options))
        if each_block:
            split_stages(name, model)
        layers = normalise_layer_indices(layers, len(model.feature_info))
        info = [model.feature_info[i] for i in layers]
        lattice = CellGrid(min(int(i["reduction"]) for i in info), max(int(i["reduction"]) for i in info))
        super().__init__(name, size, grid, lattice, (model.pretrained_cfg["mean"], model.pretrained_cfg["std"]))
        self.layers, self.facet = layers, facet
        self.apply_norm = norm and facet == "token" and not isinstance(model, WITHOUT_NORM)
        self.each_block = each_block
        neck = getattr(model, "neck", None) if self.apply_norm else None  # SAM's, which timm treats as a norm
        self.widths = [neck[0].out_channels if neck else entry["num_chs"] for entry in info]
        self.channels = sum(self.widths)
        self.layer_choices = [
            i for i in range(len(model.feature_info)) if _count_blocks_before(model, i, facet)[-1] >= 1
        ]
        full_state = model.state_dict()
        content = convert_to_timm(state, model) if weights is not None else {}
        if each_block:
            remove_blocks_after(model, layers[-1])
        else:
            model.prune_intermediate_layers(layers, prune_norm=not self.apply_norm, prune_head=True)
        use_position_embedding(model, position_embedding)
        self.model = model.to(memory_format=torch.channels_last)  # convolutions: 1.4 times faster on a CPU
        if weights is not None:
            load_weights(
                model, content, weights, spare=full_state.keys(), diagnosis=recognise_weights(state, full_state)
            )
        self.sha256 = weights_sha256(model)
        self._require_readable_layers()
        if not isinstance(model, CHAINS):
            self.require_maps()

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks, stages or residual blocks, up to the last layer read."""
        return _list_blocks(self.model, self.layers[-1])

    @property
    def points(self) -> list[int]:
        """The number of blocks run before each layer is read: with its own for tokens, without it for facets."""
        before = _count_blocks_before(self.model, self.layers[-1], self.facet)
        return [before[i] for i in self.layers]

    @property
    def norm(self) -> nn.Module | None:
        """The final LayerNorm, or SAM's neck, where there is one and it is applied."""
        layer = getattr(self.model, "norm", getattr(self.model, "neck", None)) if self.apply_norm else None
        return None if isinstance(layer, nn.Identity) else layer

    def read(self, image: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _ _ _"]]:
        """Compute one map per layer from normalised images."""
        if self.each_block:
            return self._run_blocks(image)
        if self.facet == "token":
            return self._run(image)
        tokens: dict[int, Tensor] = {}

        def record(i: int, block_forward: BlockForward, x: Tensor, *args: object, **kwargs: object) -> object:
            tokens[i] = x
            return block_forward(x, *args, **kwargs)

        with intercept_blocks([self.blocks[i] for i in self.layers], record):
            self._run(image)
        projected = {i: project_facet(self.blocks[self.layers[i]], x, self.facet) for i, x in tokens.items()}
        return tokens_to_maps(projected, self.model.num_prefix_tokens, image.shape[-2] // self.stride)

    def _run(self, image: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Compute the outputs of the layers, as maps."""
        return self.model.forward_intermediates(
            image,
            indices=self.layers,
            norm=self.apply_norm,
            output_fmt="NCHW",
            intermediates_only=True,
            stop_early=True,
        )

    def _run_blocks(self, image: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Compute the outputs of the residual blocks that are read."""
        outputs: dict[int, Tensor] = {}

        def record(i: int, block_forward: BlockForward, x: Tensor) -> Tensor:
            outputs[i] = block_forward(x)
            return outputs[i]

        with intercept_blocks(self.blocks, record):
            self.model.forward_features(image)
        return [outputs[i - 1] for i in self.layers]

    def _require_readable_layers(self) -> None:
        """Refuse layers that are not blocks, and facets of the first block: the embedding has no cut before it."""
        if not self.layer_choices:
            raise UserError(
                f"`backbone.name`: timm's {self.name} has no blocks that are called one after the other. "
                "Choose another backbone."
            )
        if self.facet != "token" and not (hasattr(self.blocks[0], "attn") and hasattr(self.blocks[0], "norm1")):
            raise UserError(f"`backbone.facet`: {self.name} has no queries, keys and values, only `token`")
        if min(self.points) < 1:
            unread = self.layers[self.points.index(min(self.points))]
            choices = [*self.layer_choices]
            is_range = choices == [*range(choices[0], choices[-1] + 1)]
            raise UserError(
                f"`backbone.layers`: layer {unread} of {self.name} has no block before it to be read after; "
                f"choose from {f'{choices[0]} to {choices[-1]}' if is_range else ', '.join(map(str, choices))}"
            )


def _list_blocks(model: "TimmNetwork", last: int) -> list[nn.Module]:
    """List the blocks of a network up to that of its layer `last`: all of a ResNet that `split_stages` has split."""
    modules = [entry["module"] for entry in model.feature_info[: last + 1]]
    is_split = isinstance(model, ResNet) and "." in modules[-1]
    return [model.get_submodule(module) for module in modules[1:]] if is_split else list_units(model, modules[-1])


def _count_blocks_before(model: "TimmNetwork", last: int, facet: str) -> list[int]:
    """Count the blocks that run before each layer up to `last` is read; 0 where it has no cut, or none before it."""
    modules = [entry["module"] for entry in model.feature_info[: last + 1]]
    blocks = _list_blocks(model, last)
    counts = {id(block): i + 1 - (facet != "token") for i, block in enumerate(blocks)}
    return [counts.get(id(_find_module(model, module)), 0) for module in modules]


def _find_module(model: nn.Module, path: str) -> nn.Module | None:
    """Return a part of a network; None where timm's description names one that is not there."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def split_stages(name: str, model: "TimmNetwork") -> None:
    """Let the layers of a ResNet be its residual blocks, behind its stem, which stays layer 0.

    Raises:
        UserError: The network is not a ResNet.
    """
    if not isinstance(model, ResNet):
        raise UserError(
            f"`backbone.each_block`: {name} is not a ResNet, and its layers are what they are. Leave it out."
        )
    stem, *stages = model.feature_info
    blocks = [
        {**stage, "module": f"{stage['module']}.{i}"}
        for stage in stages
        for i in range(len(getattr(model, stage["module"])))
    ]
    model.feature_info = [stem, *blocks]


def remove_blocks_after(model: "TimmNetwork", last: int) -> None:
    """Remove the residual blocks of a ResNet after that of a layer, and the classifier."""
    for entry in reversed(model.feature_info[last + 1 :]):
        path, _, index = entry["module"].rpartition(".")
        stage = model.get_submodule(path)
        assert isinstance(stage, nn.Sequential)
        del stage[int(index)]
    model.reset_classifier(0, "")


def create_timm_model(
    name: str, pretrained: bool, side: tuple[int | None, int | None] = (None, None), **options: object
) -> nn.Module:
    """Build a timm model without a classifier.

    Args:
        name: timm's name, with or without the tag of its weights.
        pretrained: Download the weights of the tag; otherwise they are random.
        side: Side of images in pixels, and in cells if it is given so, for networks that are built for one size; None
            where it is not known. All other networks take any size.
        options: Further options of timm's constructor.

    Raises:
        UserError: It cannot be built; the message says why.
    """
    plain, _, tag = name.partition(".")
    if not timm.is_model(plain):
        similar = timm.list_models(f"*{plain[:12]}*")[:3]
        raise UserError(f"timm has no model {name!r}." + (f" It has {', '.join(similar)}." if similar else ""))
    tagged = timm.list_models(f"{plain}.*", pretrained=True)
    if tag and name not in tagged:
        raise UserError(f"timm has no weights {name!r}." + (f" It has {', '.join(tagged[:5])}." if tagged else ""))
    repository = getattr(timm.get_pretrained_cfg(name), "hf_hub_id", None)  # old names and models of others have none
    try:
        if pretrained and repository:
            require_hub(repository)
        model = _create_model(name, pretrained, side, options)
    except MISFITS as error:
        if not options:
            raise
        listed = ", ".join(f"backbone.{key}={value}" for key, value in options.items())
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"timm cannot build {name} with {listed} ({reason}). Change one of them.") from error
    except (OSError, RuntimeError) as error:  # every failure of the hub client is one of the two
        if not pretrained:
            raise
        if str(error).startswith("Error(s) in loading state_dict"):
            raise UserError(
                f"`backbone.size`: timm cannot resize the weights of {name} to it. Set it to the size that they were "
                "trained for."
            ) from error
        raise download_error(error, name, repository) from error
    if not hasattr(model, "forward_intermediates"):
        raise UserError(f"timm's {name} does not give its intermediate features. Choose a model that does.")
    return model


def list_units(model: nn.Module, last: str) -> list[nn.Module]:
    """List the module named `last` and its numbered siblings before it.

    `blocks.4` gives blocks 0 to 4 of a list; `layer3` gives layer1 to layer3. A module without a number,
    such as the stem, is not a unit.
    """
    number = re.search(r"\d+$", last)
    if number is None:
        return []
    path, stem = last[: number.start()].rpartition(".")[::2]
    parent = _find_module(model, path)
    children = {} if parent is None else dict(parent.named_children())
    siblings = [(int(key[len(stem) :]), child) for key, child in children.items() if re.fullmatch(rf"{stem}\d+", key)]
    return [child for index, child in siblings if index <= int(number[0])]


def _create_model(name: str, pretrained: bool, side: tuple[int | None, int | None], options: JsonObject) -> nn.Module:
    """Build a timm model without a classifier."""
    create = partial(timm.create_model, name, pretrained=pretrained, num_classes=0, **options)
    with suppress(TypeError):  # transformers: position embeddings for any image size
        return create(dynamic_img_size=True)
    if "img_size" not in options and (pixels := _find_side(name, side, options)) is not None:
        with suppress(TypeError):  # networks that are built for one size
            return create(img_size=pixels)
    return create()  # convolutional networks take any size as they are


def _find_side(name: str, side: tuple[int | None, int | None], options: JsonObject) -> int | None:
    """Return the side of images in pixels; None if it is not known, or the network has no features to tell by."""
    size, grid = side
    if grid is None:
        return size
    with torch.device("meta"):
        info = vars(timm.create_model(name, num_classes=0, **options)).get("feature_info")
    return None if not info else grid * min(int(entry["reduction"]) for entry in info)
