"""On anyone's pictures: points of one to points of another, with the parts that benchmarks are scored by.

Points are (x, y) in original pixels of the upright picture, x to the right and y down; pixel centres are at
integers, so that a picture of width w spans [-0.5, w - 0.5].
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, overload

import torch
from jaxtyping import Float
from torch import Tensor

from semcorr.core.errors import UserError
from semcorr.core.finite import require_finite
from semcorr.core.interfaces import SiameseHead
from semcorr.core.ranges import Count, Positive, require
from semcorr.core.types import FeatureMap
from semcorr.data.loading import encoding_batch_size
from semcorr.data.pictures import Picture, Source, load_picture
from semcorr.engine.module import CorrespondenceModule
from semcorr.evaluation.image_features import adapted_feature_origin
from semcorr.inference.dense import interpolate_matches, pixel_grid, sample_bilinear
from semcorr.inference.encoded import EncodedPicture, PicturePlacement, parse_points, place_picture
from semcorr.inference.load import resolve_device, restore_model
from semcorr.inference.matches import Flow, Match, RoundTrip
from semcorr.inference.subcell import APART, cell_centres, transfer_with_cycle_check
from semcorr.matching.batched import cell_stride, match_to_target, query_similarities
from semcorr.matching.readout_names import list_readouts
from semcorr.matching.readouts import argmax

REMEDY = "Check the weights; in half precision, try precision=32"
CYCLE = 2.0  # cells; of 60 a thirtieth of the side, as TAP-Vid's 8 of 256 pixels about are
PRECISIONS = {"32": None, "bf16": torch.bfloat16, "16": torch.float16}
Image = Source | Picture | EncodedPicture


class Matcher:
    """Finds points of one picture in another.

    Args:
        module: Backbone, head and read-out, with their weights.
        resize: How pictures get into the network's square: squash, letterbox or corner.
        device: Where to compute; the GPU, if there is one.
        precision: Of features: 32, bf16 or 16 (autocast). Similarities are in single precision.
        batch: Pictures encoded at once; 8 on a GPU, 1 on a CPU if left out.
        cycle: A match is consistent if it returns to within so many cells of its point.
        trim: Plain borders, as padding is, are not shown to the network.
        subcell: Between the source's cells, ask those around; without, points are transferred as `evaluate` does.
    """

    def __init__(
        self,
        module: CorrespondenceModule,
        resize: str = "squash",
        *,
        device: str | torch.device | None = None,
        precision: str = "32",
        batch: int | None = None,
        cycle: float = CYCLE,
        trim: bool = True,
        subcell: bool = True,
    ) -> None:
        if str(precision) not in PRECISIONS:
            raise UserError(f"`precision` must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        require("cycle", cycle, Positive)
        require("batch", batch, Count | None)
        self.device = resolve_device(device)
        self.module, self.resize = module.to(self.device).eval(), resize
        self.precision, self.cycle, self.trim, self.subcell = PRECISIONS[str(precision)], cycle, trim, subcell
        self.batch = encoding_batch_size(batch, self.device.type != "cpu")
        self.rule = list_readouts(module.localise)[0]  # type: ignore[arg-type]

    @classmethod
    def load(cls, model: str | Path | None = None, *overrides: str, **options: Any) -> "Matcher":
        """A matcher by name.

        Args:
            model: A backbone, as `dinov2`; a run's directory; or a config line, as `backbone=dinov2
                localise.window=9`. If left out, EfficientNet-Lite0, whose weights come with a package.
            *overrides: More of that line.
            **options: `device`, `precision` and what else `Matcher` takes.

        Raises:
            UserError: There is no such model, run or key.
        """
        resolve_device(options.get("device"))  # a mistake is known before the network is
        found = restore_model(model, overrides)
        return cls(found.module, found.resize, **options)

    # -- pictures --

    def encode(self, image: Image, name: str = "image") -> EncodedPicture:
        """A picture's features: give them in its place, and it is encoded once.

        Args:
            image: A path, a PIL image, an array (H W), (H W 3) or (H W 4) or a tensor (H W) or (C H W); see
                `semcorr.data.pictures.load_picture`.
            name: For messages.
        """
        return next(self.encoded([image], name))

    def encoded(self, images: Iterable[Image], name: str = "image") -> Iterator[EncodedPicture]:
        """Many pictures, `batch` at once; those that are encoded already as they are."""
        left = iter(images)
        while some := list(islice(left, self.batch)):
            fresh = [one for one in some if not isinstance(one, EncodedPicture)]
            done = iter(self._encode(fresh, name) if fresh else ())
            yield from (one if isinstance(one, EncodedPicture) else next(done) for one in some)

    @torch.no_grad()
    def _encode(self, images: Sequence[Source | Picture], name: str) -> list[EncodedPicture]:
        pictures = [one if isinstance(one, Picture) else load_picture(one, name) for one in images]
        backbone: Any = self.module.backbone
        shown = [place_picture(one, backbone.size, self.resize, self.trim) for one in pictures]
        named = list(zip(shown, [one.name for one in pictures], strict=True))
        if backbone.pairwise:
            return [EncodedPicture(None, square[None].to(self.device), place, name) for (square, place), name in named]
        with self.computing():
            maps = self._adapted(backbone(torch.stack([square for square, _ in shown]).to(self.device)))
        require_finite(
            adapted_feature_origin(self.module), [one.name for one in pictures], {"maps": maps.values}, REMEDY
        )
        each = (FeatureMap(one[None], maps.stride) for one in maps.values)
        return [EncodedPicture(one, None, place, name) for one, ((_, place), name) in zip(each, named, strict=True)]

    # -- points --

    @overload
    def match(self, a: Image, b: Image, points: Any) -> Match: ...
    @overload
    def match(self, a: Image, b: list[Image], points: Any) -> list[Match]: ...
    def match(self, a: Image, b: Image | list[Image], points: Any) -> Match | list[Match]:
        """Where points of `a` lie in `b`.

        Args:
            a: The source,
            b: and the target; or a list of targets, and the answer is a list.
            points: Rows of (x, y) in original pixels of `a`.
        """
        found = list(self.matches(a, b if isinstance(b, list) else [b], points))
        return found if isinstance(b, list) else found[0]

    def matches(self, a: Image, b: Iterable[Image], points: Any) -> Iterator[Match]:
        """The same in many targets, one after the other as they are encoded; the source is encoded once."""
        source = self.encode(a, "a")
        query = parse_points(points, source)
        for target in self.encoded(b, "b"):
            yield self._match(source, target, query)

    @torch.no_grad()
    def mutual(self, a: Image, b: Image, most: int | None = None) -> Match:
        """Mutual nearest neighbours: cells of `a` and `b` that prefer each other, the most similar first.

        Args:
            a: The points asked are centres of its cells.
            b: The answers are by the read-out, around the preferred cell; those need not come back.
            most: How many.
        """
        source, target = self.encode(a, "a"), self.encode(b, "b")
        here, there = self.features(source, target)
        query = cell_centres(here)
        query = query[source.placed.shows(query)]
        with self.computing():
            found = match_to_target(self.module.head, there, [here], [query], [argmax])
            back = match_to_target(self.module.head, here, [there], found.points, [argmax])
        slack = max(here.stride, back.stride) / 2  # the same cell, if similarities have the grid of features
        kept = ((back.points[0] - query).abs() <= slack).all(-1) & target.placed.shows(found.points[0])
        best = found.score[kept].argsort(descending=True, stable=True)[:most]
        return self._match(source, target, source.placed.from_view(query[kept][best]).cpu(), subcell=False)

    # -- maps --

    @torch.no_grad()
    def dense(self, a: Image, b: Image, size: tuple[int, int] | None = None) -> Flow:
        """Where every pixel of `a` lies in `b`: the cells' answers, and between cells that agree what is between those.

        Args:
            a: The source,
            b: and the target.
            size: Width and height of the flow, laid over the whole of `a`: its own if left out. Values are in
                original pixels in any case.
        """
        source, target = self.encode(a, "a"), self.encode(b, "b")
        x, y = pixel_grid(size or source.size, source.size)
        here, there = self.features(source, target)
        found = self._found(here, there, target.placed, cell_centres(here), subcell=False)
        shape, columns = here.values.shape[-2:], source.placed.cells(x, y, here.stride)
        sure = (found.scores * found.near).clamp(0, 1).unflatten(0, shape)[..., None]
        view = interpolate_matches(found.points.unflatten(0, shape).cpu(), *columns, here.stride, APART * there.stride)
        flow = target.placed.from_view(view.flatten(0, 1)).view_as(view)
        flow -= torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
        shown = source.placed.covers(*columns, here.stride)
        return Flow(flow, sample_bilinear(sure.cpu(), *columns)[..., 0].clamp(0, 1) * shown)

    @torch.no_grad()
    def similarity(self, a: Image, b: Image, point: Any, size: tuple[int, int] | None = None) -> Float[Tensor, "h w"]:
        """How much every place of `b` looks like a point of `a`.

        Args:
            a: The source,
            b: and the target.
            point: (x, y) in original pixels of `a`.
            size: Width and height of the map, laid over the whole of `b`; if left out its own, reduced to 1024 pixels
                a side.
        """
        source, target = self.encode(a, "a"), self.encode(b, "b")
        query = source.placed.to_view(parse_points([list(point)], source, "point").to(self.device))
        share = min(1.0, 1024 / max(target.size))
        width, height = size or (max(1, round(side * share)) for side in target.size)
        x, y = pixel_grid((width, height), target.size)
        here, there = self.features(source, target)
        with self.computing():
            cells = next(iter(query_similarities(self.module.head, there, [here], [query], 1)))[0, 0].float().cpu()
        columns, rows = target.placed.cells(x, y, cell_stride(there, cells))
        return sample_bilinear(
            cells[..., None], columns.clamp(0, cells.shape[1] - 1), rows.clamp(0, cells.shape[0] - 1)
        )[..., 0]

    # -- one pair --

    def _match(self, a: EncodedPicture, b: EncodedPicture, points: Float[Tensor, "n 2"], subcell: bool = True) -> Match:
        here, there = self.features(a, b)
        query = a.placed.to_view(points.to(self.device))
        found = self._found(here, there, b.placed, query, subcell)
        reached, returned = b.placed.from_view(found.points), a.placed.from_view(found.returned)
        return Match(points, reached.cpu(), found.scores.cpu(), found.near.cpu(), returned.cpu())

    @torch.no_grad()
    def _found(
        self, here: FeatureMap, there: FeatureMap, place: PicturePlacement, query: Float[Tensor, "n 2"], subcell: bool
    ) -> RoundTrip:
        with self.computing():
            found = transfer_with_cycle_check(
                self.module.head, (here, there), place, query, self.rule, self.cycle, self.subcell and subcell
            )
        if not bool(found.points.isfinite().all() & found.scores.isfinite().all()):
            raise UserError("The similarities of these pictures are not finite: check the weights of the head")
        return found

    @torch.no_grad()
    def features(self, a: Image, b: Image) -> tuple[FeatureMap, FeatureMap]:
        """What is compared of both, as the head made it; where a backbone must see both, only now."""
        one, other = self.encode(a, "a"), self.encode(b, "b")
        if one.maps is not None and other.maps is not None:
            return one.maps, other.maps
        backbone: Any = self.module.backbone
        with self.computing():
            first, second = backbone.pair(one.pixels, other.pixels)
            maps = self._adapted(first), self._adapted(second)
        for image, seen in ((one, maps[0]), (other, maps[1])):
            require_finite(adapted_feature_origin(self.module), [image.name], {"maps": seen.values}, REMEDY)
        return maps

    def _adapted(self, maps: FeatureMap) -> FeatureMap:
        return self.module.head.adapt(maps) if isinstance(self.module.head, SiameseHead) else maps

    def computing(self) -> AbstractContextManager[Any]:
        """In this matcher's precision."""
        return torch.autocast(self.device.type, dtype=self.precision) if self.precision else nullcontext()
