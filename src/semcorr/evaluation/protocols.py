"""Protocols: everything between a similarity map and a published number, as data; the published ones by name.

The axes are those on which evaluators were found to differ (docs/protocols.md says where each was read). Any
protocols can score the same features, as long as they share the pixels that features are computed from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Annotated, Any, NamedTuple, get_args

from torch import nn

from semcorr.core.errors import UserError
from semcorr.core.interfaces import SiameseHead
from semcorr.core.ranges import OptionsOf
from semcorr.core.text_files import JsonObject
from semcorr.data.views import split_resize
from semcorr.matching.readouts import (
    ProtocolReadout,
    Readout,
    argmax,
    kernel_soft_argmax,
    list_readouts,
    needs_four_queries,
    readout_label,
    window_soft_argmax,
)
from semcorr.metrics.pck import Pooling, Tolerance
from semcorr.models.heads.cosine import Cosine

AXES = {
    "resize": ("squash", "letterbox", "corner"),
    "points": ("annotated", "floor"),
    "scaling": ("exact", "ratio", "fitted", "whole", "aligned"),
    "lookup": ("centre", "containing", "aligned", "fraction", "aligned_fraction"),
    "normalise": ("after", "before"),
    "comparison": ("cosine", "product"),
    "decode": ("centre", "half_stride", "aligned", "fraction", "native"),
    "frame": ("original", "view", "unit"),
    "alphas": ("double", "single"),
    "pooling": get_args(Pooling),
}


@dataclass(frozen=True)
class Protocol:
    """Definition of a published number; the formulas are in `conventions`.

    Args:
        name: Name in tables.
        resize: Placing of the image in its square: `squash` (DIFT, SD4Match, Visual-AI, MARCO), `letterbox`, centred in
            black (GeoAware, sd-dino), or `corner`, padded to the right and below (probe3d).
        resize_on: The placing on single benchmarks, by their names, where it is another (MARCO).
        points: Whether points and boxes are read as `annotated`, or rounded down to whole pixels first: `floor`
            (Visual-AI, which matters on PF-PASCAL and PF-WILLOW: pfpascal.py:51-52, pfwillow.py:36,38).
        scaling: Conversion of original to view pixels: `exact`, pixel centres at integers and corners on corners
            (ours); `ratio`, x S / W (GeoAware, sd-dino, SD4Match); `fitted`, x inside / W, of each axis by itself
            (MARCO); `whole`, x S / W cut to whole pixels (probe3d); `aligned`, x (S - 1) / (W - 1) (Visual-AI).
        clamp: Whether scaled points are pushed inside the image's part of the view (SD4Match, Visual-AI, MARCO).
        lookup: Position where the source map is read: `centre`, bilinear, cells at their centres (ours, DIFT);
            `containing`, the cell the point falls in (GeoAware, sd-dino); bilinear with corner cells on corner
            pixels, `aligned` (SD4Match, Visual-AI) or nearly, `aligned_fraction` (probe3d); `fraction`, bilinear half
            a cell off (MARCO).
        normalise: Whether cells of the source map are made unit vectors `before` they are interpolated (Visual-AI,
            feature_extractor.py:129-130; probe3d, evaluate_spair_correspondence.py:54), or only the result, `after`.
        comparison: What readouts see: the `cosine`, or the `product` of the features as they are (MARCO, whose
            features end in a LayerNorm; its temperature is for products).
        readout: Readout of the published number; a given `localise=` replaces it.
        decode: Conversion of cells to view pixels: `centre` (ours; sd-dino's 14 k + 6.5), `half_stride` (GeoAware's
            14 k + 7), `aligned` (SD4Match, Visual-AI, MARCO), `fraction`, the cell's first corner (probe3d), or
            `native`: the readout sees cosines with features upsampled to every original pixel (DIFT).
        frame: Frame in which distances and the extent are measured. `original` pixels, the benchmark's extent (ours,
            DIFT); the `view`, a box scaled axis by axis and then its longer side, or the side of the view where a
            benchmark goes by the image (GeoAware, sd-dino, SD4Match, Visual-AI, MARCO); the `unit` square, the
            longer side of the box over that of the image (probe3d).
        strict: Whether a prediction must be nearer than alpha x extent (GeoAware, sd-dino, probe3d), or at most as far.
        alphas: Precision of alpha: `double`, or `single` (GeoAware, sd-dino), whose 0.1 and 0.05 are larger by some
            1e-9, so that a distance of exactly alpha x extent counts there although it is not nearer.
        pooling: Reported number: the mean over pairs of their share (`image`), over all keypoints (`point`), or
            over categories of the latter, each counting once (`category`, probe3d) or as many times as it has pairs
            (`category_by_pairs`, sd-dino).

    Raises:
        UserError: An axis has another value than those listed.
    """

    name: str = "semcorr"
    resize: str = "squash"
    resize_on: Mapping[str, str] = field(default_factory=dict, compare=False)
    points: str = "annotated"
    scaling: str = "exact"
    clamp: bool = False
    lookup: str = "centre"
    normalise: str = "after"
    comparison: str = "cosine"
    readout: Readout = field(default=partial(window_soft_argmax, window=15, temperature=0.02), compare=False)
    decode: str = "centre"
    frame: str = "original"
    strict: bool = False
    alphas: str = "double"
    pooling: Pooling = "image"

    def __post_init__(self) -> None:
        for axis, allowed in AXES.items():
            value = getattr(self, axis)
            if (split_resize(value)[0] if axis == "resize" else value) not in allowed:
                raise UserError(f"`protocol.{axis}` must be one of {', '.join(allowed)}, got {value!r}")

    @property
    def exact(self) -> bool:
        """Whether points, cells and distances are defined as in semcorr, which is the same in any image geometry."""
        axes = self.points, self.scaling, self.clamp, self.lookup, self.decode, self.frame
        return axes == ("annotated", "exact", False, "centre", "centre", "original")

    @property
    def query(self) -> tuple[str, str, bool, str]:
        """Options that decide where the source is read."""
        return self.points, self.scaling, self.clamp, self.lookup

    @property
    def tolerance(self) -> Tolerance:
        """The comparison of an error with alpha."""
        return Tolerance(self.strict, self.alphas == "single")

    def resize_for(self, benchmark: str | None) -> str:
        """Return the placing of a benchmark's images."""
        return self.resize_on.get(benchmark or "", self.resize)

    def with_resize(self, resize: str) -> "Protocol":
        """Return the protocol as used in a run with this `resize`; its name says what is not as published.

        A margin is probe3d's own wherever its 800 pixels are not a whole number of patches.

        Raises:
            UserError: The protocol decodes natively, and images would not be squashed.
        """
        if self.decode == "native" and resize != "squash":
            raise UserError(f"`data.resize` must be squash for {self.name}, whose maps cover the image, got {resize!r}")
        if split_resize(resize)[0] in (self.resize, *self.resize_on.values()) or self.exact:
            return replace(self, resize=resize)
        return replace(self, resize=resize, name=f"{self.name} ({resize})")


