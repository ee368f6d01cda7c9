"""Matches of a session's points: with the similarity map and window of one, their PCK, and everything as JSON."""

from functools import partial
from threading import RLock
from typing import NamedTuple

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from semcorr.app.bounded import MIB, BoundedCache
from semcorr.app.session import Point, Session, picture_bytes
from semcorr.core.text_files import JsonObject
from semcorr.data.pictures import Picture
from semcorr.engine.run_dir import code_versions
from semcorr.inference import Matcher
from semcorr.inference.encoded import EncodedPicture
from semcorr.inference.load import format_overrides
from semcorr.inference.matches import Match, round_point
from semcorr.matching.batched import cell_stride, query_similarities
from semcorr.matching.readouts import (
    Readout,
    argmax,
    kernel_soft_argmax,
    readout_label,
    readout_shorthand,
    window_soft_argmax,
)
from semcorr.metrics.pck import pck

ALPHAS = (0.05, 0.1, 0.2)
MAX_ENCODED, MAX_ENCODED_BYTES = 16, 256 * MIB  # most pictures whose features are cached, and their most bytes
Box = tuple[float, float, float, float]
IMAGE, BOX = "image", "box"


class LoadedModel:
    """The one loaded model and the features of the last pictures; callers hold its lock while it computes.

    Args:
        device: Device to compute on; None, the GPU if there is one.
    """

    def __init__(self, device: str | None = None) -> None:
        self.device, self.lock = device, RLock()
        self._model: str | None = None
        self._matcher: Matcher | None = None
        self.known: BoundedCache[int, tuple[Image.Image, EncodedPicture]] = BoundedCache(
            MAX_ENCODED, MAX_ENCODED_BYTES, _entry_bytes
        )

    def matcher(self, model: str) -> Matcher:
        """Return the matcher of a model, which is loaded if it is not the one in memory.

        The previous model is released first, as two large ones may not fit.

        Args:
            model: A backbone, a run's directory or a config line; empty for the default backbone.
        """
        if self._matcher is None or self._model != model:
            self._matcher = None
            self.known.clear()
            self._matcher, self._model = Matcher.load(model or None, device=self.device), model
        return self._matcher

    def encode(self, matcher: Matcher, picture: Picture) -> EncodedPicture:
        """Encode a picture once; its image is cached with its features, so that no other image can take over its id."""
        key = id(picture.image)
        if (cached := self.known.get(key)) is None:
            cached = picture.image, matcher.encode(picture)
            self.known.put(key, cached)
        return cached[1]


def _entry_bytes(cached: tuple[Image.Image, EncodedPicture]) -> int:
    """Count the bytes of a picture and its features."""
    image, encoded = cached
    return picture_bytes(image) + encoded.nbytes


class Answer(NamedTuple):
    """Everything that is displayed of a session's points."""

    match: Match | None = None
    heat: Float[Tensor, "h w"] | None = None  # similarity of the target to the chosen point
    window: Box | None = None  # x1 y1 x2 y2, original pixels of the target
    readout_label: str = ""  # in full
    readout_shorthand: str = ""


def match_session(models: LoadedModel, session: Session, size: tuple[int, int] | None = None) -> Answer:
    """Match the points of a session by its model.

    Args:
        models: Holder of the loaded model.
        session: Session with its pictures and points.
        size: Width and height of the similarity map; None, those of the target, reduced as by `Matcher.similarity`.

    Returns:
        The matches; without points only the readout, and without both pictures nothing.
    """
    if session.a is None or session.b is None:
        return Answer()
    with models.lock:
        matcher = models.matcher(session.model)
        a, b = (models.encode(matcher, picture) for picture in (session.a, session.b))
        labels = readout_label(matcher.readout), readout_shorthand(matcher.readout)
        if not session.marks.points:
            return Answer(None, None, None, *labels)
        point = session.marks.points[session.marks.chosen]
        match = matcher.match(a, b, session.marks.points)
        return Answer(match, matcher.similarity(a, b, point, size), find_window_cells(matcher, a, b, point), *labels)


