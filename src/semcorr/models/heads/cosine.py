"""The head without parameters: cosine similarity of unchanged features."""

from jaxtyping import Float
from torch import Tensor, nn

from semcorr.core.types import FeatureMap
from semcorr.matching.similarity import cosine_similarity, sample_descriptors


class Cosine(nn.Module):
    """Cosine similarity of descriptors at the query points with every target cell."""

    def forward(
        self, source: FeatureMap, target: FeatureMap, points: Float[Tensor, "b n 2"]
    ) -> Float[Tensor, "b n h w"]:
        """Compute the similarity of `points`, given in source pixels, with every target cell."""
        return self.compare(self.describe(self.adapt(source), points), self.adapt(target))

    def adapt(self, maps: FeatureMap) -> FeatureMap:
        """Return the features unchanged."""
        return maps

    def describe(self, source: FeatureMap, points: Float[Tensor, "b n 2"]) -> Float[Tensor, "b n c"]:
        """Sample the descriptors of points bilinearly."""
        return sample_descriptors(source.values, points, source.stride)

    def compare(self, descriptors: Float[Tensor, "b n c"], target: FeatureMap) -> Float[Tensor, "b n h w"]:
        """Compute the cosine of every descriptor with every target cell."""
        return cosine_similarity(descriptors, target.values)
