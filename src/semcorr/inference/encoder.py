"""What encodes pictures, so that features of one network are not compared with those of another."""

import hashlib
import json
from typing import NamedTuple

from torch import nn

from semcorr.core.interfaces import Backbone, SiameseHead
from semcorr.engine.module import CorrespondenceModule
from semcorr.models.weights.loading import hash_weights, weights_sha256


class Encoder(NamedTuple):
    """What the features of a picture depend on besides the picture: equal for two matchers of the same run."""

    backbone: str
    weights: str  # hash of the backbone's weights, tuned ones included
    options: str  # of the backbone, such as its layers
    head: str  # a head that transforms each image: its type, and a hash of its weights and options; else empty
    size: int  # side of the network's square, in pixels
    resize: str

    def describe_difference(self, other: "Encoder") -> str:
        """Say in what this differs from another, with both values where they can be read.

        >>> one = Encoder("dinov2", "1f", "{}", "", 224, "squash")
        >>> one.describe_difference(one._replace(size=448))
        'size (224, here 448)'
        >>> one.describe_difference(one._replace(weights="2e"))
        'weights'
        """
        readable = ("backbone", "size", "resize")
        return ", ".join(
            f"{key} ({value}, here {getattr(other, key)})" if key in readable else key
            for key, value in self._asdict().items()
            if value != getattr(other, key)
        )


def identify_encoder(module: CorrespondenceModule, resize: str) -> Encoder:
    """Return the identity of what encodes pictures; of a frozen backbone no weights are hashed again.

    Args:
        module: Backbone and head.
        resize: Way of resizing pictures into the network's square.
    """
    backbone, head = module.backbone, module.head
    return Encoder(
        backbone.name,
        _identify_weights(backbone, {key.removeprefix("backbone.") for key in module.saved_keys}),
        json.dumps(module.frozen.key.get("options", {}), sort_keys=True, default=str),
        f"{type(head).__name__} {weights_sha256(head)} {_identify_options(head)}"
        if isinstance(head, SiameseHead)
        else "",
        backbone.size,
        resize,
    )


def _identify_weights(backbone: Backbone, tuned: set[str]) -> str:
    """Return the hash of the weights that the backbone began with, joined by that of the tuned ones."""
    if not backbone.sha256:  # of a backbone of a user's own, for instance
        return weights_sha256(backbone)
    if not tuned:
        return backbone.sha256
    state = backbone.state_dict()
    return f"{backbone.sha256} {hash_weights({key: state[key] for key in tuned & state.keys()})}"


def _identify_options(head: nn.Module) -> str:
    """Hash the plain options of a head and its parts, which its weights do not tell."""
    options = [
        (name, key, repr(value))
        for name, part in head.named_modules()
        for key, value in sorted(vars(part).items())
        if key != "training" and isinstance(value, bool | int | float | str | tuple | list)
    ]
    return hashlib.sha256(repr(options).encode()).hexdigest()
