"""Search of the layers that a frozen backbone is read at: from scores of pairs to hyperpixels, by beam search."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from semcorr.core.terminal import Stage
from semcorr.core.types import FeatureMap, PairBatch
from semcorr.data.datamodule import PairDataModule
from semcorr.data.image_variants import ImageVariant
from semcorr.evaluation.evaluator import Evaluator
from semcorr.evaluation.image_features import EvaluationSetup
from semcorr.evaluation.protocols import ScoringSpec
from semcorr.models.backbones.features import concatenate_layers
from semcorr.store.cache import FeatureCache
from semcorr.store.encode import Values, encode_images, split_into_chunks
from semcorr.store.frozen import feature_origin, to_channels_last

Layers = tuple[int, ...]


class LayerSet(NamedTuple):
    """A set of layers, ascending, and its score, of which more is better."""

    layers: Layers
    score: float


def search_beam(
    score_sets: Callable[[Sequence[Layers]], Sequence[float]], choices: Sequence[int], width: int, most: int
) -> Iterator[list[LayerSet]]:
    """Yield the scored sets of one layer, then those of two, and so on, each time with the best set first.

    The `width` best sets of a round are kept, and each of them is enlarged by every other layer for the next: Min et
    al. (2019, "Hyperpixel Flow"). Their search begins with the first layers and adds deeper ones only; here
    any layer may come first and be added. Of sets with the same score, the one with shallower layers comes first.

    Args:
        score_sets: Function from the sets of a round to their scores, of which more is better.
        choices: Layers to choose from.
        width: Number of sets that are kept of each round.
        most: Number of layers of the largest sets.

    >>> [best, *_], _ = search_beam(lambda sets: [-abs(sum(layers) - 5) for layers in sets], [1, 2, 3, 4], 2, 2)
    >>> best
    LayerSet(layers=(4,), score=-1)
    """
    candidates: set[Layers] = {(layer,) for layer in choices}
    for _ in range(most):
        if not candidates:
            return
        ordered = sorted(candidates)
        scored = [LayerSet(*pair) for pair in zip(ordered, score_sets(ordered), strict=True)]
        scored.sort(key=lambda layer_set: -layer_set.score)  # stable: the order of layers decides between equals
        yield scored
        candidates = {
            tuple(sorted((*layer_set.layers, layer)))
            for layer_set in scored[:width]
            for layer in choices
            if layer not in layer_set.layers
        }


class LayerScorer:
    """A scorer of sets of a frozen backbone's layers, whose maps it computes once for all sets.

    What a set scores is what an evaluation with `backbone.layers` scores.

    Args:
        setup: A module whose backbone reads all layers that sets are made of and whose head has no weights, and the
            split; all work is done by a single process.
        spec: Protocol and readout that sets are scored by.
    """

    def __init__(self, setup: EvaluationSetup, spec: ScoringSpec) -> None:
        self.setup, self.spec = setup, spec
        self.module, self.data, split, self.group, self.context = setup[:5]
        layers: Sequence[int] = vars(self.module.backbone)["layers"]
        self.places = {layer: i for i, layer in enumerate(layers)}
        self.batches: list[PairBatch] = list(self.data.test_dataloader())
        self.images = self.data.images_to_evaluate(split, len(self.batches))
        self.maps = self._make_cache(len(self.images))
        with torch.no_grad():
            encode_images(self.maps, self.images, self.data, self._read_layers, self.group)

    def score_sets(self, sets: Sequence[Layers]) -> list[dict[str, object]]:
        """Score sets of the same size, and return the content of metrics.json of each."""
        size = len(sets[0])
        with Stage(f"Scoring {len(sets)} sets of {size} layer{'s' * (size > 1)}", len(sets)) as stage:
            return [self.score(layers) for layers in stage.track(sets)]

    @torch.no_grad()
    def score(self, layers: Layers) -> dict[str, object]:
        """Score the pairs by the features of some layers, and return the scores as metrics.json has them."""
        setup = self.setup._replace(shared_cache=lambda images, _: self._join_layers(images, layers))
        evaluator = Evaluator(setup, [self.spec], keeps_rows=False)
        evaluator.encode(len(self.batches), use_cached_features=False)
        for batch in self.batches:
            evaluator.update(batch)
        return evaluator.compute(with_tables=False).scores

    def _read_layers(self, image: Tensor) -> Values:
        """Compute the map of every layer, on its own grid."""
        with self.context():
            return {f"{i}": maps for i, maps in enumerate(self.module.backbone.read_maps(image).values.values())}

    def _join_layers(self, images: Sequence[ImageVariant], layers: Layers) -> FeatureCache:
        """Make the features of a backbone that reads some of the layers."""
        keys = [str(self.places[layer]) for layer in layers]
        backbone, joined_maps = self.module.backbone, self._make_cache(len(images))
        for names in split_into_chunks([image.name for image in images], self.data.encoding_batch):
            parts = self.module.frozen.cache_config.restore(self.maps.stack(names, self.group.device, keys))
            with self.context():
                joined = concatenate_layers([parts[key] for key in keys], backbone.unit_layers)
            joined_maps.add(names, to_channels_last(FeatureMap(joined, backbone.size / joined.shape[-1])))
        joined_maps.watch.check()
        return joined_maps

    def _make_cache(self, count: int) -> FeatureCache:
        """Make an empty cache, where the configuration has features be."""
        config = self.module.frozen.cache_config
        origin = feature_origin(self.module.backbone)
        return FeatureCache(count, self.group.device, config.storage, config.type, self.group.local, origin)


def keep_pairs(data: PairDataModule, split: str, count: int | None) -> None:
    """Keep `count` pairs of a split, taken evenly from its list; all of them if it has fewer, or `count` is None."""
    pairs = data.pairs(split)
    if count is not None and count < len(pairs):
        data.restrict_split(split, [pairs[i * len(pairs) // count] for i in range(count)])


def has_weights(head: nn.Module) -> bool:
    """Tell whether a head has weights, which are made for the channels of one set of layers."""
    return any(True for _ in head.parameters())
