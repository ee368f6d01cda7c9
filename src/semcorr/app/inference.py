"""What a model says of a session's points: matches, their window, the map, PCK, and all of it as JSON."""

from functools import partial
from threading import RLock
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from semcorr.app.bounded import MIB, BoundedCache
from semcorr.app.session import Point, Session, picture_bytes
from semcorr.data.pictures import Picture
from semcorr.engine.provenance import code_versions
from semcorr.inference import Matcher
from semcorr.inference.encoded import EncodedPicture
from semcorr.inference.load import format_overrides
from semcorr.inference.matches import Match
from semcorr.matching.batched import cell_stride, query_similarities
from semcorr.matching.readout_names import Rule, readout_label, readout_shorthand
from semcorr.matching.readouts import argmax, kernel_soft_argmax, window_soft_argmax
from semcorr.metrics.pck import pck

ALPHAS = (0.05, 0.1, 0.2)
KEPT, KEPT_BYTES = 16, 256 * MIB  # pictures whose features are kept, and what they take at most
Box = tuple[float, float, float, float]
IMAGE, BOX = "image", "box"


class LoadedModel:
    """The one model that is loaded, and the features of the last pictures; its lock is held while it computes."""

    def __init__(self, device: str | None = None) -> None:
        self.device, self.lock = device, RLock()
        self._said: str | None = None
        self._matcher: Matcher | None = None
        self.known: BoundedCache[int, tuple[Image.Image, EncodedPicture]] = BoundedCache(KEPT, KEPT_BYTES, _bytes)

    def matcher(self, model: str) -> Matcher:
        """By name, run or line. The one before is let go of first: two large ones may not fit."""
        if self._matcher is None or self._said != model:
            self._matcher = None
            self.known.clear()
            self._matcher, self._said = Matcher.load(model or None, device=self.device), model
        return self._matcher

    def encoded(self, matcher: Matcher, picture: Picture) -> EncodedPicture:
        """Of this very image: it is kept as long as its features, so that no other has its id."""
        key = id(picture.image)
        if (kept := self.known.get(key)) is None:
            kept = picture.image, matcher.encode(picture)
            self.known.put(key, kept)
        return kept[1]


def _bytes(kept: tuple[Image.Image, EncodedPicture]) -> int:
    image, encoded = kept
    tensors = (encoded.maps.values if encoded.maps is not None else None, encoded.pixels)
    return picture_bytes(image) + sum(tensor.nbytes for tensor in tensors if tensor is not None)


class Answer(NamedTuple):
    """All that is shown of a session's points."""

    match: Match | None = None
    heat: Float[Tensor, "h w"] | None = None  # similarity to the chosen point, over the target
    window: Box | None = None  # x1 y1 x2 y2, original pixels of the target
    rule: str = ""  # in full
    read_out: str = ""  # in short


def match_session(models: LoadedModel, session: Session, size: tuple[int, int] | None = None) -> Answer:
    """What its model says.

    Args:
        models: Where the model is.
        session: With its points.
        size: Width and height of the map.
    """
    if session.a is None or session.b is None:
        return Answer()
    with models.lock:
        matcher = models.matcher(session.model)
        a, b = (models.encoded(matcher, one) for one in (session.a, session.b))
        rule = readout_label(matcher.rule), readout_shorthand(matcher.rule)
        if not session.marks.points:
            return Answer(None, None, None, *rule)
        point = session.marks.points[session.marks.chosen]
        match = matcher.match(a, b, session.marks.points)
        return Answer(match, matcher.similarity(a, b, point, size), find_window_cells(matcher, a, b, point), *rule)


@torch.no_grad()
def find_window_cells(matcher: Matcher, a: EncodedPicture, b: EncodedPicture, point: Point) -> Box | None:
    """What the read-out looks at for a point: cells around the most similar one; None where it looks at all of them.

    Between the source's cells a match is blended from the windows of the four around; this is the point's own.
    """
    reach = window_radius(matcher.rule)
    if reach is None:
        return None
    here, there = matcher.features(a, b)
    query = a.placement.to_view(torch.tensor([point], dtype=torch.float32, device=matcher.device))
    cells = next(iter(query_similarities(matcher.module.head, there, [here], [query], 1)))[0].float()
    stride, middle = cell_stride(there, cells), argmax(cells[None])[0]
    low = (middle - reach).clamp(min=0)
    high = (middle + reach).minimum(middle.new_tensor(cells.shape[:-3:-1]) - 1)
    edges = torch.cat(((low * stride), ((high + 1) * stride))) - 0.5
    x1, y1, x2, y2 = b.placement.from_view(edges).flatten().tolist()
    return x1, y1, x2, y2


def window_radius(rule: Rule) -> int | None:
    """Cells to each side of the best one.

    >>> rules = [argmax, partial(window_soft_argmax, window=9), partial(kernel_soft_argmax, sigma=3)]
    >>> [window_radius(rule) for rule in rules]
    [0, 4, 3]
    """
    function, given = (rule.func, rule.keywords) if isinstance(rule, partial) else (rule, {})
    if function is argmax:
        return 0
    if function is window_soft_argmax:
        return int(given.get("window", 15)) // 2
    return round(given.get("sigma", 7.0)) if function is kernel_soft_argmax else None


class PointScores(NamedTuple):
    """PCK of the annotated points; None where the extent is not defined."""

    annotated: int
    extent: float
    pck: dict[str, float] | None


def score_points(session: Session, match: Match | None, of: str) -> PointScores:
    """PCK at three alphas.

    Args:
        session: With annotations.
        match: Of its points.
        of: What alpha is a fraction of: `image`, the target's longer side; or `box`, that of the box around the
            annotated places, which takes two.
    """
    known = [i for i, truth in enumerate(session.marks.truths) if truth]
    if match is None or session.b is None or not known:
        return PointScores(0, 0.0, None)
    true = torch.tensor([session.marks.truths[i] for i in known], dtype=torch.float32)
    extent = float(max(session.b.size)) if of == IMAGE else float((true.amax(0) - true.amin(0)).max())
    if not extent:
        return PointScores(len(known), extent, None)
    found, length = match.points[known][None], torch.tensor([extent])
    return PointScores(len(known), extent, {f"{a:g}": float(pck(found, true[None], length, a)) for a in ALPHAS})


def session_to_dict(session: Session, answer: Answer, of: str) -> dict[str, Any]:
    """All of it, for JSON."""
    assert session.a is not None
    assert session.b is not None
    match, result = answer.match, score_points(session, answer.match, of)
    rows = [] if match is None else list(zip(*(one.tolist() for one in match), strict=True))
    return {
        "model": " ".join(format_overrides(session.model or None)),
        "read_out": answer.rule,
        "code": code_versions(),
        "points": "x, y in original pixels, upright; pixel centres at integers; of a mirrored target, in its mirror",
        "source": {"name": session.a.name, "size": list(session.a.size)},
        "target": {"name": session.b.name, "size": list(session.b.size), "mirrored": session.mirrored},
        "matches": [
            {
                "number": i + 1, "source": _two(source), "target": _two(point), "score": round(score, 4),
                "consistent": sure, "returned": _two(back), "truth": truth and _two(truth),
            }
            for i, ((source, point, score, sure, back), truth) in enumerate(
                zip(rows, session.marks.truths, strict=True)
            )
        ],
        "pck": {"annotated": result.annotated, "extent": of, "pixels": result.extent, "scores": result.pck},
    }  # fmt: skip


def _two(point: Any) -> list[float]:
    return [round(value, 2) for value in point]
