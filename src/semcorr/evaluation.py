"""One pass over a split: every image encoded once, every target matched once, every pair scored."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pyarrow as pa
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from semcorr.coords import from_view
from semcorr.data.images import Shown
from semcorr.encoding import Group, Values, chunked, encode, everywhere
from semcorr.frozen import Frozen, Keep, cells_of, map_of
from semcorr.heads import Separable
from semcorr.held import Held
from semcorr.matching import Matched, match_into
from semcorr.metrics.pck import PCK
from semcorr.metrics.table import gather, rows
from semcorr.pose import adaptive
from semcorr.read_outs import described, rules_of
from semcorr.types import FeatureMap, PairBatch


class Evaluation:
    """What is known while a split is scored.

    Args:
        module: Its backbone, head and localiser.
        data: The benchmark.
        split: Of it.
        group: Who shares the work.
        context: The precision that features are computed in.
        pose: Poses that sources are tried in.
    """

    def __init__(
        self,
        module: Any,
        data: Any,
        split: str,
        group: Group,
        context: Callable[[], AbstractContextManager[Any]],
        pose: adaptive.AdaptivePose | None = None,
    ) -> None:
        self.module, self.data, self.split, self.group, self.context = module, data, split, group, context
        self.rules = rules_of(module.localise)
        categories = data.categories(split)
        keypoints = len(data.pairs(split)[0].source.keypoints)
        self.pck = [PCK(categories, keypoints).to(group.device) for _ in self.rules]
        self.held = Held(0, group.device)
        self.tables: list[pa.Table] = []
        self.seconds = {"encode": 0.0, "match": 0.0}
        self.align = adaptive.Alignment(pose, data, split, group.device) if pose else None

    @torch.no_grad()
    def encode(self, batches: int, reuse: bool) -> None:
        """Every image that the pairs ahead look at, once; none where pairs must be seen whole.

        Args:
            batches: How many of the split's, on each process.
            reuse: Go on from what the frozen blocks made of them, and keep that for the next time.
        """
        start = time.perf_counter()
        if not self.module.backbone.pairwise:
            shown = self.data.to_score(self.split, batches)
            shown = self.align.shown(shown) if self.align else shown
            self.held = self._reused(shown) if reuse else self._direct(shown)
        self.seconds["encode"] += time.perf_counter() - start

    def match(self, batch: PairBatch) -> None:
        """Score a batch of pairs; keep the rows of its keypoints."""
        start = time.perf_counter()
        source, target = batch[:2]
        points, score = self._aligned(batch) if self.align else self._matched(batch)
        truth = from_view(target.keypoints, target.scale, target.offset)
        asked = from_view(source.keypoints, source.scale, source.offset)
        names = self.pck[0].categories
        category = torch.tensor([names.index(name) for name in batch.category], device=truth.device)
        for pck, rule, found in zip(self.pck, self.rules, points, strict=True):
            predicted = from_view(found, target.scale, target.offset)
            pck.update(predicted, truth, batch.extent, batch.shared, batch.ambiguous, category)
            self.tables.append(
                rows(
                    pair=batch.pair, source=source.name, target=target.name, category=batch.category,
                    points=torch.cat((asked, truth, predicted), dim=-1), extent=batch.extent, shared=batch.shared,
                    ambiguous=batch.ambiguous, score=score, localise=described(rule),
                )
            )  # fmt: skip
        self.seconds["match"] += time.perf_counter() - start

    def poses(self) -> pa.Table | None:
        """All processes' rows of the poses tried."""
        return gather(self.align.tables, adaptive.SCHEMA, adaptive.ORDER) if self.align else None

    def _direct(self, shown: list[Shown]) -> Held:
        """From pixels, kept for this pass."""

        def compute(image: Tensor) -> Values:
            with self.context():
                return cells_of(self._adapted(self.module.backbone(image)))

        keep: Keep = self.module.frozen.keep
        held = Held(len(shown), self.group.device, keep.where, keep.type, self.group.size)
        encode(held, shown, self.data, compute, self.group)
        return held

    def _reused(self, shown: list[Shown]) -> Held:
        """From what the frozen blocks made of the images; the rest of the backbone and the head, each its share."""
        frozen: Frozen = self.module.frozen
        frozen.fill(shown, self.data, self.group, self.context)
        size, device = (self.module.backbone.size,) * 2, self.group.device
        one = frozen.features([shown[0].name], size, device) if frozen.whole else None
        if one is not None and self._adapted(one) is one:  # nothing is left to do
            assert frozen.held is not None
            return frozen.held
        chunks = chunked([one.name for one in shown], self.data.at_once)

        def computed() -> Iterator[tuple[list[str], Values]]:
            for some in chunks[self.group.rank :: self.group.size]:
                with self.context():
                    yield some, cells_of(self._adapted(frozen.features(some, size, device)))

        held = Held(len(shown), device, frozen.keep.where, frozen.keep.type, self.group.size)
        for some, values in everywhere(computed(), len(chunks), self.group):
            held.add(some, values)
        return held

    def _aligned(self, batch: PairBatch) -> tuple[list[Float[Tensor, "b n 2"]], Float[Tensor, "b n"]]:
        """As `_matched`, from each pair's best pose: parts do not overlap, and are zero where they say nothing."""
        assert self.align is not None
        points = [torch.zeros_like(batch.source.keypoints) for _ in self.rules]
        score = torch.zeros_like(points[0][..., 0])
        for pairs, part, _ in self.align.parts(batch, self._held):
            found, best = self._matched(part)
            for into, some in zip((*points, score), (*found, best), strict=True):
                into[pairs] += some
        return points, score

    def _matched(self, batch: PairBatch) -> tuple[list[Float[Tensor, "b n 2"]], Float[Tensor, "b n"]]:
        """Target pixels by every read-out and the best similarity; only shared keypoints are filled in."""
        shared, points = batch.shared, batch.source.keypoints
        counts = shared.sum(-1).tolist()
        asked = points[shared].split(counts)
        predicted = [torch.zeros_like(points) for _ in self.rules]
        score = torch.zeros_like(points[..., 0])
        for pairs, target, sources in self._by_target(batch):
            found = match_into(self.module.head, target, sources, [asked[i] for i in pairs], self.rules)
            _place(found, pairs, shared, predicted, score)
        return predicted, score

    def _by_target(self, batch: PairBatch) -> Iterator[tuple[list[int], FeatureMap, list[FeatureMap]]]:
        """Pairs that look into the same features, those, and the features of their sources."""
        if self.module.backbone.pairwise:
            sources, targets = map(self._adapted, self.module.seen(batch.source, batch.target))
            for i in range(len(batch.pair)):
                yield [i], _one(targets, i), [_one(sources, i)]
            return
        groups: dict[str, list[int]] = {}
        for i, name in enumerate(batch.target.name):
            groups.setdefault(name, []).append(i)
        for name, pairs in groups.items():
            yield pairs, self._held(name), [self._held(batch.source.name[i]) for i in pairs]

    def _held(self, name: str) -> FeatureMap:
        values = {key: value[None].to(self.group.device, non_blocking=True) for key, value in self.held[name].items()}
        side = self.module.backbone.size
        return map_of(values, side / values["cells"].shape[2])

    def _adapted(self, maps: FeatureMap) -> FeatureMap:
        return self.module.head.adapt(maps) if isinstance(self.module.head, Separable) else maps


def _one(maps: FeatureMap, i: int) -> FeatureMap:
    return FeatureMap(maps.values[i : i + 1], maps.stride)


def _place(
    found: Matched,
    pairs: list[int],
    shared: Bool[Tensor, "b n"],
    predicted: list[Float[Tensor, "b n 2"]],
    score: Float[Tensor, "b n"],
) -> None:
    """Answers, in the order of the pairs' shared keypoints, to their rows."""
    mask = torch.zeros_like(shared)
    mask[pairs] = shared[pairs]
    for into, some in zip(predicted, found.points, strict=True):
        into[mask] = some
    score[mask] = found.score
