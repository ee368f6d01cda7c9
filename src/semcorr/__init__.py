"""semcorr: given a point on an object in one image, find the same point on another of its kind.

benchmark files -data-> PairBatch -backbone-> FeatureMap -head-> similarity (b n h w)
-localise-> cells -coords-> keypoints -> predictions table -metrics-> numbers
"""

from typing import TYPE_CHECKING, Any

from semcorr.core.early_signals import guard_imports

guard_imports()  # where this is a command, whose own imports follow

if TYPE_CHECKING:
    from semcorr.inference import Matcher

__all__ = ["Matcher"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`from semcorr import Matcher`, which brings torch: only when it is asked for."""
    if name == "Matcher":
        from semcorr.inference import Matcher

        return Matcher
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
