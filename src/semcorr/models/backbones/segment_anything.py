"""The image encoder of Segment Anything (Kirillov et al. 2023), tokens or neck, at any multiple of 16 pixels."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from timm.models.vision_transformer_sam import (
    Attention,
    VisionTransformerSAM,
    get_decomposed_rel_pos_bias,
)
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from semcorr.core.errors import UserError
from semcorr.core.ranges import Count, Positive, Whole, check_arguments
from semcorr.core.text_files import JsonObject
from semcorr.models.backbones.features import normalise_layer_indices
from semcorr.models.backbones.sequential import CellGrid, SequentialBackbone
from semcorr.models.weights.checkpoints import read_weights
from semcorr.models.weights.hub import download_error
from semcorr.models.weights.loading import load_weights, weights_sha256
from semcorr.models.weights.networks import recognise_weights

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # 123.675 116.28 103.53, 58.395 57.12 57.375 of 255
ADDRESS = "https://dl.fbaipublicfiles.com/segment_anything/"
ENCODERS: dict[str, JsonObject] = {
    "vit_b": {"embed_dim": 768, "depth": 12, "num_heads": 12, "global_attn_indexes": (2, 5, 8, 11)},
    "vit_l": {"embed_dim": 1024, "depth": 24, "num_heads": 16, "global_attn_indexes": (5, 11, 17, 23)},
    "vit_h": {"embed_dim": 1280, "depth": 32, "num_heads": 16, "global_attn_indexes": (7, 15, 23, 31)},
}
# File and SHA-256; the digits in a file's name are of its MD5, which PyTorch's downloader does not check.
FILES = {
    "vit_b": ("sam_vit_b_01ec64.pth", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"),
    "vit_l": ("sam_vit_l_0b3195.pth", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),
    "vit_h": ("sam_vit_h_4b8939.pth", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"),
}


class HeadwiseAttention(Attention):
    """Global attention that never holds the matrices of all heads.

    With relative positions there is a matrix of 4,096 x 4,096 per head at 1024 pixels, several times over:
    0.8 GB an image. For a batch of 8 pairs they would take 40 GB in each global block that trains. On a CPU they are
    made for one head of one image at a time, and again in the backward pass; elsewhere they are not made at all, at
    about three times the operations, which a CPU takes 1.5 times as long for.
    """

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        """Compute attention as timm's class does."""
        if x.device.type != "cpu" and self.use_rel_pos:
            return self._attend_without_matrices(x)
        b, h, w, _ = x.shape
        qkv = self.qkv(x).reshape(b, h * w, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).flatten(1, 2)
        attend: Callable[..., Tensor] = (
            partial(checkpoint, self._attend, use_reentrant=False) if torch.is_grad_enabled() else self._attend
        )
        heads = torch.cat([attend(*head, (h, w)) for head in zip(*(part.split(1) for part in qkv), strict=True)])
        return self.proj(heads.view(b, self.num_heads, h, w, -1).permute(0, 2, 3, 1, 4).flatten(3))

    def _attend_without_matrices(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        """Compute all heads at once; relative positions are channels of queries and keys (`positions_as_channels`)."""
        b, h, w, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, h * w, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        rows, columns = relative_positions(self.rel_pos_h, h), relative_positions(self.rel_pos_w, w)
        queries, keys = positions_as_channels(q, k, rows, columns)
        values = pad(v, (0, h + w))  # the kernels that need no matrix want as many channels as queries have
        heads = scaled_dot_product_attention(queries, keys, values, scale=1.0)[..., : v.shape[-1]]
        return self.proj(heads.unflatten(2, (h, w)).permute(0, 2, 3, 1, 4).flatten(3))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int]) -> Tensor:
        """Compute the attention of one head, with its relative positions."""
        bias = get_decomposed_rel_pos_bias(q, self.rel_pos_h, self.rel_pos_w, grid, grid) if self.use_rel_pos else None
        return scaled_dot_product_attention(q, k, v, attn_mask=bias)


def relative_positions(positions: Float[Tensor, "stored c"], length: int) -> Float[Tensor, "{length} {length} c"]:
    """Return the relative position of every two cells along an axis, resized to its length, as timm's `get_rel_pos`.

    The index is made on the device: timm copies one to it in each block, and waits.
    """
    if len(positions) != 2 * length - 1:
        positions = interpolate(positions.T[None], size=2 * length - 1, mode="linear")[0].T
    cells = torch.arange(length, device=positions.device)
    return positions[cells[:, None] - cells + length - 1]


