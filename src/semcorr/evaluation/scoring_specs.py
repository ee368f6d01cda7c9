"""What a run is scored by: protocols, each with the read-outs of its similarity."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from semcorr.core.errors import UserError
from semcorr.evaluation.protocols import Protocol
from semcorr.matching.readout_names import ProtocolReadout, Rule, list_readouts, readout_label
from semcorr.models.heads.cosine import Cosine


class ScoringSpec(NamedTuple):
    """A number: a protocol and a read-out."""

    protocol: Protocol
    rule: Rule

    @property
    def localise(self) -> str:
        """The read-out's name in tables."""
        return readout_label(self.rule)

    @property
    def source(self) -> tuple[Any, ...]:
        """Readings that agree in it see the same similarity."""
        return (*self.protocol.query, self.protocol.decode == "native")


def build_scoring_specs(protocols: Sequence[Protocol], localise: Any) -> tuple[list[ScoringSpec], Any]:
    """Every protocol with every read-out, or with its own where those published are asked for; and what to localise by.

    That is the first protocol's own then.
    """
    if isinstance(localise, ProtocolReadout):
        return [ScoringSpec(one, one.read_out) for one in protocols], protocols[0].read_out
    return [ScoringSpec(one, rule) for one in protocols for rule in list_readouts(localise)], localise


def check_scoring_specs(chosen: Sequence[ScoringSpec], head: Any) -> None:
    """Refuse what cannot be scored."""
    for protocol, _ in chosen:
        if protocol.decode == "native" and not isinstance(head, Cosine):
            raise UserError(
                f"`protocol`: {protocol.name} upsamples features, so it needs a head that compares them by cosine; "
                f"{type(head).__name__} does not. Leave it out, or use head=cosine."
            )


def metrics_dict(chosen: Sequence[ScoringSpec], each: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What metrics.json says: of the first reading, and of the others beside it where there are more.

    `headline` is what the protocol's authors report, at each alpha.
    """
    scores: dict[str, Any] = each[0] | _definition(chosen[0])
    names = list(dict.fromkeys(one.protocol.name for one in chosen))
    by_protocol: dict[str, Any] = {name: {} for name in names}
    for reading, found in zip(chosen, each, strict=True):
        view = {"pck": found["pck"], "headline": found["headline"], **_definition(reading)}
        by_protocol[reading.protocol.name][reading.localise] = view
    first = by_protocol[names[0]]
    if len(first) > 1:
        scores["read_outs"] = {rule: view["pck"] for rule, view in first.items()}
    return scores | ({"protocols": by_protocol} if len(names) > 1 else {})


def _definition(reading: ScoringSpec) -> dict[str, Any]:
    protocol = reading.protocol
    return {"pooling": protocol.pooling, "strict": protocol.strict}
