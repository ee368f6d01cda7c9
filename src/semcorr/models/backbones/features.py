"""Feature maps of a network: the facet of a block that is read, several maps as one, components of two images."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, linear, normalize, pad

from semcorr.core.errors import UserError

FACETS = ("token", "query", "key", "value")


def check_facet(facet: str) -> None:
    """Refuse an unknown facet."""
    if facet not in FACETS:
        raise UserError(f"`backbone.facet` must be one of {', '.join(FACETS)}, got {facet!r}")


def project_facet(block: nn.Module, tokens: Float[Tensor, "b n c"], facet: str) -> Float[Tensor, "b n _"]:
    """Project the input tokens of a block to its queries, keys or values, all heads side by side.

    As Amir et al. (2021, "Deep ViT features as dense visual descriptors") read them: from the
    projection, before any normalisation or rotation of queries and keys.

    Args:
        block: Transformer block of timm.
        tokens: Tokens that go into the block.
        facet: `query`, `key` or `value`.
    """
    attention, tokens = block.get_submodule("attn"), block.get_submodule("norm1")(tokens)
    if getattr(attention, "qkv", None) is None:
        return getattr(attention, f"{facet[0]}_proj")(tokens)
    biases = [getattr(attention, f"{letter}_bias", None) for letter in "qkv"]
    projection = attention.get_submodule("qkv")
    if biases[0] is None:
        fused = projection(tokens)
    else:  # EVA stores them outside the layer
        assert isinstance(projection.weight, Tensor)
        fused = linear(tokens, projection.weight, torch.cat([bias for bias in biases if bias is not None]))
    return fused.chunk(3, dim=-1)[FACETS.index(facet) - 1]


def parameters_unused_by_facet(block: nn.Module, facet: str) -> list[nn.Parameter]:
    """List the weights of a block that its queries, keys or values do not depend on, those that tuning added included.

    They depend on the first norm, the projection, and the biases that EVA stores outside the layer.
    """
    norm = next(name for name, _ in block.named_children() if "norm" in name)
    projections, biases = {"qkv", f"{facet[0]}_proj"}, ("q_bias", "k_bias", "v_bias")

    def is_used(name: str) -> bool:
        return name.startswith(f"{norm}.") or name.endswith(biases) or not projections.isdisjoint(name.split("."))

    return [parameter for name, parameter in block.named_parameters() if not is_used(name)]


def tokens_to_maps(
    tokens: Mapping[int, Float[Tensor, "b n c"]], prefix_tokens: int, rows: int
) -> list[Float[Tensor, "b c h w"]]:
    """Reshape the tokens of each layer to a map.

    Args:
        tokens: Tokens by the index of their layer.
        prefix_tokens: Number of tokens before those of the cells, which are left out.
        rows: Rows of the maps.

    Returns:
        The maps, in ascending order of the layers.
    """
    return [tokens[layer][:, prefix_tokens:].unflatten(1, (rows, -1)).movedim(-1, 1) for layer in sorted(tokens)]


def concatenate_layers(maps: Sequence[Float[Tensor, "b _ _ _"]], unit: bool = True) -> Float[Tensor, "b c h w"]:
    """Bring the maps of several layers to the finest grid (bilinear) and concatenate them along channels.

    Args:
        maps: Maps in the order of their layers. A single one is returned as it is.
        unit: Normalise each map (L2, cell by cell, on its own grid) first. Parts of equal length make a cosine of the
            whole the mean of the parts' cosines, so no layer drowns another. If false, each keeps its scale.
    """
    if len(maps) == 1:
        return maps[0]
    finest = max((tuple(m.shape[-2:]) for m in maps), key=lambda size: size[0] * size[1])
    parts = [normalize(m, dim=1) for m in maps] if unit else maps
    resized = [p if tuple(p.shape[-2:]) == finest else interpolate(p, size=finest, mode="bilinear") for p in parts]
    return torch.cat(resized, dim=1)


def normalise_layer_indices(layers: Sequence[int], count: int) -> list[int]:
    """Return layer indices counted from the start, sorted and each once; negative ones count from the end.

    Raises:
        UserError: There is none, or one is not within `count` layers.

    >>> normalise_layer_indices([-1, 3], count=12)
    [3, 11]
    """
    invalid = [layer for layer in layers if not -count <= layer < count]
    if invalid or not layers:
        raise UserError(f"`backbone.layers` must be between {-count} and {count - 1} here, got {list(layers)}")
    return sorted({layer % count for layer in layers})


class CellMoments(NamedTuple):
    """Moments of the cells of each map: all that their principal directions with the cells of another depend on."""

    mean: Float[Tensor, "b c"]
    scatter: Float[Tensor, "b c c"]  # sum over the cells, of the outer products of their differences from the mean


@torch.no_grad()
def cell_moments(maps: Float[Tensor, "b c h w"]) -> CellMoments:
    """Compute the moments of the cells of each map."""
    with torch.autocast(maps.device.type, enabled=False):
        cells = maps.flatten(2).float()
        mean = cells.mean(dim=2)
        centred = cells - mean[..., None]
        return CellMoments(mean, centred @ centred.mT)


def joint_pca(
    source: Float[Tensor, "b c h w"],
    target: Float[Tensor, "#b c i j"],
    components: int,
    target_moments: CellMoments | None = None,
) -> tuple[Float[Tensor, "b {components} h w"], Float[Tensor, "b {components} i j"]]:
    """Project both maps of each pair onto the first `components` principal directions of the two together.

    As sd-dino (Zhang et al. 2023) reduces each layer of Stable Diffusion, centred by the common mean; there by
    a randomised decomposition, here by an exact one, so that a pair always gives the same result. The basis is
    a constant to gradients, and the largest entry of each direction is positive. Where there are fewer directions
    than `components`, the rest is zero.

    Products are in single precision, their decomposition is in double. On features whose spectra decay, repeat or are
    dominated by two directions, cosines are within 1e-4 of those that are computed in double precision throughout. A
    decomposition in single precision takes half the time, and is off by up to 2e-3: it rounds by the largest variance,
    and directions next to the last one kept may vary a million times less.

    Args:
        source: Maps of the sources.
        target: Maps of their targets; a single one is the target of all sources.
        components: Number of directions.
        target_moments: `cell_moments(target)`, for a target that many calls have in common; computed if left out.

    Returns:
        The components of the sources' cells, and those of the targets', one target for each source.
    """
    with torch.autocast(source.device.type, enabled=False):
        a, b = source.flatten(2).float(), target.flatten(2).float()
        mean = (a.sum(2) + b.sum(2))[..., None] / (a.shape[2] + b.shape[2])
        a, b = a - mean, b - mean
        with torch.no_grad():
            if is_wide(a.shape[1], a.shape[2] + b.shape[2]):
                basis = _directions_of_cells(a, b, components)
            else:
                moments = cell_moments(source), target_moments or cell_moments(target)
                scatter = _joint_scatter(moments, (a.shape[2], b.shape[2]))
                basis = _first_directions(scatter, components).float()
            basis = basis * basis.gather(1, basis.abs().argmax(1, keepdim=True)).sign()
        a, b = basis.mT @ a, basis.mT @ b
    return a.unflatten(2, source.shape[2:]).to(source), b.unflatten(2, target.shape[2:]).to(target)


def is_wide(channels: int, cells: int) -> bool:
    """Tell whether there are fewer cells than channels: their products are then the smaller matrix to decompose."""
    return cells < channels


def _joint_scatter(moments: tuple[CellMoments, CellMoments], counts: tuple[int, int]) -> Float[Tensor, "b c c"]:
    """Compute the scatter of the cells of two maps around their common mean (Chan et al. 1979)."""
    (a_mean, a_scatter), (b_mean, b_scatter) = moments
    apart = (a_mean - b_mean) * (counts[0] * counts[1] / sum(counts)) ** 0.5
    return a_scatter + b_scatter + apart[..., None] * apart[:, None]


def _directions_of_cells(
    a: Float[Tensor, "b c n"], b: Float[Tensor, "b c m"], components: int
) -> Float[Tensor, "b c {components}"]:
    """Compute principal directions from the products of cells, centred by their common mean; zero where there are none.

    Combinations of the cells by an eigenvector are a multiple of a direction. Where that is close to zero, rounding
    turns it towards the first ones, from which the QR decomposition turns it away.
    """
    cells = torch.cat((a, b), dim=2)
    combinations = _first_directions(cells.mT @ cells, components)
    directions = torch.linalg.qr(cells.double() @ combinations).Q.float()
    return pad(directions, (0, components - directions.shape[-1]))


def _first_directions(products: Float[Tensor, "b n n"], count: int) -> Float[Tensor, "b n _"]:
    """Decompose symmetric matrices, and return their first eigenvectors, largest eigenvalue first, in columns."""
    return torch.linalg.eigh(products.double()).eigenvectors[..., -count:].flip(-1)