_zero = partial(window_soft_argmax, window=15, temperature=0.02, outside="zero")
_padded = Protocol(resize="letterbox", scaling="ratio", lookup="containing", frame="view", strict=True, alphas="single")
_squashed = Protocol(scaling="ratio", clamp=True, lookup="aligned", decode="aligned", frame="view")
_kernel = partial(kernel_soft_argmax, sigma=7.0, temperature=0.03)

SEMCORR = Protocol()
PRESETS = (
    SEMCORR,
    replace(_padded, name="geoaware", decode="half_stride", readout=_zero),
    replace(_padded, name="sd_dino", readout=argmax, pooling="category_by_pairs"),
    Protocol(name="dift", readout=argmax, decode="native"),
    replace(_squashed, name="visual_ai", points="floor", scaling="aligned", normalise="before", readout=_kernel),
    replace(_squashed, name="sd4match", readout=partial(kernel_soft_argmax, sigma=7.0, temperature=0.04)),
    Protocol(
        name="probe3d",
        resize="corner",
        scaling="whole",
        lookup="aligned_fraction",
        normalise="before",
        readout=argmax,
        decode="fraction",
        frame="unit",
        strict=True,
        pooling="category",
    ),
    replace(
        _squashed,
        name="marco",
        resize_on={"pf_pascal": "corner", "ap10k": "corner"},  # datasets/dataset.py:17
        scaling="fitted",
        lookup="fraction",
        # configs/model/marco.yaml:5 has 10 for products of 1,024 channels after a LayerNorm, of length 32 each.
        readout=partial(kernel_soft_argmax, sigma=7.0, temperature=10 / 1024),
    ),
)