@torch.no_grad()
def find_window_cells(matcher: Matcher, a: EncodedPicture, b: EncodedPicture, point: Point) -> Box | None:
    """Return the window of the readout around the most similar cell; None where the readout uses the whole map.

    The match of a point between the source's cells is blended from the windows of the four cells around it; the window
    returned here is that of the point itself.

    Args:
        matcher: Matcher with the readout.
        a: The source picture.
        b: The target picture.
        point: (x, y) in original pixels of the source.

    Returns:
        x1, y1, x2 and y2 of the window in original pixels of the target.
    """
    radius = window_radius(matcher.readout)
    if radius is None:
        return None
    source, target = matcher.features(a, b)
    query = a.placement.to_view(torch.tensor([point], dtype=torch.float32, device=matcher.device))
    cells = next(iter(query_similarities(matcher.module.head, target, [source], [query], 1)))[0].float()
    stride, peak = cell_stride(target, cells), argmax(cells[None])[0]
    low = (peak - radius).clamp(min=0)
    high = (peak + radius).minimum(peak.new_tensor(cells.shape[:-3:-1]) - 1)
    edges = torch.cat(((low * stride), ((high + 1) * stride))) - 0.5
    x1, y1, x2, y2 = b.placement.from_view(edges).flatten().tolist()
    return x1, y1, x2, y2


def window_radius(readout: Readout) -> int | None:
    """Return how many cells a readout uses to each side of the most similar one; None where it uses all.

    >>> readouts = [argmax, partial(window_soft_argmax, window=9), partial(kernel_soft_argmax, sigma=3)]
    >>> [window_radius(readout) for readout in readouts]
    [0, 4, 3]
    """
    function, options = (readout.func, readout.keywords) if isinstance(readout, partial) else (readout, {})
    if function is argmax:
        return 0
    if function is window_soft_argmax:
        return int(options.get("window", 15)) // 2
    return round(options.get("sigma", 7.0)) if function is kernel_soft_argmax else None


class PointScores(NamedTuple):
    """PCK of the annotated points."""

    annotated: int  # number of points
    extent: float  # pixels of the target that alpha is a fraction of; 0 where nothing defines it
    pck: dict[str, float] | None  # fractions by alpha; None without an extent


def score_points(session: Session, match: Match | None, of: str) -> PointScores:
    """Compute PCK of the annotated points at three alphas.

    Args:
        session: Session with annotations.
        match: Match of the session's points.
        of: Extent that alpha is a fraction of: `image`, the longer side of the target; or `box`, the longer side of
            the box around the annotated points, of which it takes two.
    """
    annotated = [i for i, point in enumerate(session.marks.truths) if point]
    if match is None or session.b is None or not annotated:
        return PointScores(0, 0.0, None)
    truth = torch.tensor([session.marks.truths[i] for i in annotated], dtype=torch.float32)
    extent = float(max(session.b.size)) if of == IMAGE else float((truth.amax(0) - truth.amin(0)).max())
    if not extent:
        return PointScores(len(annotated), extent, None)
    predicted, size = match.points[annotated][None], torch.tensor([extent])
    return PointScores(len(annotated), extent, {f"{a:g}": float(pck(predicted, truth[None], size, a)) for a in ALPHAS})


def session_to_dict(session: Session, answer: Answer, of: str) -> JsonObject:
    """Return the session, its matches and their PCK as a dictionary for JSON.

    Args:
        session: Session with both pictures.
        answer: Result of `match_session`.
        of: Extent that alpha is a fraction of: `image` or `box`, see `score_points`.
    """
    assert session.a is not None
    assert session.b is not None
    match, result = answer.match, score_points(session, answer.match, of)
    columns = [] if match is None else [match.source, match.points, match.scores, match.consistent, match.returned]
    rows = list(zip(*(values.tolist() for values in columns), strict=True))
    return {
        "model": " ".join(format_overrides(session.model or None)),
        "read_out": answer.readout_label,
        "code": code_versions(),
        "points": "x, y in original pixels, upright; pixel centres at integers; of a mirrored target, in its mirror",
        "source": {"name": session.a.name, "size": list(session.a.size)},
        "target": {"name": session.b.name, "size": list(session.b.size), "mirrored": session.mirrored},
        "matches": [
            {
                "number": i + 1,
                "source": round_point(source),
                "target": round_point(point),
                "score": round(score, 4),
                "consistent": consistent,
                "returned": round_point(returned),
                "truth": truth and round_point(truth),
            }
            for i, ((source, point, score, consistent, returned), truth) in enumerate(
                zip(rows, session.marks.truths, strict=True)
            )
        ],
        "pck": {"annotated": result.annotated, "extent": of, "pixels": result.extent, "scores": result.pck},
    }
