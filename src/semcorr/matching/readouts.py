"""Readouts: from similarities to the cells of the target where the query points lie.

Every readout takes similarity (b n h w) and returns cells (b n 2), (x, y) with cell centres at
integers; `coords.to_image` turns them into pixels. `temperature` divides the similarity before a
softmax: small is sharp. `best` is the most similar cell, where the caller has found it already.
Cells are computed in single precision at least, and without a matrix product: bfloat16 has 8 bits,
and so has what autocast multiplies.

On a CPU, where nothing needs a gradient, a softmax is not normalised, but its mean is, and exponentials are taken less
that of the best cell in one buffer: half the time of PyTorch's softmax.
"""

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from semcorr.core.errors import UserError
from semcorr.core.ranges import Sigma, Temperature, Window, check_arguments

BLOCK = 2**21  # similarities read out at a time: 8 MiB, and as much for exponentials
LOG2_E = 1 / math.log(2)  # powers of 2 take PyTorch less than half the time of those of e


class Peak(NamedTuple):
    """The most similar cell of every query, the first of equals."""

    x: Int[Tensor, "b n"]  # column
    y: Int[Tensor, "b n"]  # row
    score: Float[Tensor, "b n"]  # similarity
    buffer: Float[Tensor, "b n h w"] | None = None  # what a readout may write into; None: there is nothing to reuse


