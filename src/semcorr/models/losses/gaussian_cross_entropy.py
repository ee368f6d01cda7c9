"""Cross-entropy with a Gaussian around the true cell, at a fixed or a learned temperature."""

import math
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from semcorr.core.errors import UserError
from semcorr.core.ranges import Range, Share, Sigma, Temperature, Whole, check_arguments
from semcorr.core.text_files import JsonObject
from semcorr.models.losses.inputs import KeypointWeights, Lookup, LossInputs, mask_values, weighted_mean

MINIMUM = 0.001


class LearnedTemperature(nn.Module):
    """One learned temperature for all points of all pairs.

    Args:
        initial: Temperature at the start of training, more than `minimum`.
        minimum: Number that the temperature always exceeds.

    >>> LearnedTemperature(initial=0.03)(torch.zeros(1, 1, 2, 2))
    tensor(0.0300, grad_fn=<AddBackward0>)
    """

    def __init__(self, initial: float = 0.03, minimum: float = MINIMUM) -> None:
        super().__init__()
        self.start, self.minimum = inverse_softplus(initial, minimum), minimum
        self.theta = nn.Parameter(torch.zeros(()))

    def forward(self, similarity: Float[Tensor, "b n h w"]) -> Float[Tensor, ""]:
        """Return the temperature, which does not depend on the similarity."""
        return softplus(self.start + self.theta) + self.minimum


class PredictedTemperature(nn.Module):
    """One temperature per point, predicted from its similarities: their maximum, mean and standard deviation.

    These tell how peaked the similarities are. The temperature of a point depends on nothing else in the batch, and
    its gradient trains the prediction, not the features.

    Args:
        initial: Temperature at the start of training, more than `minimum`.
        minimum: Number that the temperature always exceeds.
    """

    def __init__(self, initial: float = 0.03, minimum: float = MINIMUM) -> None:
        super().__init__()
        self.start, self.minimum = inverse_softplus(initial, minimum), minimum
        self.linear = nn.Linear(3, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, similarity: Float[Tensor, "b n h w"]) -> Float[Tensor, "b n 1 1"]:
        """Predict the temperatures by which to divide the similarity."""
        with torch.autocast(similarity.device.type, enabled=False):
            flat = similarity.detach().flatten(2).to(self.linear.weight.dtype)
            statistics = torch.stack((flat.amax(-1), flat.mean(-1), flat.std(-1, correction=0)), dim=-1)
            return (softplus(self.start + self.linear(statistics)) + self.minimum)[..., None]


KINDS = {"scalar": LearnedTemperature, "point": PredictedTemperature}


def build_temperature(kind: str, initial: float) -> nn.Module:
    """Build the module of a learned temperature.

    Args:
        kind: `scalar`, one for all points, or `point`, one predicted for each.
        initial: Temperature at the start of training.

    Raises:
        UserError: There is no such kind, or the temperature is too small to be learned.
    """
    if kind not in KINDS:
        raise UserError(f"`loss.learn` must be null or one of {', '.join(KINDS)}, got {kind!r}")
    return KINDS[kind](initial)


def inverse_softplus(initial: float, minimum: float) -> float:
    """Return the number that softplus maps to `initial - minimum`."""
    if not initial > minimum:
        raise UserError(f"`loss.temperature` must be more than {minimum} to be learned, got {initial}")
    return math.log(math.expm1(initial - minimum))


Steps = Annotated[int, Range(least=1, most=255, odd=True)]


