"""V-JEPA 2 (Assran et al. 2025) as a backbone: its video encoder on a video of one frame."""

from collections.abc import Sequence
from typing import Annotated

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from semcorr.core.ranges import Count, OptionsOf, Positive, check_arguments
from semcorr.models.backbones.features import normalise_layer_indices
from semcorr.models.backbones.sequential import CellGrid, SequentialBackbone
from semcorr.models.backbones.transformers_weights import (
    list_config_targets,
    load_image_encoder,
    pixel_statistics,
    require_complete,
)
from semcorr.models.weights.loading import weights_sha256

SIDE = 2**10  # cells along a side of the grid that positions are numbered on: more than any image has


class VideoBlock(nn.Module):
    """A block of the encoder that returns tokens alone.

    Args:
        layer: Block of the transformers library, whose rotary positions are numbered on a grid of `SIDE` x `SIDE`
            afterwards. The library's grid is that of the config, and an image of another size would be rotated wrongly.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        layer.get_submodule("attention").grid_size = SIDE  # type: ignore[assignment] # a number of the library's module

    def forward(self, tokens: Float[Tensor, "b n c"], positions: Int[Tensor, "b n"]) -> Float[Tensor, "b n c"]:
        """Compute the tokens after the block."""
        return self.layer(tokens, position_mask=positions)[0]


class VJEPA2(SequentialBackbone):
    """Dense features of V-JEPA 2's encoder for single images.

    An image is a video of one frame, which the network repeats to fill its tubelets of two; a cell is a patch of them.

    Args:
        name: Name on the Hugging Face hub, such as `facebook/vjepa2-vitl-fpc64-256`.
        size: Side of the square images are resized to, in pixels.
        grid: Cells along the side of an image, given instead of `size`.
        pretrained: Download the weights by name. If false, and without `weights`, they are random.
        weights: Local folder, or file beside its config.json, to read instead, in the library's own layout.
        layers: Blocks whose outputs are read; negative numbers count from the end.
        norm: Apply the final LayerNorm to the outputs read.
        mean: Mean of RGB in [0, 1], given together with `std`. None takes that of preprocessor_config.json, or
            ImageNet's for random weights.
        std: Standard deviation of RGB in [0, 1], likewise.
        options: Options of the library's VJEPA2Config, to build without a config file: `hidden_size`, ...
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
        mean: Sequence[float] | None = None,
        std: Sequence[Positive] | None = None,
        **options: Annotated[object, OptionsOf(list_config_targets, by="name")],
    ) -> None:
        is_random = weights is None and not pretrained
        family = "vjepa2" if options or is_random else None
        model, missing, diagnosis = load_image_encoder(name, pretrained, weights, family, options, "video")
        encoder, config = model.get_submodule("encoder"), model.config
        units = encoder.get_submodule("layer")
        assert isinstance(units, nn.ModuleList)
        statistics = pixel_statistics(name, pretrained, weights, mean, std)
        super().__init__(name, size, grid, CellGrid(config.patch_size, config.patch_size), statistics)
        self.layers, self.layer_choices = normalise_layer_indices(layers, len(units)), range(len(units))
        del units[self.layers[-1] + 1 :]
        require_complete(encoder, [key.removeprefix("encoder.") for key in missing], weights or name, diagnosis)
        self.embeddings = encoder.get_submodule("embeddings")
        self.units = nn.ModuleList(VideoBlock(layer) for layer in units)
        self.final = encoder.get_submodule("layernorm") if norm else None
        self.widths = [config.hidden_size] * len(self.layers)
        self.channels = sum(self.widths)
        self.sha256 = weights_sha256(nn.ModuleList([self.embeddings, self.units, self.final or nn.Identity()]))

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks, up to the last layer read."""
        return list(self.units)

    @property
    def points(self) -> list[int]:
        """The number of blocks run before each layer is read."""
        return [layer + 1 for layer in self.layers]

    @property
    def norm(self) -> nn.Module | None:
        """The final LayerNorm, where it is applied."""
        return self.final

    def read(self, image: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _ _ _"]]:
        """Compute one map per layer from normalised images."""
        rows, columns = image.shape[-2] // self.stride, image.shape[-1] // self.stride
        cells = torch.arange(rows, device=image.device)[:, None] * SIDE + torch.arange(columns, device=image.device)
        positions, maps = cells.flatten().expand(len(image), -1), list[Tensor]()
        tokens = self.embeddings(image[:, None])
        for i, block in enumerate(self.units):
            tokens = block(tokens, positions)
            if i in self.layers:
                out = tokens if self.final is None else self.final(tokens)
                maps.append(out.unflatten(1, (rows, columns)).movedim(-1, 1))
        return maps
