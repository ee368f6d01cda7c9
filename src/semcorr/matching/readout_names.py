"""Lists of read-outs of one similarity, scored side by side; their names on the command line and in tables."""

import re
from collections.abc import Sequence
from functools import partial

from jaxtyping import Float
from torch import Tensor

from semcorr.core.errors import UserError
from semcorr.matching.readouts import Readout, argmax, bilinear_nn, kernel_soft_argmax, soft_argmax, window_soft_argmax

Rule = Readout
SPELLED = "argmax, bilinear_nn, soft, window_5 (any odd number of cells), window_15_zero, kernel_7 (any sigma)"


class ReadoutList:
    """Read-outs that all see the same similarity. The first is the one validated, drawn and reported as the score.

    Args:
        rules: Read-outs, each as `localise` takes it; or their names, as in `localise=[argmax,window_5,kernel_7]`.
    """

    def __init__(self, rules: Sequence[Readout | str]) -> None:
        if not rules:
            raise UserError("`localise.rules` must name at least one read-out, got none")
        self.rules = [parse_readout(rule) if isinstance(rule, str) else rule for rule in rules]
        names = [readout_label(rule) for rule in self.rules]
        if duplicates := [name for name in names if names.count(name) > 1]:
            raise UserError(f"`localise.rules` names {duplicates[0]} twice. Name each read-out once")

    def __call__(self, similarity: Float[Tensor, "b n h w"]) -> Float[Tensor, "b n 2"]:
        """Apply the first read-out."""
        return self.rules[0](similarity)


class ProtocolReadout:
    """Stand-in for `localise` that `run` replaces with each protocol's own read-out."""


def parse_readout(name: str) -> Readout:
    """Return the read-out of a short name.

    >>> readout_label(parse_readout("window_5")), readout_label(parse_readout("kernel_2.5"))
    ('window_soft_argmax(window=5)', 'kernel_soft_argmax(sigma=2.5)')
    """
    plain: dict[str, Readout] = {
        "argmax": argmax,
        "bilinear_nn": bilinear_nn,
        "soft": soft_argmax,
        "soft_argmax": soft_argmax,
    }
    if name in plain:
        return plain[name]
    if window := re.fullmatch(r"window_(\d+)(_zero)?", name):
        if int(window[1]) % 2 == 0:
            raise UserError(f"`localise`: {name}: a window must be odd and positive, so that it has a middle")
        window_rule = partial(window_soft_argmax, window=int(window[1]))
        return partial(window_rule, outside="zero") if window[2] else window_rule
    kernel = re.fullmatch(r"kernel_(\d+\.?\d*)", name)
    if kernel is None or not float(kernel[1]):
        raise UserError(f"`localise`: no read-out is called {name!r}. There are {SPELLED}")
    return partial(kernel_soft_argmax, sigma=float(kernel[1]))


def list_readouts(localise: Readout) -> list[Readout]:
    """Return the read-outs of `localise`, which is one or a `ReadoutList`."""
    return localise.rules if isinstance(localise, ReadoutList) else [localise]


def needs_four_queries(rule: Readout) -> bool:
    """Tell whether a read-out needs the similarities of the four source cells around each point."""
    return (rule.func if isinstance(rule, partial) else rule) is bilinear_nn


def readout_label(localise: Readout) -> str:
    """Return a read-out with its arguments, as tables name it; of several, the first.

    >>> readout_label(partial(window_soft_argmax, window=9))
    'window_soft_argmax(window=9)'
    """
    rule = list_readouts(localise)[0]
    if not isinstance(rule, partial):
        return rule.__name__
    arguments = ", ".join(f"{key}={value}" for key, value in rule.keywords.items())
    return f"{rule.func.__name__}({arguments})" if arguments else rule.func.__name__


def readout_shorthand(rule: Readout) -> str:
    """Return a read-out as it is typed, and its temperature where it is not that of the short name.

    >>> readout_shorthand(parse_readout("window_15_zero"))
    'window_15_zero'
    >>> readout_shorthand(partial(kernel_soft_argmax, sigma=7.0, temperature=0.04))
    'kernel_7 at 0.04'
    """
    function, options = (rule.func, rule.keywords) if isinstance(rule, partial) else (rule, {})
    default_temperatures = {window_soft_argmax: 0.02, kernel_soft_argmax: 0.03, soft_argmax: 0.02}
    names = {
        window_soft_argmax: f"window_{options.get('window', 15)}{'_zero' if options.get('outside') == 'zero' else ''}",
        kernel_soft_argmax: f"kernel_{options.get('sigma', 7.0):g}",
        soft_argmax: "soft",
    }
    if function not in names:
        return function.__name__
    temperature = options.get("temperature", default_temperatures[function])
    return names[function] + ("" if temperature == default_temperatures[function] else f" at {temperature:g}")