def positions_as_channels(
    q: Float[Tensor, "b n cells c"],
    k: Float[Tensor, "b n cells c"],
    rows: Float[Tensor, "h h c"],
    columns: Float[Tensor, "w w c"],
) -> tuple[Float[Tensor, "b n cells d"], Float[Tensor, "b n cells d"]]:
    """Return queries and keys whose products are the logits of attention with decomposed relative positions.

    The logit of cell (i, j) for the query at (y, x) is q k / sqrt(c) + q rows[y, i] + q columns[x, j]. The last two
    are h + w numbers of the query, of which the key chooses one each by a 1 among zeros.

    Args:
        q: Queries of every head, row by row.
        k: Keys.
        rows: Relative positions, by the rows of query and key.
        columns: Relative positions, by their columns.
    """
    h, w = len(rows), len(columns)
    grid = q.unflatten(2, (h, w))
    along_y = torch.einsum("bnyxc,yic->bnyxi", grid, rows)
    along_x = torch.einsum("bnyxc,xjc->bnyxj", grid, columns)
    queries = torch.cat((grid * q.shape[-1] ** -0.5, along_y.to(q.dtype), along_x.to(q.dtype)), dim=-1)
    row, column = (torch.eye(length, dtype=k.dtype, device=k.device) for length in (h, w))
    choice = torch.cat((row[:, None].expand(-1, w, -1), column.expand(h, -1, -1)), dim=-1).flatten(0, 1)
    return queries.flatten(2, 3), torch.cat((k, choice.expand(*k.shape[:2], -1, -1)), dim=-1)


