"""The head without parameters: cosine similarity of unchanged features."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from semcorr.core.types import FeatureMap
from semcorr.matching.similarity import (
    cosine_similarity,
    cosine_similarity_to_each,
    sample_descriptors,
    sample_from_each,
)


class Cosine(nn.Module):
    """Cosine similarity of descriptors at the query points with every target cell."""

    def forward(
        self, source: FeatureMap, target: FeatureMap, points: Float[Tensor, "b n 2"]
    ) -> Float[Tensor, "b n h w"]:
        """Compute the similarity of `points`, given in source pixels, with every target cell."""
        return self.compare(self.describe(self.transform(source), points), self.transform(target))

    def transform(self, maps: FeatureMap) -> FeatureMap:
        """Return the features unchanged."""
        return maps

    def describe(self, source: FeatureMap, points: Float[Tensor, "b n 2"]) -> Float[Tensor, "b n c"]:
        """Sample the descriptors of points bilinearly."""
        return sample_descriptors(source.values, points, source.stride)

    def describe_sources(
        self, sources: Sequence[FeatureMap], points: Sequence[Float[Tensor, "_ 2"]]
    ) -> Float[Tensor, "q c"]:
        """Sample the descriptors of the points of several sources, of one image each, at once.

        A subclass with a `describe` of its own has its `describe` called source by source, and so are sources of
        different sizes or precisions, and those that need a gradient.
        """
        unique = {id(source): source for source in sources}.values()
        kinds = {(source.stride, source.values.shape, source.values.dtype) for source in unique}
        has_own_description = getattr(self.describe, "__func__", None) is not Cosine.describe
        if has_own_description or len(kinds) > 1 or torch.is_grad_enabled():
            chunks = [
                self.describe(source, query_points[None])[0]
                for source, query_points in zip(sources, points, strict=True)
            ]
            return torch.cat(chunks)
        return sample_from_each([source.values for source in sources], points, sources[0].stride)

    def compare(self, descriptors: Float[Tensor, "b n c"], target: FeatureMap) -> Float[Tensor, "b n h w"]:
        """Compute the cosine of every descriptor with every target cell."""
        return cosine_similarity(descriptors, target.values)

    def compare_targets(
        self, descriptors: Float[Tensor, "q c"], counts: Sequence[int], targets: Sequence[FeatureMap]
    ) -> Float[Tensor, "1 q h w"]:
        """Compute the similarities of the descriptors of each of several targets, of one image and size, at once.

        A subclass with a `compare` of its own has its `compare` called target by target.
        """
        has_own_comparison = getattr(self.compare, "__func__", None) is not Cosine.compare
        if has_own_comparison or torch.is_grad_enabled():
            rows = zip(descriptors.split(list(counts)), targets, strict=True)
            return torch.cat([self.compare(chunk[None], target) for chunk, target in rows], dim=1)
        return cosine_similarity_to_each(descriptors, counts, [target.values for target in targets])
