"""Position embeddings of a Vision Transformer on another grid, as DINO's and DINOv2's own code resamples them."""

from types import MethodType

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from semcorr.core.errors import UserError

WAYS = ("timm", "dinov2")


def use_position_embedding(model: nn.Module, way: str) -> None:
    """Let a timm transformer resample its position embeddings in one of two ways.

    Args:
        model: Network of timm, which is changed in place.
        way: `timm`, as it is: to the new grid, antialiased; or `dinov2`, as `resample_by_scale`.

    Raises:
        UserError: The way is unknown, or the network has no position embeddings on a grid that could be resampled.
    """
    if way not in WAYS:
        raise UserError(f"`backbone.position_embedding` must be one of {', '.join(WAYS)}, got {way!r}")
    if way == "timm":
        return
    if not isinstance(getattr(model, "pos_embed", None), Tensor) or not getattr(model, "dynamic_img_size", False):
        raise UserError(
            f"`backbone.position_embedding`: {type(model).__name__} has no position embeddings that are resampled by "
            "dinov2's rule. Give backbone.position_embedding=timm."
        )
    setattr(model, "_pos_embed", MethodType(_embed_positions, model))  # noqa: B010 - timm's network is a plain Module


def resample_by_scale(embedding: Float[Tensor, "1 n c"], height: int, width: int) -> Float[Tensor, "1 m c"]:
    """Resample a square grid of embeddings to height x width cells, bicubic and without antialiasing.

    A side of g0 embeddings is scaled by (g + 0.1) / g0 for g cells, and sampled at that scale, not at g / g0: the 0.1
    keeps g from being rounded down. The libraries of the unified benchmark's code did so (Dinov2Model of
    transformers at the time), and so do DINO's and DINOv2's own code; on the grid itself nothing changes.
    """
    side = int(embedding.shape[1] ** 0.5)
    if (height, width) == (side, side):
        return embedding
    grid = embedding.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    scale = (height + 0.1) / side, (width + 0.1) / side
    resampled = interpolate(grid, scale_factor=scale, mode="bicubic", align_corners=False, recompute_scale_factor=False)
    return resampled.flatten(2).transpose(1, 2)


def _embed_positions(model: nn.Module, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b t c"]:
    """Add the resampled embeddings to the cells, and those of the prefix tokens, where there are some, to these."""
    embedding, prefix = model.get_parameter("pos_embed"), 0 if model.no_embed_class else model.num_prefix_tokens
    cells = resample_by_scale(embedding[:, prefix:], *x.shape[1:3])
    parameters, dropout = dict(model.named_parameters(recurse=False)), model.get_submodule("pos_drop")
    first = [parameters[name].expand(len(x), -1, -1) for name in ("cls_token", "reg_token") if name in parameters]
    tokens = x.flatten(1, 2)
    if model.no_embed_class:
        return dropout(torch.cat([*first, tokens + cells], dim=1))
    return dropout(torch.cat([*first, tokens], dim=1) + torch.cat([embedding[:, :prefix], cells], dim=1))