@check_arguments("loss")
def gaussian_cross_entropy(
    similarity: Float[Tensor, "b n h w"],
    cells: Float[Tensor, "b n 2"],
    mask: KeypointWeights,
    temperature: Temperature | Float[Tensor, ""] | Float[Tensor, "b n 1 1"] = 0.03,
    kernel: Steps = 7,
    sigma: Sigma = 1.5,
    renormalise: bool = False,
    epsilon: Share = 0.0,
) -> Float[Tensor, ""]:
    """Compute the cross-entropy between a Gaussian around the true cell and the softmax over all target cells.

    As in SD4Match (Li et al. 2024), the unified benchmark and MARCO: the probability map is read bilinearly on a kernel
    x kernel grid of unit steps centred on the *continuous* true cell, and -log p there is weighted by the normal
    density (`sigma` in cells). The mean is over the points in `mask` of each pair, then over pairs, as in the unified
    benchmark. With no such point the loss is 0.

    All three drop the steps that leave the grid and leave the other weights as they are, so a point at the
    border counts less; `renormalise` makes every point's weights sum to 1 instead, which is ours. (They
    also drop steps that hit the border cells' centres exactly; we do not.) MARCO adds an `epsilon` of
    1e-6 to p. The other two take log of the interpolated probability, which is log 0 where a softmax
    underflows; here interpolation happens in log space. No tensor has a size that only the device knows, so a step
    on a GPU needs no synchronisation; values outside the mask may be anything, NaN included.

    Args:
        similarity: Similarity of every point with every target cell.
        cells: True position of every point in the target, in cells of `similarity`.
        mask: Points that count, or their weights, see `weighted_mean`.
        temperature: Divisor of the similarity before the softmax, one for all points or one for each.
        kernel: Points along a side of the grid around the true cell, a cell apart; odd.
        sigma: Standard deviation of the Gaussian, in cells.
        renormalise: Whether the weights of every point are made to sum to 1.
        epsilon: Constant added to the probabilities.

    >>> flat, cells = torch.zeros(1, 1, 3, 3), torch.tensor([[[0.0, 1.0]]])  # log p is -log 9 everywhere
    >>> gaussian_cross_entropy(flat, cells, torch.tensor([[True]]), kernel=1, renormalise=True)
    tensor(2.1972)
    """
    similarity, cells = mask_values(similarity, mask), mask_values(cells, mask)
    return weighted_mean(point_cross_entropy(similarity, cells, temperature, kernel, sigma, renormalise, epsilon), mask)


def point_cross_entropy(
    similarity: Float[Tensor, "b n h w"],
    cells: Float[Tensor, "b n 2"],
    temperature: float | Float[Tensor, ""] | Float[Tensor, "b n 1 1"] = 0.03,
    kernel: int = 7,
    sigma: float = 1.5,
    renormalise: bool = False,
    epsilon: float = 0.0,
) -> Float[Tensor, "b n"]:
    """Compute `gaussian_cross_entropy` of each point; all similarities and cells must be finite.

    Args:
        similarity: Similarity of every point with every target cell, in single precision at least.
        cells: True position of every point in the target, in cells of `similarity`.
        temperature: Divisor of the similarity before the softmax, one for all points or one for each.
        kernel: Points along a side of the grid around the true cell, a cell apart; odd.
        sigma: Standard deviation of the Gaussian, in cells.
        renormalise: Whether the weights of every point are made to sum to 1.
        epsilon: Constant added to the probabilities.
    """
    log_p = (similarity / temperature).flatten(2).log_softmax(-1).view_as(similarity).flatten(0, 1)
    steps = torch.arange(kernel, device=cells.device) - kernel // 2
    dy, dx = torch.meshgrid(steps, steps, indexing="ij")
    density = torch.exp(-(dx**2 + dy**2) / (2 * sigma**2)) / (2 * math.pi * sigma**2)
    points = cells.flatten(0, 1)[:, None] + torch.stack((dx, dy), -1).flatten(0, 1)  # (m k 2), m = b n
    value, inside = _interpolate_log(log_p, points)
    if epsilon:
        value = torch.logaddexp(value, torch.full_like(value, math.log(epsilon)))
    weight = density.flatten() * inside
    if renormalise:
        weight = weight / weight.sum(-1, keepdim=True).clamp(min=1e-12)
    return -(weight * torch.where(inside, value, 0.0)).sum(-1).view(similarity.shape[:2])


