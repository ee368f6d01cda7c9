"""Facts of the published networks that conf/backbone names, read from network_facts.json: sizes, licence, access."""

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import NamedTuple


class NetworkFacts(NamedTuple):
    """Facts of a backbone that are known without building it; None where one could not be established.

    Attributes:
        network: Name of the network or of its weights.
        patch: Image pixels per cell.
        widths: Channels of each map that is read by default.
        parameters: Number of its parameters, up to the last layer that is read by default.
        licence: Licence of its weights.
        gated: Whether their owner grants access on request, in words.
    """

    network: str | None = None
    patch: int | None = None
    widths: Sequence[int] | None = None
    parameters: int | None = None
    licence: str | None = None
    gated: str | None = None


def read_network_facts() -> dict[str, NetworkFacts]:
    """Read the facts of every backbone that this package names."""
    content = json.loads((files("semcorr.models.backbones") / "network_facts.json").read_text(encoding="utf-8"))
    return {name: NetworkFacts(**facts) for name, facts in content.items()}