def protocol_preset(name: str, **changed: Annotated[Any, OptionsOf(Protocol)]) -> Protocol:
    """Return a published protocol, or a variant of it with some axes changed, which its name then lists.

    Args:
        name: Name of the published protocol, one of `PRESETS`.
        changed: Fields of `Protocol` that differ from it.

    Raises:
        UserError: There is no such protocol, field or value.
    """
    presets = {item.name: item for item in PRESETS}
    if name not in presets:
        raise UserError(f"`protocol` must be one of {', '.join(presets)}, got {name!r}")
    unknown = sorted(changed.keys() - {item.name for item in fields(Protocol)} | changed.keys() & {"resize_on"})
    if unknown:
        raise UserError(
            f"`protocol.{unknown[0]}` is not an axis of a protocol; they are {', '.join(AXES)}, clamp and strict"
        )
    preset = presets[name]
    differences = [f"{axis}={value}" for axis, value in changed.items() if value != getattr(preset, axis)]
    return replace(preset, **changed, name=f"{name} ({', '.join(differences)})" if differences else name)


def protocol_list(names: Sequence[str] | None, resize: str) -> list[Protocol]:
    """Return protocols to score side by side.

    Args:
        names: Names of published protocols; None, all that are defined on images that are resized like this.
        resize: Placing of the images in their squares, as `data.resize` takes it.

    Raises:
        UserError: No name is given, one is given twice, or there is no such protocol.
    """
    if names is None:
        return [preset.with_resize(resize) for preset in PRESETS if preset.exact or preset.resize == resize]
    if not names or len(set(names)) < len(names):
        raise UserError(f"`protocol` must name one protocol or several different ones, got {list(names)}")
    return [protocol_preset(name).with_resize(resize) for name in names]


def shared_resize(names: Sequence[str], benchmark: str | None = None) -> str:
    """Return the placing of images that protocols share on a benchmark, since a run has only one.

    Args:
        names: Names of published protocols.
        benchmark: Name of the benchmark, on which MARCO's placing may be another; None for none in particular.

    Raises:
        UserError: They need different ones.
    """
    presets = [preset for preset in map(protocol_preset, names) if not preset.exact]
    needed = {preset.resize_for(benchmark): preset.name for preset in presets}
    if len(needed) > 1:
        message = ", ".join(f"{name} needs {resize}" for resize, name in needed.items())
        raise UserError(f"`protocol`: {message}, and a run has one image geometry. Score them in runs of their own.")
    return next(iter(needed), SEMCORR.resize)


class ScoringSpec(NamedTuple):
    """A protocol and a readout, which define a number."""

    protocol: Protocol
    readout: Readout

    @property
    def localise(self) -> str:
        """Name of the readout in tables."""
        return readout_label(self.readout)

    @property
    def source(self) -> tuple[object, ...]:
        """Key of the similarity: specifications that agree in it see the same one."""
        protocol = self.protocol
        return (*protocol.query, protocol.normalise, protocol.comparison, protocol.decode == "native")


