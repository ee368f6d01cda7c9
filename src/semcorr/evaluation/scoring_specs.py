"""Scoring specifications of a run: protocols, each with the read-outs of its similarity."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from semcorr.core.errors import UserError
from semcorr.core.text_files import JsonObject
from semcorr.evaluation.protocols import Protocol
from semcorr.matching.readout_names import ProtocolReadout, list_readouts, readout_label
from semcorr.matching.readouts import Readout
from semcorr.models.heads.cosine import Cosine


class ScoringSpec(NamedTuple):
    """A protocol and a read-out, which define a number."""

    protocol: Protocol
    rule: Readout

    @property
    def localise(self) -> str:
        """Name of the read-out in tables."""
        return readout_label(self.rule)

    @property
    def source(self) -> tuple[object, ...]:
        """Key of the similarity: specifications that agree in it see the same one."""
        return (*self.protocol.query, self.protocol.decode == "native")


def build_scoring_specs(
    protocols: Sequence[Protocol], localise: Readout | ProtocolReadout
) -> tuple[list[ScoringSpec], Readout]:
    """Return the specifications of all protocols with all read-outs, and the read-out to localise by.

    With `ProtocolReadout` every protocol has its own read-out alone, and the first one's is that to localise by.
    """
    if isinstance(localise, ProtocolReadout):
        return [ScoringSpec(protocol, protocol.read_out) for protocol in protocols], protocols[0].read_out
    return [ScoringSpec(protocol, rule) for protocol in protocols for rule in list_readouts(localise)], localise


def check_scoring_specs(chosen: Sequence[ScoringSpec], head: nn.Module) -> None:
    """Refuse specifications that the head does not support."""
    for protocol, _ in chosen:
        if protocol.decode == "native" and not isinstance(head, Cosine):
            raise UserError(
                f"`protocol`: {protocol.name} upsamples features, so it needs a head that compares them by cosine; "
                f"{type(head).__name__} does not. Leave it out, or use head=cosine."
            )


def metrics_dict(chosen: Sequence[ScoringSpec], each: Sequence[JsonObject]) -> JsonObject:
    """Return the scores of metrics.json: of the first specification, and of the others beside it if there are any.

    `headline` is what the protocol's authors report, at each alpha.
    """
    scores: JsonObject = each[0] | _protocol_options(chosen[0])
    names = list(dict.fromkeys(spec.protocol.name for spec in chosen))
    by_protocol: JsonObject = {name: {} for name in names}
    for spec, metrics in zip(chosen, each, strict=True):
        entry = {"pck": metrics["pck"], "headline": metrics["headline"], **_protocol_options(spec)}
        by_protocol[spec.protocol.name][spec.localise] = entry
    first = by_protocol[names[0]]
    if len(first) > 1:
        scores["read_outs"] = {readout: entry["pck"] for readout, entry in first.items()}
    return scores | ({"protocols": by_protocol} if len(names) > 1 else {})


def _protocol_options(spec: ScoringSpec) -> JsonObject:
    """Return the options of a specification's protocol that metrics.json repeats."""
    protocol = spec.protocol
    return {"pooling": protocol.pooling, "strict": protocol.strict}
