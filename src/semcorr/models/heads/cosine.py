"""The head without parameters: cosine similarity of the features as they are."""

from jaxtyping import Float
from torch import Tensor, nn

from semcorr.core.types import FeatureMap
from semcorr.matching.similarity import cosine_similarity, sample_descriptors


class Cosine(nn.Module):
    """Read the source at the query points, compare with every target cell."""

    def forward(
        self, source: FeatureMap, target: FeatureMap, points: Float[Tensor, "b n 2"]
    ) -> Float[Tensor, "b n h w"]:
        """`points` are in source pixels."""
        return self.compare(self.describe(self.adapt(source), points), self.adapt(target))

    def adapt(self, maps: FeatureMap) -> FeatureMap:
        """As they are."""
        return maps

    def describe(self, source: FeatureMap, points: Float[Tensor, "b n 2"]) -> Float[Tensor, "b n c"]:
        """Bilinear descriptors of points."""
        return sample_descriptors(source.values, points, source.stride)

    def compare(self, descriptors: Float[Tensor, "b n c"], target: FeatureMap) -> Float[Tensor, "b n h w"]:
        """Cosine with every cell."""
        return cosine_similarity(descriptors, target.values)
