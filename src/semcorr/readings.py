"""What a run is scored by: protocols, each with the read-outs of its similarity."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from semcorr.errors import UserError
from semcorr.heads.cosine import Cosine
from semcorr.protocol import Protocol
from semcorr.read_outs import Published, Rule, described, rules_of


class Reading(NamedTuple):
    """A number: a protocol and a read-out."""

    protocol: Protocol
    rule: Rule

    @property
    def localise(self) -> str:
        """The read-out's name in tables."""
        return described(self.rule)

    @property
    def source(self) -> tuple[Any, ...]:
        """Readings that agree in it see the same similarity."""
        return (*self.protocol.query, self.protocol.decode == "native")


def readings(protocols: Sequence[Protocol], localise: Any) -> tuple[list[Reading], Any]:
    """Every protocol with every read-out, or with its own where those published are asked for; and what to localise by.

    That is the first protocol's own then.
    """
    if isinstance(localise, Published):
        return [Reading(one, one.read_out) for one in protocols], protocols[0].read_out
    return [Reading(one, rule) for one in protocols for rule in rules_of(localise)], localise


def check_readings(chosen: Sequence[Reading], head: Any) -> None:
    """Refuse what cannot be scored."""
    for protocol, _ in chosen:
        if protocol.decode == "native" and not isinstance(head, Cosine):
            raise UserError(
                f"`protocol`: {protocol.name} upsamples features, so it needs a head that compares them by cosine; "
                f"{type(head).__name__} does not. Leave it out, or use head=cosine."
            )


def scores_of(chosen: Sequence[Reading], each: Sequence[dict[str, Any]]) -> dict[str, Any]:
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


def _definition(reading: Reading) -> dict[str, Any]:
    protocol = reading.protocol
    return {"pooling": protocol.pooling, "strict": protocol.strict}
