"""Head of layers that are selected again for each pair of images: dynamic hyperpixels, then cosines."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gumbel_softmax, one_hot

from semcorr.core.errors import UserError
from semcorr.core.ranges import Count, Share, Weight, check_arguments
from semcorr.core.types import FeatureMap
from semcorr.matching.similarity import cosine_similarity, sample_descriptors


class LayerGate(nn.Module):
    """Evidence for and against a layer, from the mean of its features over both images of a pair.

    Args:
        channels: Channels of the layer.
        hidden: Channels in the middle.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.evidence = nn.Sequential(
            nn.Linear(channels, hidden, bias=False), nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, 2, bias=False)
        )

    def forward(self, source: Float[Tensor, "b c h w"], target: Float[Tensor, "b c i j"]) -> Float[Tensor, "b 2"]:
        """Compute the evidence that the layer is left out, and that it is selected."""
        dtype = torch.promote_types(source.dtype, torch.float32)
        means = source.flatten(2).mean(2, dtype=dtype) + target.flatten(2).mean(2, dtype=dtype)
        with torch.autocast(means.device.type, enabled=False):  # which of two is larger is decided by the last digits
            evidence: Tensor = self.evidence(means)
        return evidence


class GatedLayers(nn.Module):
    """Cosine similarity of the layers that suit a pair, each in fewer channels: the dynamic hyperpixels of DHPF.

    After Min et al. (2020, "Learning to Compose Hypercolumns for Visual Correspondence"): a small network for each
    layer sees the means of its features over both images, and selects the layer or leaves it out. In training the
    choice is drawn (Gumbel-softmax, hard forward and soft backward), in evaluation it is the likelier one. Selected
    layers are reduced to an eighth of their channels and concatenated. Where no layer is selected, the first is.

    Norms are by group and by layer, where DHPF's are over the batch, which may be a single pair here. There is no Hough
    matching.

    Args:
        maps: Channels of each layer, in the order in which the backbone concatenates them.
        reduction: Number that the channels of each layer are divided by.
        hidden: Channels in the middle of each gate.
        rate: Share of pairs in which each layer is to be selected.
        selection: Weight of the squared differences of the layers' shares from `rate` in the loss; 0 leaves them free.
    """

    @check_arguments("head")
    def __init__(
        self,
        maps: Sequence[Count],
        reduction: Count = 8,
        hidden: Count = 32,
        rate: Share = 0.5,
        selection: Weight = 1.0,
    ) -> None:
        super().__init__()
        self.maps, self.rate, self.selection = list(maps), rate, selection
        if not self.maps:
            raise UserError("`head.maps` must name the channels of at least one map, or be null for the backbone's")
        if reduction > min(self.maps):
            raise UserError(
                f"`head.reduction` must be at most {min(self.maps)}, the channels of the narrowest layer, "
                f"got {reduction}"
            )
        self.gates = nn.ModuleList(LayerGate(channels, hidden) for channels in self.maps)
        self.reductions = nn.ModuleList(_build_reduction(channels, channels // reduction) for channels in self.maps)
        self.widths = [channels // reduction for channels in self.maps]
        self._selected: list[Float[Tensor, "b l"]] = []  # by the calls of a training step

    def forward(
        self, source: FeatureMap, target: FeatureMap, points: Float[Tensor, "b n 2"]
    ) -> Float[Tensor, "b n h w"]:
        """Compute the similarity of `points`, given in source pixels, with every target cell."""
        source_layers, target_layers = (maps.values.split(self.maps, dim=1) for maps in (source, target))
        selected = self.select(source_layers, target_layers)
        if self.training and torch.is_grad_enabled():
            self._selected.append(selected)
        a, b = (self._compose(layers, selected) for layers in (source_layers, target_layers))
        return cosine_similarity(sample_descriptors(a, points, source.stride), b)

    def select(
        self, source: Sequence[Float[Tensor, "b _ h w"]], target: Sequence[Float[Tensor, "b _ i j"]]
    ) -> Float[Tensor, "b l"]:
        """Select layers for each pair: 1 for those that are, 0 for others; in training at random, with gradients."""
        evidence = torch.stack([gate(a, b) for gate, a, b in zip(self.gates, source, target, strict=True)], dim=1)
        if self.training:
            return gumbel_softmax(evidence, hard=True)[..., 1]
        return one_hot(evidence.argmax(-1), 2)[..., 1].to(evidence)

    def take_penalty(self) -> Float[Tensor, ""]:
        """Return the term of the loss that keeps layers near their rate, of the calls since the last time."""
        shares = torch.cat(self._selected).mean(0)
        self._selected = []
        return self.selection * (shares - self.rate).square().sum()

    def _compose(
        self, layers: Sequence[Float[Tensor, "b _ h w"]], selected: Float[Tensor, "b l"]
    ) -> Float[Tensor, "b d h w"]:
        """Reduce and concatenate the layers, with zeros for those that are not selected."""
        is_empty = (selected.detach() < 0.5).all(1)  # a gate is 1 but for rounding
        first = one_hot(torch.zeros_like(is_empty, dtype=torch.long), len(self.maps)).to(selected)
        weights = selected + first * is_empty[:, None]
        columns = weights[..., None, None, None].unbind(1)
        parts = [
            reduce(layer.to(selected)) * column
            for reduce, layer, column in zip(self.reductions, layers, columns, strict=True)
        ]
        return torch.cat(parts, dim=1)


def _build_reduction(channels: int, out: int) -> nn.Sequential:
    """Build a 1 x 1 convolution with norm and ReLU."""
    return nn.Sequential(nn.Conv2d(channels, out, 1, bias=False), nn.GroupNorm(1, out), nn.ReLU())
