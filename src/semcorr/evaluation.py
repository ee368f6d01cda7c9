"""One pass over a split: every image encoded once, every target matched once, every pair scored."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from semcorr.coords import from_view, to_image
from semcorr.data.images import Shown
from semcorr.encoding import Group, Values, chunked, encode, everywhere
from semcorr.frozen import Frozen, Keep, cells_of, map_of
from semcorr.heads import Separable
from semcorr.held import Held
from semcorr.matching import Matched, match_into, match_native
from semcorr.metrics.pck import PCK, error
from semcorr.metrics.table import rows, varied
from semcorr.protocol import Protocol
from semcorr.readings import Reading, check_readings
from semcorr.scoring import Annotated, annotated, asked, scored
from semcorr.types import FeatureMap, PairBatch


class Read(NamedTuple):
    """A batch by one reading; only shared keypoints are filled in."""

    cells: Float[Tensor, "b n 2"]
    score: Float[Tensor, "b n"]  # similarity of the best cell


class Evaluation:
    """What is known while a split is scored.

    Args:
        module: Its backbone, head and localiser.
        data: The benchmark.
        split: Of it.
        group: Who shares the work.
        context: The precision that features are computed in.
        readings: Protocols and read-outs; all of them see the same features.
        tabled: Keep a row per keypoint and reading, and not the scores alone.
    """

    def __init__(
        self,
        module: Any,
        data: Any,
        split: str,
        group: Group,
        context: Callable[[], AbstractContextManager[Any]],
        readings: Sequence[Reading],
        tabled: bool = True,
    ) -> None:
        self.module, self.data, self.split, self.group, self.context = module, data, split, group, context
        self.readings, self.tabled = list(readings), tabled
        check_readings(self.readings, module.head)
        self.records = {pair.name: pair for pair in data.pairs(split)}
        self.foreign = not all(reading.protocol.exact for reading in self.readings)
        categories = data.categories(split)
        keypoints = len(data.pairs(split)[0].source.keypoints)
        self.pck = [
            PCK(categories, keypoints, strict=one.protocol.strict, pooling=one.protocol.pooling).to(group.device)
            for one in self.readings
        ]
        self.held = Held(0, group.device)
        self.tables: list[pa.Table] = []
        self.stride = 1.0  # pixels per cell of a similarity, whose grid the head decides
        self.seconds = {"encode": 0.0, "match": 0.0}

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
            self.held = self._reused(shown) if reuse else self._direct(shown)
        self.seconds["encode"] += time.perf_counter() - start

    def match(self, batch: PairBatch) -> None:
        """Score a batch of pairs; keep the rows of its keypoints."""
        start = time.perf_counter()
        source, target = batch[:2]
        known = self._annotated(batch) if self.foreign else None
        truth = from_view(target.keypoints, target.scale, target.offset)
        queries = from_view(source.keypoints, source.scale, source.offset)
        names = self.pck[0].categories
        category = torch.tensor([names.index(name) for name in batch.category], device=truth.device)
        table = None
        for pck, reading, read in zip(self.pck, self.readings, self._matched(batch, known), strict=True):
            predicted, errors = self._scored(batch, known, reading.protocol, read.cells, truth)
            pck.update(predicted, truth, batch.extent, batch.shared, batch.ambiguous, category, errors)
            if not self.tabled:
                continue
            said: dict[str, Any] = {"localise": reading.localise, "protocol": reading.protocol.name, "error": errors}
            said |= {"score": read.score, "shared": batch.shared}
            table = varied(table, predicted=predicted, **said) if table is not None else rows(
                pair=batch.pair, source=source.name, target=target.name, category=batch.category,
                points=torch.cat((queries, truth, predicted), dim=-1), extent=batch.extent, ambiguous=batch.ambiguous,
                **said,
            )  # fmt: skip
            self.tables.append(table)
        self.seconds["match"] += time.perf_counter() - start

    def _annotated(self, batch: PairBatch) -> Annotated:
        records = [self.records[name] for name in batch.pair]
        return annotated(records, batch.target.image.shape[-1], self.data.resize, batch.extent.device)

    def _scored(
        self,
        batch: PairBatch,
        known: Annotated | None,
        protocol: Protocol,
        cells: Float[Tensor, "b n 2"],
        truth: Float[Tensor, "b n 2"],
    ) -> tuple[Float[Tensor, "b n 2"], Float[Tensor, "b n"]]:
        """Predictions in original target pixels, and their errors."""
        if known is None or protocol.exact:
            predicted = from_view(to_image(cells, self.stride), batch.target.scale, batch.target.offset)
            return predicted, error(predicted, truth, batch.extent)
        grid = round(known.target_at.side / self.stride)
        predicted, errors = scored(known, protocol, cells, grid)
        return predicted.to(truth.dtype), errors

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

    def _matched(self, batch: PairBatch, known: Annotated | None) -> list[Read]:
        """The answers of every reading, in their order. One pass per place the source is read at."""
        shared = batch.shared
        counts = shared.sum(-1).tolist()
        empty = torch.zeros_like(batch.source.keypoints)
        reads = [Read(empty.clone(), empty[..., 0].clone()) for _ in self.readings]
        passes: dict[tuple[Any, ...], list[int]] = {}
        for i, reading in enumerate(self.readings):
            passes.setdefault(reading.source, []).append(i)
        looked: dict[tuple[Any, ...], Sequence[Tensor]] = {}
        for pairs, target, sources in self._by_target(batch):
            for members in passes.values():
                protocol = self.readings[members[0]].protocol
                if protocol.query not in looked:
                    where = self._asked(batch, known, protocol, sources[0].values.shape[-1])
                    looked[protocol.query] = where[shared].split(counts)
                points = [looked[protocol.query][i] for i in pairs]
                rules = {self.readings[i].localise: self.readings[i].rule for i in members}
                found = self._found(batch, protocol, target, sources, points, pairs, list(rules.values()))
                cells = dict(zip(rules, found.cells, strict=True))
                mask = torch.zeros_like(shared)
                mask[pairs] = shared[pairs]
                for i in members:
                    reads[i].cells[mask], reads[i].score[mask] = cells[self.readings[i].localise], found.score
        return reads

    def _asked(
        self, batch: PairBatch, known: Annotated | None, protocol: Protocol, grid: int
    ) -> Float[Tensor, "b n 2"]:
        """Where the source's features are read, in pixels."""
        if known is None or protocol.query == Protocol().query:
            return batch.source.keypoints
        return asked(known, protocol, grid)

    def _found(
        self, batch: PairBatch, protocol: Protocol, target: FeatureMap, sources: list[FeatureMap],
        points: list[Tensor], pairs: list[int], rules: list[Any],
    ) -> Matched:  # fmt: skip
        """Queries of some pairs into their one target."""
        if protocol.decode == "native":
            size = self.records[batch.pair[pairs[0]]].target.size
            return match_native(self.module.head, target, sources, points, rules, size)
        found = match_into(self.module.head, target, sources, points, rules)
        self.stride = found.stride
        return found

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
