"""Queries, keys and values of a transformer block's attention, as features."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from semcorr.core.errors import UserError

FACETS = ("token", "query", "key", "value")


def check_facet(facet: str) -> None:
    """Refuse an unknown facet."""
    if facet not in FACETS:
        raise UserError(f"`backbone.facet` must be one of {', '.join(FACETS)}, got {facet!r}")


def project_facet(block: object, tokens: Float[Tensor, "b n c"], facet: str) -> Float[Tensor, "b n _"]:
    """Project the input tokens of a block to its queries, keys or values, all heads side by side.

    As Amir et al. (2021, "Deep ViT features as dense visual descriptors") read them: from the
    projection, before any normalisation or rotation of queries and keys.
    """
    attention, tokens = block.attn, block.norm1(tokens)
    if getattr(attention, "qkv", None) is None:
        return getattr(attention, f"{facet[0]}_proj")(tokens)
    biases = [getattr(attention, f"{letter}_bias", None) for letter in "qkv"]
    if biases[0] is None:
        fused = attention.qkv(tokens)
    else:  # EVA stores them outside the layer
        fused = linear(tokens, attention.qkv.weight, torch.cat([bias for bias in biases if bias is not None]))
    return fused.chunk(3, dim=-1)[FACETS.index(facet) - 1]


def parameters_unused_by_facet(block: nn.Module, facet: str) -> list[nn.Parameter]:
    """List the weights of a block that its queries, keys or values do not depend on, added by tuning or not.

    They depend on the first norm, the projection, and the biases that EVA stores outside the layer.
    """
    norm = next(name for name, _ in block.named_children() if "norm" in name)
    projections, biases = {"qkv", f"{facet[0]}_proj"}, ("q_bias", "k_bias", "v_bias")

    def is_used(name: str) -> bool:
        return name.startswith(f"{norm}.") or name.endswith(biases) or not projections.isdisjoint(name.split("."))

    return [parameter for name, parameter in block.named_parameters() if not is_used(name)]


def tokens_to_maps(
    tokens: Mapping[int, Float[Tensor, "b n c"]], special: int, rows: int
) -> list[Float[Tensor, "b c h w"]]:
    """Reshape tokens, without the first `special`, to maps of `rows` rows, in the order of the layers."""
    return [tokens[layer][:, special:].unflatten(1, (rows, -1)).movedim(-1, 1) for layer in sorted(tokens)]