class MLP(nn.Module):
    """The MLP of a block, whose layers have the names of the authors' checkpoints.

    Args:
        in_features: Channels of the tokens.
        hidden_features: Channels between the two layers.
        act_layer: Activation between them.
        drop: Unused by Segment Anything; timm's blocks give it.
        device: Device of the weights.
        dtype: Type of the weights.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        drop: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.lin1 = nn.Linear(in_features, hidden_features, device=device, dtype=dtype)
        self.act = act_layer()
        self.lin2 = nn.Linear(hidden_features, in_features, device=device, dtype=dtype)

    def forward(self, x: Float[Tensor, "*shape c"]) -> Float[Tensor, "*shape c"]:
        """Compute both layers."""
        return self.lin2(self.act(self.lin1(x)))


class SegmentAnything(SequentialBackbone):
    """Dense features of the encoder, by timm's blocks, under the names of the authors' checkpoints.

    The authors scale an image's longer side to 1024 pixels, normalise it and pad it with zeros at the bottom
    and the right. Here images are squashed, or letterboxed around their centre, as for every other backbone
    (`data.resize`).

    Args:
        name: Size of the encoder: `vit_b`, `vit_l` or `vit_h`.
        size: Side of the square images are resized to, in pixels: 1024 in training, any multiple of 16 here.
        grid: Cells along the side of an image, given instead of `size`.
        pretrained: Download the official checkpoint. If false, and without `weights`, the weights are random.
        weights: Local file to read instead, official or of the encoder alone.
        layers: Blocks whose outputs are read; negative numbers count from the end.
        neck: Read the 256 channels that the mask decoder sees, instead of the last block's tokens.
        embed_dim: Channels of the tokens; those of `name` if left out.
        depth: Number of blocks; that of `name` if left out.
        num_heads: Number of attention heads; that of `name` if left out.
        global_attn_indexes: Blocks whose attention is global, where that of the others is in windows; those of `name`
            if left out.
        patch_size: Side of a patch, in pixels.
        img_size: Side of the image that the stored positions are of, in pixels.
        window_size: Side of a window, in patches.
        mlp_ratio: Channels inside the MLP of a block, relative to `embed_dim`.
        neck_chans: Channels after the neck.
    """

    @check_arguments("backbone")
    def __init__(
        self,
        name: str = "vit_b",
        size: int | None = 1024,
        grid: int | None = None,
        pretrained: bool = True,
        weights: str | None = None,
        layers: Sequence[int] = (-1,),
        neck: bool = False,
        *,
        embed_dim: Count | None = None,
        depth: Count | None = None,
        num_heads: Count | None = None,
        global_attn_indexes: Sequence[Whole] | None = None,
        patch_size: Count = 16,
        img_size: Count = 1024,
        window_size: Count = 14,
        mlp_ratio: Positive = 4.0,
        neck_chans: Count = 256,
    ) -> None:
        if name not in ENCODERS:
            raise UserError(f"`backbone.name` must be one of {', '.join(ENCODERS)}, got {name!r}")
        sizes: JsonObject = {
            "embed_dim": embed_dim,
            "depth": depth,
            "num_heads": num_heads,
            "global_attn_indexes": global_attn_indexes,
        }
        config = ENCODERS[name] | {key: value for key, value in sizes.items() if value is not None}
        super().__init__(f"sam_{name}", size, grid, CellGrid(patch_size, patch_size), (MEAN, STD))
        self.layers, self.neck = normalise_layer_indices(layers, config["depth"]), neck
        self.layer_choices = range(config["depth"])
        if neck and self.layers != [config["depth"] - 1]:
            raise UserError(f"`backbone.neck` follows the last block, so `backbone.layers` must be [-1], got {layers}")
        source = weights or (_download(name) if pretrained else None)
        state = None if source is None else read_weights(source)
        # Without a norm_layer it is LayerNorm with the authors' epsilon, 1e-6.
        encoder = VisionTransformerSAM(
            img_size=img_size,
            patch_size=patch_size,
            window_size=window_size,
            mlp_ratio=mlp_ratio,
            neck_chans=neck_chans,
            num_classes=0,
            norm_layer=None,
            mlp_layer=MLP,
            use_rel_pos=True,
            **config,
        )
        full = encoder.state_dict()
        encoder.blocks = encoder.blocks[: self.layers[-1] + 1]
        encoder.neck = encoder.neck if neck else nn.Sequential()
        for block in encoder.blocks:
            if block.window_size == 0:
                block.attn.__class__ = HeadwiseAttention
        if source is not None and state is not None:
            load_weights(
                encoder, image_encoder_state(state), source, spare=full.keys(), diagnosis=recognise_weights(state, full)
            )
        self.model = encoder
        self.widths = [neck_chans] if neck else [config["embed_dim"]] * len(self.layers)
        self.channels = sum(self.widths)
        self.sha256 = weights_sha256(encoder)

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks up to the last layer read."""
        return list(self.model.blocks)

    @property
    def points(self) -> list[int]:
        """The number of blocks run before each layer is read: its own is the last of them."""
        return [layer + 1 for layer in self.layers]

    def read(self, image: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _ _ _"]]:
        """Compute one map per layer from normalised images.

        timm's blocks resize the relative positions of the global blocks, and pad windows with zeros.
        """
        tokens = self.model.patch_embed(image)
        tokens = tokens + resize_position_embeddings(self.model.pos_embed, tokens.shape[1], tokens.shape[2])
        maps = []
        for layer, block in enumerate(self.model.blocks):
            tokens = block(tokens)
            if layer in self.layers:
                maps.append(self.model.neck(tokens.movedim(-1, 1)))
        return maps


def resize_position_embeddings(
    positions: Float[Tensor, "1 _ _ c"], rows: int, columns: int
) -> Float[Tensor, "1 {rows} {columns} c"]:
    """Resize position embeddings to another grid: bicubic, without aliasing where it is coarser."""
    if positions.shape[1:3] == (rows, columns):
        return positions
    maps = interpolate(positions.movedim(-1, 1), size=(rows, columns), mode="bicubic", antialias=True)
    return maps.movedim(1, -1)


def image_encoder_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the encoder's part of a whole model's state dict; an encoder's own is returned as it is.

    >>> image_encoder_state({"image_encoder.pos_embed": torch.ones(1), "mask_decoder.iou_token.weight": torch.ones(1)})
    {'pos_embed': tensor([1.])}
    """
    part = {key.removeprefix("image_encoder."): state[key] for key in state if key.startswith("image_encoder.")}
    return part or state


def _download(name: str) -> Path:
    """Download the official file to PyTorch's own cache, unless it is there already."""
    file, digest = FILES[name]
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(ADDRESS + file, str(path), hash_prefix=digest)
        except (OSError, RuntimeError) as error:  # no network, or another file than the official one
            raise download_error(error, f"sam_{name}", file=ADDRESS + file) from error
    return path