def _interpolate_log(
    log_p: Float[Tensor, "m h w"], points: Float[Tensor, "m k 2"]
) -> tuple[Float[Tensor, "m k"], Bool[Tensor, "m k"]]:
    """Return the log of bilinearly interpolated p at `points`, and whether they lie within the cell centres."""
    h, w = log_p.shape[-2:]
    x, y = points.unbind(-1)
    inside = (x >= 0) & (x <= w - 1) & (y >= 0) & (y <= h - 1)
    left, top = x.floor().clamp(0, w - 1), y.floor().clamp(0, h - 1)
    cells, weights = [], []
    for column, along_x in ((left, left + 1 - x), (left + 1, x - left)):
        for row, along_y in ((top, top + 1 - y), (top + 1, y - top)):
            cells.append(row.clamp(max=h - 1).long() * w + column.clamp(max=w - 1).long())
            weights.append(along_x * along_y)
    weight = torch.stack(weights, dim=1)  # (m 4 k)
    corners = log_p.flatten(1).gather(1, torch.cat(cells, dim=1)).view_as(weight)
    terms = torch.where(weight > 0, corners + weight.clamp(min=1e-30).log(), -torch.inf)
    return torch.logsumexp(terms, dim=1), inside


def annealed_value(step: int, start: float = 3.5, end: float = 1.0, warmup: int = 1000, until: int = 12000) -> float:
    """Anneal from `start`, constant for `warmup` steps, along a cosine to `end` at step `until` (MARCO).

    Args:
        step: Number of training steps so far.
        start: Value up to step `warmup`.
        end: Value from step `until` on.
        warmup: Step at which annealing begins.
        until: Step at which it ends.

    >>> [annealed_value(step) for step in (0, 1000, 6500, 12000, 20000)]
    [3.5, 3.5, 2.25, 1.0, 1.0]
    """
    share = min(max((step - warmup) / max(until - warmup, 1), 0.0), 1.0)
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


CONVENTIONS: dict[str, Lookup] = {"centres": "centre", "aligned": "aligned"}  # `lookup` by the names of the option


class GaussianCrossEntropy(nn.Module):
    """`gaussian_cross_entropy` of any recipe: its width and temperature may change during training.

    Args:
        temperature: Temperature of the softmax; its initial value, if it is learned.
        learn: `scalar` for one temperature for all points, `point` for one predicted for each, None for a fixed one.
        kernel: Points along a side of the grid around the true cell where probabilities are read, a cell apart; odd.
        sigma: Standard deviation of the Gaussian in cells, at the start of training.
        sigma_end: Standard deviation that it is annealed to; None keeps it constant.
        warmup: Training steps before annealing begins.
        until: Training step at which `sigma_end` is reached.
        renormalise: Whether the weights of every point are made to sum to 1.
        epsilon: Constant added to the probabilities.
        convention: Way in which points are converted to cells. `centres`, as semcorr evaluates: cells at their centres.
            `aligned`, as the unified benchmark trains and scores: corner cells on corner pixels, for the source and the
            target, and features of unit length before the source's are interpolated; for data.resize=squash.
    """

    reads_descriptors = False

    @check_arguments("loss")
    def __init__(
        self,
        temperature: Temperature = 0.03,
        learn: str | None = None,
        kernel: Steps = 7,
        sigma: Sigma = 1.5,
        sigma_end: Sigma | None = None,
        warmup: Whole = 1000,
        until: Whole = 12000,
        renormalise: bool = False,
        epsilon: Share = 0.0,
        convention: Literal["centres", "aligned"] = "centres",
    ) -> None:
        super().__init__()
        self.lookup = CONVENTIONS[convention]
        if until < warmup:
            raise UserError(f"`loss.until` must be at least `loss.warmup`, {warmup}, got {until}")
        self.temperature = temperature if learn is None else build_temperature(learn, temperature)
        self.sigma, self.sigma_end = sigma, sigma if sigma_end is None else sigma_end
        self.warmup, self.until = warmup, until
        self.options: JsonObject = {"kernel": kernel, "renormalise": renormalise, "epsilon": epsilon}

    def forward(self, step: LossInputs) -> Float[Tensor, ""]:
        """Compute the loss with the width and the temperature of this step."""
        similarity, temperature = mask_values(step.similarity, step.mask), self.temperature
        return gaussian_cross_entropy(
            similarity,
            step.cells,
            step.mask,
            temperature(similarity) if isinstance(temperature, nn.Module) else temperature,
            sigma=annealed_value(step.number, self.sigma, self.sigma_end, self.warmup, self.until),
            **self.options,
        )
