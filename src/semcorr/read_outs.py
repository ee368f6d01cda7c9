"""Several read-outs of one similarity, to be scored side by side."""

from collections.abc import Callable, Sequence
from functools import partial

from jaxtyping import Float
from torch import Tensor

from semcorr.errors import UserError

Rule = Callable[[Tensor], Tensor]  # similarity (b n h w) to cells (b n 2)


class Several:
    """Read-outs that all see the same similarity. The first is the one validated, drawn and reported as the score.

    Args:
        rules: As `localise` would be, each.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        if not rules:
            raise UserError("`localise.rules` must name at least one read-out, got none")
        self.rules = list(rules)

    def __call__(self, similarity: Float[Tensor, "b n h w"]) -> Float[Tensor, "b n 2"]:
        """The first."""
        return self.rules[0](similarity)


def rules_of(localise: Rule) -> list[Rule]:
    """One or several."""
    return localise.rules if isinstance(localise, Several) else [localise]


def described(localise: Rule) -> str:
    """A read-out with its arguments, for tables; of several, the first.

    >>> from semcorr.localise import window_soft_argmax
    >>> described(partial(window_soft_argmax, window=9))
    'window_soft_argmax(window=9)'
    """
    rule = rules_of(localise)[0]
    if not isinstance(rule, partial):
        return rule.__name__
    given = ", ".join(f"{key}={value}" for key, value in rule.keywords.items())
    return f"{rule.func.__name__}({given})" if given else rule.func.__name__