def build_scoring_specs(
    protocols: Sequence[Protocol], localise: Readout | ProtocolReadout
) -> tuple[list[ScoringSpec], Readout]:
    """Return the specifications of all protocols with all readouts, and the readout to localise by.

    Args:
        protocols: Protocols; the first is the one reported.
        localise: Readout, or a `ReadoutList`. With `ProtocolReadout` every protocol has its own readout alone, and
            the first one's is that to localise by.

    Raises:
        UserError: A readout cannot be applied to the features that a protocol upsamples.
    """
    if isinstance(localise, ProtocolReadout):
        return [ScoringSpec(protocol, protocol.readout) for protocol in protocols], protocols[0].readout
    specs = [ScoringSpec(protocol, readout) for protocol in protocols for readout in list_readouts(localise)]
    for protocol, readout in specs:
        if protocol.decode == "native" and needs_four_queries(readout):
            raise UserError(
                f"`localise`: {readout_label(readout)} blends the matches of four cells, and protocol={protocol.name} "
                "matches in pixels of features that it upsamples. Give another readout, as localise=argmax"
            )
    return specs, localise


def fit_scoring_specs(specs: Sequence[ScoringSpec], head: nn.Module) -> list[ScoringSpec]:
    """Return specifications as the head can be scored by them, and refuse those that it does not support.

    A head that sees both images reads the source map itself: nothing can be normalised before that, and the name says
    so.

    Raises:
        UserError: A protocol needs cosines or products of features, and the head does not compare by them.
    """
    fitting = []
    for protocol, readout in specs:
        needs = {
            "upsamples features": protocol.decode == "native",
            "compares features by their product": protocol.comparison == "product",
        }
        if protocol.decode == "native" and (protocol.normalise, protocol.comparison) != ("after", "cosine"):
            raise UserError(
                f"`protocol`: {protocol.name} decodes natively, which is defined for cosines and normalise=after alone"
            )
        if not isinstance(head, Cosine) and (need := next((text for text, holds in needs.items() if holds), None)):
            raise UserError(
                f"`protocol`: {protocol.name} {need}, so it needs a head that compares them by cosine; "
                f"{type(head).__name__} does not. Leave it out, or use head=cosine."
            )
        if protocol.normalise == "before" and not isinstance(head, SiameseHead):
            protocol = replace(protocol, normalise="after", name=f"{protocol.name} (normalise=after)")
        fitting.append(ScoringSpec(protocol, readout))
    return fitting


def metrics_dict(specs: Sequence[ScoringSpec], spec_scores: Sequence[JsonObject]) -> JsonObject:
    """Return the scores of metrics.json: of the first specification, and of the others beside it if there are any.

    `headline` is what the protocol's authors report, at each alpha.

    Args:
        specs: Specifications, the reported one first.
        spec_scores: Scores of each specification, as `PCK.compute` returns them.
    """
    scores: JsonObject = spec_scores[0] | _protocol_options(specs[0])
    names = list(dict.fromkeys(spec.protocol.name for spec in specs))
    by_protocol: JsonObject = {name: {} for name in names}
    for spec, metrics in zip(specs, spec_scores, strict=True):
        entry = {"pck": metrics["pck"], "headline": metrics["headline"], **_protocol_options(spec)}
        by_protocol[spec.protocol.name][spec.localise] = entry
    first = by_protocol[names[0]]
    if len(first) > 1:
        scores["read_outs"] = {readout: entry["pck"] for readout, entry in first.items()}
    return scores | ({"protocols": by_protocol} if len(names) > 1 else {})


def _protocol_options(spec: ScoringSpec) -> JsonObject:
    """Return the options of a specification's protocol that metrics.json repeats."""
    protocol = spec.protocol
    return {"pooling": protocol.pooling, "strict": protocol.strict, "alphas": protocol.alphas}