def find_peak(similarity: Float[Tensor, "b n h w"]) -> Peak:
    """Return the most similar cell, the first of equals.

    >>> find_peak(torch.tensor([[[[0.1, 0.9], [0.9, 0.2]]]]))
    Peak(x=tensor([[1]]), y=tensor([[0]]), score=tensor([[0.9000]]), buffer=None)
    """
    flat, w = similarity.flatten(2), similarity.shape[-1]
    plain = type(similarity) is Tensor  # others may have no values, as where a program is traced
    if plain and similarity.device.type == "cpu" and similarity.dtype in (torch.float32, torch.float64):
        # PyTorch's `max` and `argmax` compare value by value, nine times as long
        index = torch.from_numpy(np.argmax(flat.detach().numpy(), axis=-1))
    else:
        index = flat.detach().max(-1).indices
    return Peak(index % w, index // w, flat.gather(-1, index[..., None])[..., 0])


def argmax(similarity: Float[Tensor, "b n h w"], best: Peak | None = None) -> Float[Tensor, "b n 2"]:
    """Return the most similar cell.

    >>> argmax(torch.tensor([[[[0.1, 0.9, 0.2]]]]))
    tensor([[[1., 0.]]])
    """
    similarity = _to_single(similarity)
    x, y, *_ = best or find_peak(similarity)
    return torch.stack((x, y), dim=-1).to(similarity.dtype)


def bilinear_nn(
    similarity: Float[Tensor, "b n 4 h w"], weights: Float[Tensor, "b n 4"], best: Peak | None = None
) -> Float[Tensor, "b n 2"]:
    """Blend the best cells of the four source cells around a point by its bilinear weights.

    It is the readout of NC-Net (Rocco et al. 2018), and needs four queries per point: see
    `matching.batched.match_bilinear`.

    Args:
        similarity: Similarities of the four source cells around each point.
        weights: Bilinear weights of the four cells.
        best: Most similar cell of every source cell, (b, 4 n); it is searched for if left out.

    >>> similarity = torch.zeros(1, 1, 4, 1, 9)
    >>> similarity[0, 0, [0, 1, 2, 3], 0, [2, 2, 6, 6]] = 1
    >>> bilinear_nn(similarity, torch.tensor([[[0.75, 0.0, 0.25, 0.0]]]))  # a quarter of the way from 2 to 6
    tensor([[[3., 0.]]])
    """
    cells = argmax(similarity.flatten(1, 2), best).unflatten(1, (-1, 4))
    return (cells * weights[..., None]).sum(-2)


@check_arguments("localise")
def soft_argmax(
    similarity: Float[Tensor, "b n h w"], temperature: Temperature = 0.02, best: Peak | None = None
) -> Float[Tensor, "b n 2"]:
    """Return the expected cell under a softmax over the whole map (SFNet, Lee et al. 2019).

    The temperature of 0.02 is that of GeoAware-SC. A second, distant mode pulls the result away from both; hence the
    two readouts below.
    """
    similarity = _to_single(similarity)
    if not _allows_in_place(similarity):
        return _expectation(similarity / temperature)
    return _mean_cell(_powers(similarity, temperature, best or find_peak(similarity)))


@check_arguments("localise")
def window_soft_argmax(
    similarity: Float[Tensor, "b n h w"],
    window: Window = 15,
    temperature: Temperature = 0.02,
    outside: str = "none",
    best: Peak | None = None,
) -> Float[Tensor, "b n 2"]:
    """Apply soft-argmax to a window x window square around the best cell.

    As in "Telling Left from Right" (Zhang et al. 2024), section 4.3. The window is cut at the border. Cells outside it
    get no weight at all, or with `outside="zero"` that of a similarity of 0: the released code multiplies the map by a
    mask, which leaves them e^0 each.

    Args:
        similarity: Similarity of every query with every cell.
        window: Cells along a side of the window, an odd number.
        temperature: Divisor of the similarity before the softmax.
        outside: Weight of the cells outside the window: `none` or `zero`.
        best: Most similar cell of every query; it is searched for if left out.

    Raises:
        UserError: `outside` is another word.
    """
    if outside not in ("none", "zero"):
        raise UserError(f"`localise.outside` must be none or zero, got {outside!r}")
    h, w = similarity.shape[-2:]
    peak = best or find_peak(similarity)
    (left, across), (top, down) = (
        _place_window(centre, window // 2, length) for centre, length in ((peak.x, w), (peak.y, h))
    )
    values = _to_single(_gather_windows(similarity, left, top, (across.shape[-1], down.shape[-1])))
    corner = torch.stack((left, top), dim=-1)
    if outside == "none" and _allows_in_place(values):
        powers = _powers(values, temperature, peak._replace(score=_to_single(peak.score), buffer=values))
        return _mean_cell(powers.mul_(down[..., None]).mul_(across[..., None, :])).add_(corner)
    inside = (down[..., None] * across[..., None, :]).bool()
    logits = torch.where(inside, values / temperature, -torch.inf)
    expected = _expectation(logits) + corner
    return expected if outside == "none" else _blend_with_zeros(expected, logits, inside, corner, (w, h))


def _blend_with_zeros(
    expected: Float[Tensor, "b n 2"],
    logits: Float[Tensor, "b n k l"],
    inside: Bool[Tensor, "b n k l"],
    corner: Int[Tensor, "b n 2"],
    size: tuple[int, int],
) -> Float[Tensor, "b n 2"]:
    """Average the cells of the window with all other cells at a logit of 0.

    The sum of the other cells is that of the map less the window's: the map is not read a second time.

    Args:
        expected: Mean cell within the window.
        logits: Logits of the window's cells, minus infinity for those beyond the border.
        inside: Which cells of a stretch are in the window.
        corner: First column and row of each stretch.
        size: Columns and rows of the map.
    """
    w, h = size
    total = logits.flatten(2).logsumexp(-1)
    window_count = inside.flatten(2).sum(-1)
    columns, rows = (
        start[..., None] + torch.arange(length, device=start.device)
        for start, length in zip(corner.unbind(-1), inside.shape[:1:-1], strict=True)
    )
    window_sums = [(inside * cells).flatten(2).sum(-1) for cells in (columns[..., None, :], rows[..., None])]
    map_sums = (h * w * (w - 1) / 2, h * w * (h - 1) / 2)
    outside_sum = torch.stack(
        [whole - part.to(expected) for whole, part in zip(map_sums, window_sums, strict=True)], dim=-1
    )
    count = (h * w - window_count).to(expected)
    outside_mean = outside_sum / count.clamp_min(1)[..., None]  # the mean cell outside
    share = torch.sigmoid(count.log() - total)[..., None].to(expected)  # of the weight that lies outside
    return expected * (1 - share) + outside_mean * share


@check_arguments("localise")
def kernel_soft_argmax(
    similarity: Float[Tensor, "b n h w"],
    sigma: Sigma = 7.0,
    temperature: Temperature = 0.03,
    best: Peak | None = None,
) -> Float[Tensor, "b n 2"]:
    """Apply soft-argmax to the map times a Gaussian around the best cell (SFNet, Lee et al. 2019).

    The defaults are those of the unified benchmark's code.

    Args:
        similarity: Similarity of every query with every cell.
        sigma: Standard deviation of the Gaussian, in cells.
        temperature: Divisor of the product before the softmax.
        best: Most similar cell of every query; it is searched for if left out.
    """
    similarity = _to_single(similarity)
    peak = best or find_peak(similarity)
    h, w = similarity.shape[-2:]
    across, down = _gaussian(peak.x, w, sigma), _gaussian(peak.y, h, sigma)  # the Gaussian is their product
    if not _allows_in_place(similarity):
        return _expectation((similarity * across[..., None, :]).mul_((down / temperature)[..., None]))
    # Where the peak is not negative, it stays the largest: every other value is multiplied by less than 1.
    factor = LOG2_E / temperature
    powers = torch.mul(similarity, across[..., None, :], out=peak.buffer).mul_((down * factor)[..., None])
    cells = _mean_cell(powers.sub_((peak.score * factor)[..., None, None]).exp2_())
    negative = peak.score < 0
    if bool(negative.any()):
        logits = similarity[negative] * across[negative][..., None, :] * (down[negative] / temperature)[..., None]
        cells[negative] = _expectation(logits[None])[0]
    return cells


Readout = Callable[..., Tensor]  # similarity (b n h w) to cells (b n 2)
PEAK_READOUTS = (argmax, soft_argmax, window_soft_argmax, kernel_soft_argmax)  # they begin with the best cell


def apply_readouts(
    similarity: Float[Tensor, "b n h w"], readouts: Sequence[Readout]
) -> tuple[list[Float[Tensor, "b n 2"]], Float[Tensor, "b n"]]:
    """Apply every readout to a similarity, and return its maximum too. The best cell is searched for once.

    Args:
        similarity: Similarity of every query with every cell.
        readouts: Readouts of one query per point, so `bilinear_nn` is none of them.

    Returns:
        Cells by each readout, and the similarity of the best cell of every query.

    >>> readouts = [argmax, partial(soft_argmax, temperature=1e-3)]
    >>> cells, score = apply_readouts(torch.tensor([[[[0.1, 0.9, 0.2]]]]), readouts)
    >>> cells[0].tolist() == cells[1].tolist() == [[[1.0, 0.0]]], score
    (True, tensor([[0.9000]]))
    """
    h, w = similarity.shape[-2:]
    blocks = similarity.split(max(1, BLOCK // max(1, len(similarity) * h * w)), dim=1)
    if len(blocks) > 1 and _allows_in_place(similarity):
        cells, scores = zip(*(apply_readouts(block, readouts) for block in blocks), strict=True)
        return [torch.cat(parts, dim=1) for parts in zip(*cells, strict=True)], torch.cat(scores, dim=1)
    peak = find_peak(similarity)
    if _allows_in_place(similarity) and similarity.dtype == _to_single(peak.score).dtype:
        peak = peak._replace(buffer=torch.empty_like(similarity))
    takes_best = [(readout.func if isinstance(readout, partial) else readout) in PEAK_READOUTS for readout in readouts]
    return [
        readout(similarity, best=peak) if with_best else readout(similarity)
        for readout, with_best in zip(readouts, takes_best, strict=True)
    ], peak.score


def _to_single(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _expectation(logits: Float[Tensor, "b n h w"]) -> Float[Tensor, "b n 2"]:
    """Return the mean cell under softmax(logits)."""
    h, w = logits.shape[-2:]
    weights = logits.flatten(2).softmax(-1).unflatten(-1, (h, w))
    columns, rows = (torch.arange(length, dtype=weights.dtype, device=weights.device) for length in (w, h))
    return torch.stack(((weights.sum(-2) * columns).sum(-1), (weights.sum(-1) * rows).sum(-1)), dim=-1)


def _allows_in_place(similarity: Float[Tensor, "b n h w"]) -> bool:
    """Tell whether exponentials may replace logits: on a CPU, where no gradient is needed."""
    return similarity.device.type == "cpu" and not (torch.is_grad_enabled() and similarity.requires_grad)


def _powers(values: Float[Tensor, "b n h w"], temperature: float, peak: Peak) -> Float[Tensor, "b n h w"]:
    """Return exp((values - peak) / temperature), in the peak's buffer, where it has one."""
    factor = LOG2_E / temperature
    shift = (peak.score * -factor)[..., None, None]
    return torch.add(shift, values, alpha=factor, out=peak.buffer).exp2_()


def _mean_cell(weights: Float[Tensor, "b n h w"]) -> Float[Tensor, "b n 2"]:
    """Return the mean cell under weights of any sum."""
    h, w = weights.shape[-2:]
    columns, rows = weights.sum(-2), weights.sum(-1)
    positions = torch.arange(max(h, w), dtype=weights.dtype, device=weights.device)
    moments = [sums.flatten(0, 1).mv(positions[: sums.shape[-1]]) for sums in (columns, rows)]
    return (torch.stack(moments, dim=-1) / columns.sum(-1).view(-1, 1)).view(*weights.shape[:2], 2)


def _gaussian(centre: Int[Tensor, "b n"], length: int, sigma: float) -> Float[Tensor, "b n k"]:
    """Return exp(-d^2 / (2 sigma^2)) for the distances d of all positions from each centre."""
    positions = torch.arange(length, dtype=torch.float32, device=centre.device)
    distance = positions - positions[:, None]  # of any two positions: there are more centres than these
    return _look_up(distance.square_().mul_(-0.5 / sigma**2).exp_(), centre)


def _place_window(
    centre: Int[Tensor, "b n"], reach: int, length: int
) -> tuple[Int[Tensor, "b n"], Float[Tensor, "b n k"]]:
    """Return the first position of a stretch that lies on the map, and 1 for its positions within `reach` cells.

    All stretches have one length; those near a border hold positions that are further away, with 0.
    """
    size = min(2 * reach + 1, length)
    positions = torch.arange(length, device=centre.device)  # of any centre: there are fewer than centres
    start = (positions - reach).clamp_(0, length - size)
    distance = start[:, None] + torch.arange(size, device=centre.device) - positions[:, None]
    return (centre - reach).clamp_(0, length - size), _look_up((distance.abs_() <= reach).float(), centre)


def _look_up(table: Float[Tensor, "length k"], index: Int[Tensor, "b n"]) -> Float[Tensor, "b n k"]:
    return table.index_select(0, index.flatten()).unflatten(0, index.shape)


def _gather_windows(
    similarity: Float[Tensor, "b n h w"], left: Int[Tensor, "b n"], top: Int[Tensor, "b n"], size: tuple[int, int]
) -> Float[Tensor, "b n k l"]:
    """Copy a window of each map, of `size` (width, height), which lies on it."""
    (b, n, h, w), (columns, rows), device = similarity.shape, size, similarity.device
    starts = (top * w + left)[..., None] + torch.arange(rows, device=device) * w  # of the rows of each window
    if _allows_in_place(similarity) and type(similarity) is Tensor and similarity.numel():
        starts += (torch.arange(b * n) * (h * w)).view(b, n, 1)
        stretches = similarity.reshape(-1).unfold(0, columns, 1)  # all that there are, a view
        return stretches.index_select(0, starts.flatten()).view(b, n, rows, columns)
    cells = starts[..., None] + torch.arange(columns, device=device)
    return similarity.flatten(2).gather(-1, cells.flatten(2)).view(b, n, rows, columns)


READOUT_NAMES = "argmax, bilinear_nn, soft, window_5 (any odd number of cells), window_15_zero, kernel_7 (any sigma)"


class ReadoutList:
    """Readouts that all see the same similarity. The first is the one validated, drawn and reported as the score.

    Args:
        rules: Readouts, each as `localise` takes it; or their names, as in `localise=[argmax,window_5,kernel_7]`.

    Raises:
        UserError: There is none, one is named twice, or a name is unknown.
    """

    def __init__(self, rules: Sequence[Readout | str]) -> None:
        if not rules:
            raise UserError("`localise.rules` must name at least one readout, got none")
        self.readouts = [parse_readout(rule) if isinstance(rule, str) else rule for rule in rules]
        names = [readout_label(readout) for readout in self.readouts]
        if duplicates := [name for name in names if names.count(name) > 1]:
            raise UserError(f"`localise.rules` names {duplicates[0]} twice. Name each readout once")

    def __call__(self, similarity: Float[Tensor, "b n h w"]) -> Float[Tensor, "b n 2"]:
        """Apply the first readout."""
        return self.readouts[0](similarity)


class ProtocolReadout:
    """Stand-in for `localise` that `build_scoring_specs` replaces with each protocol's own readout."""


def parse_readout(name: str) -> Readout:
    """Return the readout of a short name, one of `READOUT_NAMES`.

    Raises:
        UserError: There is no such readout, or its window is even.

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
        window_readout = partial(window_soft_argmax, window=int(window[1]))
        return partial(window_readout, outside="zero") if window[2] else window_readout
    kernel = re.fullmatch(r"kernel_(\d+\.?\d*)", name)
    if kernel is None or not float(kernel[1]):
        raise UserError(f"`localise`: no readout is called {name!r}. There are {READOUT_NAMES}")
    return partial(kernel_soft_argmax, sigma=float(kernel[1]))


def list_readouts(localise: Readout) -> list[Readout]:
    """Return the readouts of `localise`, which is one or a `ReadoutList`."""
    return localise.readouts if isinstance(localise, ReadoutList) else [localise]


def needs_four_queries(readout: Readout) -> bool:
    """Tell whether a readout needs the similarities of the four source cells around each point."""
    return (readout.func if isinstance(readout, partial) else readout) is bilinear_nn


def readout_label(localise: Readout) -> str:
    """Return a readout with its arguments, as tables name it; of several, the first.

    >>> readout_label(partial(window_soft_argmax, window=9))
    'window_soft_argmax(window=9)'
    """
    readout = list_readouts(localise)[0]
    function, options = (readout.func, readout.keywords) if isinstance(readout, partial) else (readout, {})
    arguments = ", ".join(f"{key}={value}" for key, value in options.items())
    return f"{_function_name(function)}({arguments})" if arguments else _function_name(function)


def _function_name(function: Readout) -> str:
    """Return the name of a function, or that of the class of an object that is called as one."""
    return str(getattr(function, "__name__", type(function).__name__))


def readout_shorthand(readout: Readout) -> str:
    """Return a readout as it is typed, and its temperature where it is not that of the short name.

    >>> readout_shorthand(parse_readout("window_15_zero"))
    'window_15_zero'
    >>> readout_shorthand(partial(kernel_soft_argmax, sigma=7.0, temperature=0.04))
    'kernel_7 at 0.04'
    """
    function, options = (readout.func, readout.keywords) if isinstance(readout, partial) else (readout, {})
    default_temperatures = {window_soft_argmax: 0.02, kernel_soft_argmax: 0.03, soft_argmax: 0.02}
    names = {
        window_soft_argmax: f"window_{options.get('window', 15)}{'_zero' if options.get('outside') == 'zero' else ''}",
        kernel_soft_argmax: f"kernel_{options.get('sigma', 7.0):g}",
        soft_argmax: "soft",
    }
    if function not in names:
        return _function_name(function)
    temperature = options.get("temperature", default_temperatures[function])
    return names[function] + ("" if temperature == default_temperatures[function] else f" at {temperature:g}")
