"""Matching of points between a user's own pictures, with the same parts that benchmarks are scored by.

Points are (x, y) in original pixels of the upright picture, x to the right and y down; pixel centres are at
integers, so that a picture of width w spans [-0.5, w - 0.5].
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from itertools import islice
from numbers import Integral
from pathlib import Path
from typing import TypedDict, Unpack, overload

import torch
from jaxtyping import Float
from torch import Tensor

from semcorr.core.errors import UserError
from semcorr.core.finite import require_finite
from semcorr.core.ranges import Count, Positive, require
from semcorr.core.types import FeatureMap, ImageMaps
from semcorr.data.loaders import encoding_batch_size
from semcorr.data.pictures import Picture, Source, load_picture
from semcorr.data.views import split_resize, to_unit_range
from semcorr.engine.module import CorrespondenceModule
from semcorr.evaluation.image_features import transformed_feature_origin
from semcorr.inference.dense import pixel_grid, transfer_with_cycle_check
from semcorr.inference.displayed import remember_picture
from semcorr.inference.encoded import (
    EncodedPicture,
    Flow,
    PicturePlacement,
    RoundTrip,
    iterate_pictures,
    parse_point,
    parse_points,
    place_picture,
    require_encoder,
    require_picture_or_list,
)
from semcorr.inference.encoder import Encoder, identify_encoder
from semcorr.inference.load import resolve_device, restore_model
from semcorr.inference.matches import Match
from semcorr.matching.batched import cell_stride, match_to_target, query_similarities, transform_features
from semcorr.matching.dense import MAX_GAP, centres_of, interpolate_matches, sample_bilinear
from semcorr.matching.readouts import argmax, list_readouts

REMEDY = "Check the weights; in half precision, try precision=32"
CYCLE = 2.0  # cells; with 60 cells a thirtieth of the side, about as TAP-Vid's 8 of 256 pixels
PRECISIONS = {"32": None, "bf16": torch.bfloat16, "16": torch.float16}
Image = Source | Picture | EncodedPicture


class MatcherOptions(TypedDict, total=False):
    """Options of a matcher, see `Matcher`."""

    device: str | torch.device | None
    precision: str
    batch: int | None
    cycle: float
    trim: bool
    subcell: bool


class Matcher:
    """A matcher, which finds points of one picture in another.

    Args:
        module: Backbone, head and readout, with their weights.
        resize: Way of resizing pictures into the network's square: squash, letterbox, corner, or corner+PIXELS with a
            margin.
        device: Device to compute on; the GPU, if there is one.
        precision: Precision of features: 32, bf16 or 16 (autocast). Similarities are in single precision.
        batch: Number of pictures encoded at once; if left out 8 on a GPU, 1 on a CPU.
        cycle: Distance in cells; a match is consistent if, matched back, it lies this near to its point.
        trim: Whether plain borders, such as padding, are removed before encoding.
        subcell: Whether points between the source's cells are interpolated from the cells around; if not, points are
            transferred as `evaluate` does.

    Raises:
        UserError: The module is none, an option is out of range, or the device is not available.
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
        if not isinstance(module, CorrespondenceModule):
            raise UserError(
                f"`module` must be a CorrespondenceModule, got {module!r:.60}. Load one by its name, as "
                'Matcher.load("dinov2")'
            )
        split_resize(resize, "resize")
        if str(precision) not in PRECISIONS:
            raise UserError(f"`precision` must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        require("cycle", cycle, Positive)
        require("batch", batch, Count | None)
        require("trim", trim, bool)
        require("subcell", subcell, bool)
        self.device = resolve_device(device)
        self.module, self.resize = module.to(self.device).eval(), resize
        self.precision, self.cycle, self.trim, self.subcell = PRECISIONS[str(precision)], cycle, trim, subcell
        self.batch = encoding_batch_size(batch, self.device.type != "cpu")
        self.readout = list_readouts(module.localise)[0]

    @classmethod
    def load(cls, model: str | Path | None = None, *overrides: str, **options: Unpack[MatcherOptions]) -> "Matcher":
        """Load a matcher by the name of its model.

        Args:
            model: A backbone, as `dinov2`; a run's directory; `hf://user/name` or `hf://user/name@revision` on the
                Hugging Face Hub; or a config line, as `backbone=dinov2 localise.window=9`. If left out,
                EfficientNet-Lite0, whose weights are installed with semcorr.
            *overrides: Further overrides of the config line.
            **options: `device`, `precision` and other arguments of `Matcher`.

        Raises:
            UserError: The model, the run or a key does not exist.
        """
        resolve_device(options.get("device"))  # report a mistake before loading the network
        model_parts = restore_model(model, overrides)
        return cls(model_parts.module, model_parts.resize, **options)

    # -- pictures --

    @cached_property
    def encoder(self) -> Encoder:
        """The identity of what encodes pictures: another matcher of the same run has an equal one."""
        return identify_encoder(self.module, self.resize)

    def encode(self, image: Image, name: str = "image") -> EncodedPicture:
        """Encode a picture once; the result can be passed to all methods instead of the picture.

        Args:
            image: A path, a PIL image, an array (H W), (H W 3) or (H W 4) or a tensor (H W) or (C H W); see
                `semcorr.data.pictures.load_picture`.
            name: Name of the picture, for messages.
        """
        return next(self.encode_all([image], name))

    def encode_all(self, images: Iterable[Image], name: str = "image") -> Iterator[EncodedPicture]:
        """Encode many pictures, `batch` at once; those already encoded are passed through.

        Raises:
            UserError: A picture cannot be read, another matcher encoded it, or `images` is a single picture.
        """
        iterator = iterate_pictures(images, name)
        while chunk := list(islice(iterator, self.batch)):
            for image in chunk:
                if isinstance(image, EncodedPicture):
                    require_encoder(image, self.encoder, name)
            new_images = [image for image in chunk if not isinstance(image, EncodedPicture)]
            encoded = self._encode(new_images, name) if new_images else []
            new_pictures = (picture._replace(encoder=self.encoder) for picture in encoded)
            yield from (image if isinstance(image, EncodedPicture) else next(new_pictures) for image in chunk)

    @torch.no_grad()
    def _encode(self, images: Sequence[Source | Picture], name: str) -> list[EncodedPicture]:
        """Encode pictures in one batch."""
        pictures = [image if isinstance(image, Picture) else load_picture(image, name) for image in images]
        backbone = self.module.backbone
        squares, placements = zip(
            *(place_picture(picture, backbone.size, self.resize, self.trim) for picture in pictures), strict=True
        )
        names = [picture.name for picture in pictures]
        displayed = [remember_picture(image, picture) for image, picture in zip(images, pictures, strict=True)]
        if backbone.needs_pixels:
            return [
                EncodedPicture(None, to_unit_range(square[None].to(self.device)), *rest)
                for square, *rest in zip(squares, placements, names, displayed, strict=True)
            ]
        if backbone.joint:
            with self.autocast():
                values = backbone.read_maps(to_unit_range(torch.stack(squares).to(self.device))).values
            require_finite(transformed_feature_origin(self.module), names, values, REMEDY)
            return [
                EncodedPicture(None, None, *rest, ImageMaps({key: value[i : i + 1] for key, value in values.items()}))
                for i, rest in enumerate(zip(placements, names, displayed, strict=True))
            ]
        with self.autocast():
            maps = transform_features(self.module.head, backbone(to_unit_range(torch.stack(squares).to(self.device))))
        require_finite(transformed_feature_origin(self.module), names, {"maps": maps.values}, REMEDY)
        features = (FeatureMap(values[None], maps.stride) for values in maps.values)
        return [
            EncodedPicture(image_features, None, *rest)
            for image_features, *rest in zip(features, placements, names, displayed, strict=True)
        ]

    # -- points --

    @overload
    def match(self, a: Image, b: Image, points: object) -> Match: ...
    @overload
    def match(self, a: Image, b: list[Image], points: object) -> list[Match]: ...
    def match(self, a: Image, b: Image | list[Image], points: object) -> Match | list[Match]:
        """Match points of `a` to `b`.

        Args:
            a: The source picture.
            b: The target picture; or a list of targets, which returns a list.
            points: Rows of (x, y) in original pixels of `a`.

        Raises:
            UserError: A picture cannot be read, points lie outside the source, or `b` is neither.
        """
        require_picture_or_list(b, "b")
        matches = list(self.matches(a, b if isinstance(b, list) else [b], points))
        return matches if isinstance(b, list) else matches[0]

    def matches(self, a: Image, b: Iterable[Image], points: object) -> Iterator[Match]:
        """Match points of `a` to many targets, and yield the matches one after the other; the source is encoded once.

        Args:
            a: The source picture.
            b: The target pictures.
            points: Rows of (x, y) in original pixels of `a`.

        Raises:
            UserError: A picture cannot be read, points lie outside the source, or `b` is a single picture.
        """
        source = self.encode(a, "a")
        query_points = parse_points(points, source)
        for target in self.encode_all(b, "b"):
            yield self._match_encoded(source, target, query_points)

    @torch.no_grad()
    def mutual(self, a: Image, b: Image, most: int | None = None) -> Match:
        """Return mutual nearest neighbours: cells of `a` and `b` that prefer each other, the most similar first.

        Args:
            a: The source picture, whose cells' centres are the query points.
            b: The target picture. The readout finds its points around the preferred cells; those need not match back.
            most: Largest number of matches; None for all.

        Raises:
            UserError: `most` is not a whole number from 0 on.
        """
        if most is not None and not (isinstance(most, Integral) and most >= 0):
            raise UserError(f"`most` must be a whole number of at least 0, or None for all, got {most!r}")
        source, target = self.encode(a, "a"), self.encode(b, "b")
        source_map, target_map = self.features(source, target)
        query_points = centres_of(source_map)
        query_points = query_points[source.placement.shows(query_points)]
        with self.autocast():
            matches = match_to_target(self.module.head, target_map, [source_map], [query_points], [argmax])
            cycle = match_to_target(self.module.head, source_map, [target_map], matches.points, [argmax])
        slack = max(source_map.stride, cycle.stride) / 2  # the same cell, if similarities have the grid of features
        mutual = ((cycle.points[0] - query_points).abs() <= slack).all(-1) & target.placement.shows(matches.points[0])
        order = matches.score[mutual].argsort(descending=True, stable=True)[:most]
        return self._match_encoded(
            source, target, source.placement.from_view(query_points[mutual][order]).cpu(), subcell=False
        )

    # -- maps --

    @torch.no_grad()
    def dense(self, a: Image, b: Image, size: tuple[int, int] | None = None) -> Flow:
        """Compute the flow from `a` to `b`: the cells' matches, interpolated between cells that agree.

        Args:
            a: The source picture.
            b: The target picture.
            size: Width and height of the flow, laid over the whole of `a`; those of `a` if left out. Values are in
                original pixels in any case.
        """
        source, target = self.encode(a, "a"), self.encode(b, "b")
        x, y = pixel_grid(source.size if size is None else size, source.size)
        source_map, target_map = self.features(source, target)
        matches = self._match_with_cycle(
            source_map, target_map, target.placement, centres_of(source_map), subcell=False
        )
        shape, cells = source_map.values.shape[-2:], source.placement.cells(x, y, source_map.stride)
        confidence = (matches.scores * matches.consistent).clamp(0, 1).unflatten(0, shape)[..., None]
        view = interpolate_matches(
            matches.points.unflatten(0, shape).cpu(), *cells, source_map.stride, MAX_GAP * target_map.stride
        )
        flow = target.placement.from_view(view.flatten(0, 1)).view_as(view)
        flow -= torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
        visible = source.placement.covers(*cells, source_map.stride)
        return Flow(flow, sample_bilinear(confidence.cpu(), *cells)[..., 0].clamp(0, 1) * visible)

    @torch.no_grad()
    def similarity(
        self, a: Image, b: Image, point: object, size: tuple[int, int] | None = None
    ) -> Float[Tensor, "h w"]:
        """Compute a map of the similarity of a point of `a` with every position of `b`.

        Args:
            a: The source picture.
            b: The target picture.
            point: (x, y) in original pixels of `a`.
            size: Width and height of the map, laid over the whole of `b`; if left out those of `b`, reduced to at most
                1024 pixels a side.
        """
        source, target = self.encode(a, "a"), self.encode(b, "b")
        query_point = source.placement.to_view(parse_point(point, source).to(self.device))
        share = min(1.0, 1024 / max(target.size))
        reduced = [max(1, round(side * share)) for side in target.size]
        x, y = pixel_grid(reduced if size is None else size, target.size)
        source_map, target_map = self.features(source, target)
        with self.autocast():
            cells = (
                next(iter(query_similarities(self.module.head, target_map, [source_map], [query_point], 1)))[0, 0]
                .float()
                .cpu()
            )
        columns, rows = target.placement.cells(x, y, cell_stride(target_map, cells))
        return sample_bilinear(
            cells[..., None], columns.clamp(0, cells.shape[1] - 1), rows.clamp(0, cells.shape[0] - 1)
        )[..., 0]

    # -- one pair --

    def _match_encoded(
        self, a: EncodedPicture, b: EncodedPicture, points: Float[Tensor, "n 2"], subcell: bool = True
    ) -> Match:
        """Match points of an encoded picture to another, in original pixels."""
        source_map, target_map = self.features(a, b)
        query_points = a.placement.to_view(points.to(self.device))
        matches = self._match_with_cycle(source_map, target_map, b.placement, query_points, subcell)
        target_points, cycle_points = b.placement.from_view(matches.points), a.placement.from_view(matches.cycle_points)
        pictures = (a.displayed, b.displayed) if a.displayed is not None and b.displayed is not None else None
        matched_points, scores = target_points.cpu(), matches.scores.cpu()
        return Match(points, matched_points, scores, matches.consistent.cpu(), cycle_points.cpu(), pictures)

    @torch.no_grad()
    def _match_with_cycle(
        self,
        source_map: FeatureMap,
        target_map: FeatureMap,
        placement: PicturePlacement,
        query_points: Float[Tensor, "n 2"],
        subcell: bool,
    ) -> RoundTrip:
        """Match points to the target and back, in pixels of the network's squares."""
        with self.autocast():
            return transfer_with_cycle_check(
                self.module.head,
                (source_map, target_map),
                placement,
                query_points,
                self.readout,
                self.cycle,
                self.subcell and subcell,
            )

    @torch.no_grad()
    def features(self, a: Image, b: Image) -> tuple[FeatureMap, FeatureMap]:
        """Return the features of both pictures, transformed by the head if it takes one image at a time.

        Features that depend on both pictures are computed by this call.
        """
        source, target = self.encode(a, "a"), self.encode(b, "b")
        if source.maps is not None and target.maps is not None:
            return source.maps, target.maps
        with self.autocast():
            if source.image_maps is not None and target.image_maps is not None:
                first, second = self.module.backbone.join_pair(source.image_maps, target.image_maps)
            else:
                assert source.pixels is not None
                assert target.pixels is not None
                first, second = self.module.backbone.pair(source.pixels, target.pixels)
            maps = transform_features(self.module.head, first), transform_features(self.module.head, second)
        for image, features in ((source, maps[0]), (target, maps[1])):
            require_finite(transformed_feature_origin(self.module), [image.name], {"maps": features.values}, REMEDY)
        return maps

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of this matcher's precision."""
        return torch.autocast(self.device.type, dtype=self.precision) if self.precision else nullcontext()
